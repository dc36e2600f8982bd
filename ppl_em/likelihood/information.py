"""Observed information and the covariance of the parameters."""

from dataclasses import dataclass, replace

import jax
import numpy as np

from ppl_em.params import flat_labels
from ppl_em.problem import Problem
from ppl_em.stats import relative_error

MAX_SE_NOISE = 0.2
"""Standard errors with a larger relative Monte Carlo error are withheld."""


@dataclass(frozen=True)
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
        Directions, (p, r), in which nothing is estimated: towards a boundary or an active
        constraint, or where the likelihood is flat; None for none.
    """

    gradient: np.ndarray
    matrix: np.ndarray
    method: str
    score_error: np.ndarray
    reason: str
    replicates: np.ndarray | None = None
    held: np.ndarray | None = None

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
        if self.held is None:
            return np.linalg.inv(self.matrix)
        rest = complement(self.held)
        return rest @ np.linalg.inv(rest.T @ self.matrix @ rest) @ rest.T

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
        rest = np.eye(len(self.matrix)) if self.held is None else complement(self.held)
        try:
            return rest @ np.linalg.solve(rest.T @ self.matrix @ rest, rest.T @ right)
        except np.linalg.LinAlgError:
            return np.full(np.shape(right), np.nan)

    def uphill(self, max_length: float) -> tuple[np.ndarray, float]:
        """The step to the maximum of the quadratic model, (p,), and the gain that it promises.

        At most `max_length` standard errors long. Where the matrix is not positive definite its
        eigenvalues, scaled to a unit diagonal, count by their size, which makes the step one
        uphill. NaN is promised where it is not finite.
        """
        rest = np.eye(len(self.matrix)) if self.held is None else complement(self.held)
        gradient, matrix = rest.T @ self.gradient, rest.T @ self.matrix @ rest
        if not np.all(np.isfinite(matrix)):
            return np.zeros_like(self.gradient), np.nan
        if self.usable:
            inside = np.linalg.solve(matrix, gradient)
        else:
            diagonal = np.abs(np.diag(matrix))
            scale = 1 / np.sqrt(np.maximum(diagonal, np.abs(gradient) + 1e-12))
            values, vectors = np.linalg.eigh(scale[:, None] * matrix * scale)
            sizes = np.maximum(np.abs(values), 1e-8)
            inside = scale * (vectors @ (vectors.T @ (scale * gradient) / sizes))
        promised = max(0.5 * gradient @ inside, 0.0)
        length = np.sqrt(2 * promised)
        return rest @ inside * min(1.0, max_length / max(length, 1e-300)), float(promised)

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


def complement(directions: np.ndarray) -> np.ndarray:
    """An orthonormal basis (p, p - r) of what is orthogonal to `directions` (p, r)."""
    left, sizes, _ = np.linalg.svd(directions)
    rank = int(np.sum(sizes > 1e-10 * np.max(sizes, initial=0.0)))
    return left[:, rank:]


def holding(
    problem: Problem, x: jax.Array, information: Information, directions: np.ndarray
) -> Information:
    """The information with nothing moving along `directions` (p, r) either."""
    if information.held is not None:
        directions = np.concatenate([information.held, directions], axis=1)
    text = trouble(problem, x, information.matrix, complement(directions))
    return replace(information, reason=text, held=directions)


def checked(
    problem: Problem,
    x: jax.Array,
    gradient: np.ndarray,
    matrix: np.ndarray,
    method: str,
    error: np.ndarray,
) -> Information:
    """Symmetrise `matrix` (p, p) and say whether it can be inverted."""
    matrix = (matrix + matrix.T) / 2
    return Information(gradient, matrix, method, error, trouble(problem, x, matrix))


def trouble(
    problem: Problem, x: jax.Array, matrix: np.ndarray, basis: np.ndarray | None = None
) -> str:
    """Why `matrix` (p, p), in the directions of a `basis` (p, q), cannot be inverted."""
    if not np.all(np.isfinite(matrix)):
        return (
            "the information matrix is not finite; the parameters may be at a boundary, or the "
            "E-step has none to give"
        )
    basis = np.eye(len(matrix)) if basis is None else basis
    if not basis.shape[1]:
        return ""
    values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
    if values[0] > max(1e-10 * abs(values[-1]), 1e-10):
        return ""
    return not_definite(problem, x, values[0], basis @ vectors[:, 0])


def not_definite(problem: Problem, x: jax.Array, eigenvalue: float, direction: np.ndarray) -> str:
    """That the information at `x` is singular along `direction`, both (p,)."""
    labels = flat_labels(problem.space.unravel(np.asarray(x)))
    weights = np.abs(direction)
    names = [labels[i] for i in np.argsort(-weights) if weights[i] > 0.3][:4]
    return (
        f"the information matrix is not positive definite (smallest eigenvalue "
        f"{eigenvalue:.2g}), in the direction of {', '.join(names)}: not identified, at a "
        f"boundary, or running off to infinity, as where outcomes are all alike or a covariate "
        f"separates them; fix one of them with `fixed`, constrain it, or give it a prior "
        f"(`map_sites`)"
    )
