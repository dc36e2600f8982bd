"""Observed information and the covariance of the parameters."""

from dataclasses import dataclass, replace
from functools import cached_property

import jax
import numpy as np

from ppl_em.optimize import Quadratic
from ppl_em.params import flat_labels
from ppl_em.problem import Problem
from ppl_em.stats import relative_error

MAX_SE_NOISE = 0.2
"""Standard errors with a larger relative Monte Carlo error are withheld."""

RESOLUTION = 1e-10
"""Eigenvalues, of a matrix scaled to a unit diagonal, that rounding alone can make."""


BALANCED = 1.0 + 1e-6
"""Entries of a matrix with a unit diagonal, from which it is that of a saddle."""

MAX_BALANCING = 50
"""Times that the rows of such a matrix are brought to 1."""


@dataclass(frozen=True, eq=False)
class Information:
    """Observed information on the unconstrained scale, and what came of inverting it.

    Attributes
    ----------
    gradient
        Gradient of the log-likelihood (the score), shape (p,).
    matrix
        Minus its Hessian, shape (p, p).
    method
        How they were computed.
    score_error
        Monte Carlo covariance of the score, shape (p, p); zero if deterministic.
    replicates
        Estimates of the covariance from parts of the draws, (R, p, p), each without one of R
        parts; None if deterministic.
    reason
        Empty if the matrix is positive definite; else which direction is not, and what to do.
    held
        Normals, (p, r), across which nothing moves: towards a boundary or an active constraint, or
        along which the likelihood is flat; None for none.
    resolution
        Eigenvalues, of the matrix scaled to a unit diagonal, that its errors alone can make.
    flat
        Directions, (p, f), among those held, without curvature; None for none.
    """

    gradient: np.ndarray
    matrix: np.ndarray
    method: str
    score_error: np.ndarray
    reason: str
    replicates: np.ndarray | None = None
    held: np.ndarray | None = None
    resolution: float = RESOLUTION
    flat: np.ndarray | None = None

    @cached_property
    def frame(self) -> np.ndarray:
        """Directions, (p, q), that are free, in units in which the matrix has a unit diagonal."""
        return frame(self.matrix, self.held)

    @property
    def inside(self) -> tuple[np.ndarray, np.ndarray]:
        """Score (q,) and matrix (q, q) in the directions of `frame`."""
        return self.frame.T @ self.gradient, self.frame.T @ self.matrix @ self.frame

    @property
    def usable(self) -> bool:
        """Whether the matrix is positive definite."""
        return not self.reason

    @property
    def precise(self) -> bool:
        """Whether standard errors may be given: it is usable, and their error is small enough."""
        return self.usable and self.se_noise <= MAX_SE_NOISE

    @property
    def covariance(self) -> np.ndarray:
        """Inverse of the matrix, shape (p, p); NaN where it is not usable."""
        if not self.usable:
            return np.full_like(self.matrix, np.nan)
        return self.frame @ np.linalg.inv(self.inside[1]) @ self.frame.T

    @property
    def se_noise(self) -> float:
        """Largest relative Monte Carlo error of a standard error; zero if deterministic.

        By the jackknife: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 11.
        """
        if self.replicates is None:
            return 0.0
        replicates, held = self.replicates, self.held
        if held is not None:  # what they say given that nothing moves along these
            seen = replicates @ held
            inner = np.linalg.solve(held.T @ seen, np.swapaxes(seen, 1, 2))
            rest = complement(held)
            replicates = rest.T @ (replicates - seen @ inner) @ rest
        variances = np.diagonal(replicates, axis1=1, axis2=2)
        if len(variances) < 2 or not np.min(variances) > 0:
            return np.inf
        return float(np.max(relative_error(variances)))

    @property
    def newton_step(self) -> np.ndarray:
        """The step to the maximum of the quadratic model, shape (p,)."""
        return self.solve(self.gradient)

    def solve(self, right: np.ndarray) -> np.ndarray:
        """The inverse of the matrix, (p, p), times `right` (p,) or (p, n), what is held in place.

        Also where the matrix is not positive definite; NaN where it is exactly singular.
        """
        try:
            return self.frame @ np.linalg.solve(self.inside[1], self.frame.T @ right)
        except np.linalg.LinAlgError:
            return np.full(np.shape(right), np.nan)

    def uphill(self, max_length: float) -> tuple[np.ndarray, float]:
        """The step to the maximum of the quadratic model, (p,), and the gain that it promises.

        At most `max_length` standard errors long. Where the matrix is not positive definite its
        eigenvalues count by their size, in units in which neither the diagonal nor the score is
        above 1, which makes the step one uphill. NaN is promised where it is not finite.
        """
        if not (np.all(np.isfinite(self.matrix)) and np.all(np.isfinite(self.gradient))):
            return np.zeros_like(self.gradient), np.nan
        gradient, matrix = self.inside
        if self.usable:
            inside = np.linalg.solve(matrix, gradient)
        else:
            scale = 1 / np.maximum(np.abs(gradient), 1.0)
            values, vectors = np.linalg.eigh(scale[:, None] * matrix * scale)
            sizes = np.maximum(np.abs(values), 1e-8)
            inside = scale * (vectors @ (vectors.T @ (scale * gradient) / sizes))
        promised = max(float(0.5 * gradient @ inside), 0.0)
        length = np.sqrt(2 * promised)
        return self.frame @ inside * min(1.0, max_length / max(length, 1e-300)), promised

    @cached_property
    def _quadratic(self) -> Quadratic:
        return Quadratic(*self.inside)

    def within(self, radius: float) -> tuple[np.ndarray, float, float]:
        """The step to the maximum of the quadratic model among those not longer than `radius`.

        Returns the step (p,), the gain that the model promises for it, and its length. Lengths are
        in units in which the matrix has a unit diagonal; it may be indefinite. NaN is promised
        where the model is not finite.
        """
        if not (np.all(np.isfinite(self.matrix)) and np.all(np.isfinite(self.gradient))):
            return np.zeros_like(self.gradient), np.nan, 0.0
        step = self._quadratic.within(radius)
        return self.frame @ step, self._quadratic.gain(step), float(np.linalg.norm(step))

    @property
    def newton_error(self) -> np.ndarray:
        """Monte Carlo covariance of `newton_step`, shape (p, p)."""
        values, vectors = np.linalg.eigh(self.score_error)
        # By a square root: rounding must not make a variance of zero negative.
        root = self.solve(vectors * np.sqrt(np.maximum(values, 0.0)))
        return root @ root.T

    @property
    def gap(self) -> float:
        """Log-likelihood that the Newton step promises to gain."""
        return float(0.5 * self.gradient @ self.newton_step)

    @property
    def gap_noise(self) -> float:
        """Mean of `gap` that Monte Carlo error alone would cause."""
        return float(0.5 * np.trace(self.solve(self.score_error)))


