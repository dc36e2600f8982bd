"""Accelerators: from a few EM steps to a point further along; the loop decides whether to keep it.

They see the EM map on the unconstrained scale only, so whatever they propose is feasible, and work
on the host: a few vectors of the length of the parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from ppl_em.util import check_choice

Map = Callable[[np.ndarray], np.ndarray]
"""One EM step: parameters (p,) to parameters (p,). Costs an E-step and an M-step."""

NEGLIGIBLE = 1e-3
"""Share of the largest scaled step below which a coordinate is not extrapolated.

So probabilities that go to 0, whose unconstrained values run away, do not spoil the rest.
"""


class Proposal(NamedTuple):
    """Where to go, (p,), and where to go instead if the objective is lower there, (p,).

    `rate` is the observed ratio of lengths of successive EM steps; NaN if there is none to see.
    """

    x: np.ndarray
    fallback: np.ndarray
    rate: float


class Accelerator(Protocol):
    """What extrapolates; it has memory, so each run starts with a new one."""

    def propose(
        self, em_map: Map, x: np.ndarray, mapped: np.ndarray, scale: np.ndarray
    ) -> Proposal:
        """Extrapolate from `x` (p,) and the EM step from it, `mapped` (p,).

        `scale` (p,) is the size of a step that matters, in every coordinate; infinite for one that
        is at a boundary.
        """
        ...

    def refuse(self) -> None:
        """The last proposal had a lower objective and was not kept."""
        ...


@dataclass
class Squarem:
    """SQUAREM with the third step length, by pairs of EM steps and one that stabilises.

    With r = F(x) - x and v = F(F(x)) - F(x) - r, the point x + 2 a r + a^2 v, a = |r| / |v| between
    1 and a bound, mapped once more. The bound grows fourfold when it is met, and shrinks after a
    failure.

    References
    ----------
    Varadhan & Roland (2008), Simple and globally convergent methods for accelerating the
    convergence of any EM algorithm, Scandinavian Journal of Statistics 35.
    """

    bound: float = 1.0
    growth: float = 4.0
    hit: bool = field(default=False, init=False)

    def propose(
        self, em_map: Map, x: np.ndarray, mapped: np.ndarray, scale: np.ndarray
    ) -> Proposal:
        """Two more EM steps at most, one of them from the extrapolated point."""
        second = em_map(mapped)
        matters = _matters(np.abs(mapped - x) + np.abs(second - mapped), scale)
        r, r_next = np.where(matters, mapped - x, 0.0), np.where(matters, second - mapped, 0.0)
        v = r_next - r
        size, size_next, change = (float(np.linalg.norm(a / scale)) for a in (r, r_next, v))
        rate = size_next / size if size > 0 else np.nan
        length = float(np.clip(size / change if change > 0 else 1.0, 1.0, self.bound))
        self.hit = length == self.bound
        if self.hit:
            self.bound *= self.growth
        if length <= 1.01:
            return Proposal(second, second, rate)
        far = em_map(np.where(matters, x + 2 * length * r + length**2 * v, second))
        return Proposal(far if np.all(np.isfinite(far)) else second, second, rate)

    def refuse(self) -> None:
        """Take shorter steps from now on, if the bound allowed too long a one."""
        if self.hit:
            self.bound = max(1.0, self.bound / self.growth**2)


@dataclass(eq=False)
class Anderson:
    """Damped Anderson acceleration with restarts: a least-squares mix of the last EM steps.

    With the last m differences of points and of residuals f = F(x) - x as columns of X and R, the
    point F(x) - (X + R) c, c = (R'R + t I)^-1 R'f. The damping t makes |c|^2 a given fraction of
    its undamped value: half at first, more of it after good steps, less after a failure, which
    also empties X and R.

    References
    ----------
    Henderson & Varadhan (2019), Damped Anderson acceleration with restarts and monotonicity
    control for accelerating EM and EM-like algorithms, JCGS 28. Walker & Ni (2011), SIAM J. Numer.
    Anal. 49.
    """

    order: int = 5
    softness: float = 1.2
    patience: int = 25
    points: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list, init=False)
    good: int = field(default=25, init=False)

    def propose(
        self, em_map: Map, x: np.ndarray, mapped: np.ndarray, scale: np.ndarray
    ) -> Proposal:
        """No further EM step: one for each proposal."""
        order = min(self.order, x.size)
        self.points = [*self.points, (x, mapped)][-(order + 1) :]
        if len(self.points) < 2:
            return Proposal(mapped, mapped, np.nan)
        xs, maps = (np.stack(rows) for rows in zip(*self.points, strict=True))
        residuals = maps - xs
        matters = _matters(np.max(np.abs(residuals), axis=0), scale)
        weight = np.where(matters, 1 / scale, 0.0)
        xs, residuals = xs * weight, residuals * weight
        moved, turned = np.diff(xs, axis=0).T, np.diff(residuals, axis=0).T
        rate = _rate(moved, turned)
        mix = self._damped(turned, residuals[-1])
        change = np.where(matters, scale, 0.0) * ((moved + turned) @ mix)
        self.good += 1
        return Proposal(mapped - change, mapped, rate)

    def refuse(self) -> None:
        """Damp more, and forget the points that misled."""
        self.good = min(self.good - 1, self.patience) // 2
        self.points = []

    def _damped(self, turned: np.ndarray, residual: np.ndarray) -> np.ndarray:
        """The coefficients, (m,), their squared size a fraction of the undamped ones'."""
        left, sizes, right = np.linalg.svd(turned, full_matrices=False)
        along = left.T @ residual
        kept = sizes > 1e-14 * max(sizes.max(), np.finfo(float).tiny)
        along, sizes = np.where(kept, along, 0.0), np.where(kept, sizes, 1.0)
        full = float(np.sum((along / sizes) ** 2))
        aim = full / (1 + self.softness ** float(np.clip(self.patience - self.good, -80, 80)))
        low, high = -80.0, 80.0  # log of the damping, by bisection: the size falls with it
        top = 2 * np.log(sizes.max())
        for _ in range(60):
            middle = (low + high) / 2
            damping = np.exp(middle + top)
            size = float(np.sum((sizes * along / (sizes**2 + damping)) ** 2))
            low, high = (middle, high) if size > aim else (low, middle)
        return right.T @ (sizes * along / (sizes**2 + np.exp(low + top)))


def _matters(length: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Which coordinates take part: those whose steps are not negligible, (p,)."""
    scaled = length / scale
    return scaled > NEGLIGIBLE * np.max(scaled)


def _rate(moved: np.ndarray, turned: np.ndarray) -> float:
    """Largest eigenvalue of the EM map's derivative on the span of `moved` (p, m)."""
    mapped = moved + turned
    projected = np.linalg.lstsq(moved, mapped, rcond=1e-8)[0]
    return float(np.max(np.abs(np.linalg.eigvals(projected))))


ACCELERATORS: dict[str, type] = {"squarem": Squarem, "anderson": Anderson}


def check_acceleration(value: str | None) -> None:
    """Raise if there is no such accelerator."""
    if value is not None:
        check_choice("acceleration", value, ACCELERATORS)


def accelerator(flag: str | None) -> Accelerator | None:
    """A new accelerator for a flag; None without one."""
    return None if flag is None else ACCELERATORS[flag]()