def frame(matrix: np.ndarray, held: np.ndarray | None) -> np.ndarray:
    """Directions, (p, q), in which nothing that is `held` (p, r) moves.

    Each is in units of the standard errors that single parameters would have if all others were
    known, so that `matrix` (p, p) means the same whatever units the data are in. At saddles a
    diagonal may be next to nothing where the rest is not: there rows are brought to a largest
    entry of 1 (Ruiz 2001, A scaling algorithm to equilibrate both rows and columns norms).
    """
    sizes = np.abs(np.diag(matrix))
    scale = 1 / np.sqrt(np.where(np.isfinite(sizes) & (sizes > 0), sizes, 1.0))
    for _ in range(MAX_BALANCING):
        rows = np.max(np.abs(scale[:, None] * matrix * scale), axis=1, initial=0.0)
        large = np.isfinite(rows) & (rows > BALANCED)
        if not large.any():
            break
        scale = np.where(large, scale / np.sqrt(np.where(large, rows, 1.0)), scale)
    if held is None:
        return np.diag(scale)
    return scale[:, None] * complement(scale[:, None] * held)


def complement(directions: np.ndarray) -> np.ndarray:
    """An orthonormal basis (p, p - r) of what is orthogonal to `directions` (p, r)."""
    lengths = np.linalg.norm(directions, axis=0)
    left, sizes, _ = np.linalg.svd(directions / np.where(lengths > 0, lengths, 1.0))
    rank = int(np.sum(sizes > 1e-10 * np.max(sizes, initial=0.0)))
    return left[:, rank:]


def holding(
    problem: Problem, x: jax.Array, information: Information, normals: np.ndarray
) -> Information:
    """The information with nothing moving across `normals` (p, r) either."""
    if information.held is not None:
        normals = np.concatenate([information.held, normals], axis=1)
    text = trouble(problem, x, information.matrix, normals, information.resolution)
    return replace(information, reason=text, held=normals)


def checked(
    problem: Problem,
    x: jax.Array,
    gradient: np.ndarray,
    matrix: np.ndarray,
    method: str,
    error: np.ndarray,
    resolution: float = RESOLUTION,
) -> Information:
    """Symmetrise `matrix` (p, p) and say whether it can be inverted."""
    matrix = (matrix + matrix.T) / 2
    text = trouble(problem, x, matrix, None, resolution)
    return Information(gradient, matrix, method, error, text, resolution=resolution)


def trouble(
    problem: Problem,
    x: jax.Array,
    matrix: np.ndarray,
    held: np.ndarray | None,
    resolution: float,
) -> str:
    """Why `matrix` (p, p) cannot be inverted with nothing moving across `held` (p, r)."""
    if not np.all(np.isfinite(matrix)):
        return (
            "the information matrix is not finite; the parameters may be at a boundary, or the "
            "E-step has none to give"
        )
    basis = frame(matrix, held)
    if not basis.shape[1]:
        return ""
    values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
    if values[0] > resolution * max(1.0, values[-1]):
        return ""
    return not_definite(problem, x, values[0], basis @ vectors[:, 0], matrix)


def not_definite(
    problem: Problem, x: jax.Array, eigenvalue: float, direction: np.ndarray, matrix: np.ndarray
) -> str:
    """That the information at `x` is singular along `direction`, both (p,)."""
    return (
        f"the information matrix, scaled to a unit diagonal, is not positive definite (smallest "
        f"eigenvalue {eigenvalue:.2g}), in the direction of "
        f"{', '.join(named(problem, x, direction, matrix))}{AT_AN_END}"
    )


AT_AN_END = (
    ": not identified, at a boundary, or running off to infinity, as where outcomes are all alike "
    "or a covariate separates them; fix one of them with `fixed`, constrain it, or give it a prior "
    "(`map_sites`)"
)
"""What a singular information says where a run has arrived."""


def named(
    problem: Problem, x: jax.Array, direction: np.ndarray, matrix: np.ndarray, most: int = 4
) -> list[str]:
    """Parameters with a large share in `direction` (p,), in units of their own curvature."""
    labels = flat_labels(problem.space.unravel(np.asarray(x)))
    shares = np.abs(direction / np.diag(frame(matrix, None)))
    shares = shares / max(np.max(shares, initial=0.0), 1e-300)
    return [labels[i] for i in np.argsort(-shares) if shares[i] > 0.3][:most]
