"""When to stop: tolerances, and the rules that decide it, functions of the history."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ppl_em.util import check_options, number, optional, whole


@dataclass(frozen=True)
class Stopping:
    """Tolerances, in units that mean something.

    Attributes
    ----------
    gap
        Estimated log-likelihood still to gain. A gap g leaves parameters within sqrt(2 g)
        standard errors of the maximum. Default: 1e-12 where the E-step is deterministic, 0.005
        where it is Monte Carlo.
    mcse_fraction
        Monte Carlo E-steps: largest Monte Carlo error of a parameter, as a fraction of its
        standard error.
    max_draws
        Monte Carlo E-steps: draws that one confirmation may use.
    max_seconds
        Wall time after which no further step is started.

    Examples
    --------
    With the `model` of the example of `ppl_em.EM`:

    >>> from ppl_em import Stopping
    >>> coarse = Stopping(mcse_fraction=0.1, max_seconds=60.0)
    >>> em = EM(model, e_step="nuts", stopping=coarse)
    """

    gap: float | None = None
    mcse_fraction: float = 0.03
    max_draws: int = 200_000
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        check_options(
            self,
            "Stopping",
            gap=optional(number()),
            mcse_fraction=number(above=True),
            max_draws=whole(),
            max_seconds=optional(number()),
        )

    def gap_for(self, stochastic: bool) -> float:
        """The tolerance on the remaining gain."""
        if self.gap is not None:
            return self.gap
        return 0.005 if stochastic else 1e-12


class Step(NamedTuple):
    """What the rules look at: one EM step, taken from `x` (p,) to its result.

    `objective` belongs to the parameters after the step (a path estimate if stochastic), `change`
    is its gain, `error` the Monte Carlo error of the gain, `length` the Euclidean length of the
    step.
    """

    objective: float
    change: float
    error: float
    length: float


def rounding(objective: float, dtype: np.dtype) -> float:
    """Size of rounding errors in an objective of this size."""
    return float(8 * np.finfo(dtype).eps * (1 + abs(objective)))


def remaining_gap(steps: Sequence[Step]) -> float:
    """Estimate the log-likelihood that EM has still to gain.

    EM converges linearly with some rate rho, seen as the ratio of step lengths; the gains then
    shrink by rho^2, and the rest of that geometric series is gain * rho^2 / (1 - rho^2). The
    largest of the last three ratios is used.

    References
    ----------
    Dempster, Laird & Rubin (1977), section 3 (rate of convergence).
    """
    if len(steps) < 3:
        return np.inf
    rate = observed_rate(steps)
    return abs(steps[-1].change) * rate**2 / (1 - rate**2)


def remaining_steps(steps: Sequence[Step], gap: float) -> float:
    """Estimate how many more EM steps bring the remaining gain below `gap`."""
    left, gap = remaining_gap(steps), max(gap, np.finfo(float).tiny)
    if not np.isfinite(left) or left <= gap:
        return np.inf if not np.isfinite(left) else 0.0
    return float(np.log(left / gap) / (-2 * np.log(observed_rate(steps))))


def observed_rate(steps: Sequence[Step]) -> float:
    """Ratio of successive step lengths, the largest of the last three; at most 1 - 1e-6."""
    lengths = np.array([step.length for step in steps[-4:]])
    if len(lengths) < 2:
        return 1 - 1e-6
    ratios = lengths[1:] / np.maximum(lengths[:-1], np.finfo(float).tiny)
    return float(np.clip(np.max(ratios), 0.0, 1 - 1e-6))


def has_converged(
    steps: Sequence[Step],
    gap: float,
    dtype: np.dtype,
    noise: float = 0.0,
    left: float | None = None,
) -> bool:
    """Deterministic E-steps: is what remains below `gap`, or lost in rounding or `noise`?

    `left` is an estimate of what remains; that of `remaining_gap` by default.
    """
    if not steps or has_decreased(steps[-1], dtype, noise):
        return False
    floor = max(rounding(steps[-1].objective, dtype), noise)
    if len(steps) >= 3 and all(abs(step.change) <= floor for step in steps[-3:]):
        return True
    return (remaining_gap(steps) if left is None else left) < max(gap, floor)


def has_flattened(info: Any) -> bool:
    """Guides fitted by stochastic gradients: did a window of steps gain no more than its error?"""
    floor = rounding(float(info.objective), np.dtype(float))
    return float(info.window_rise) <= max(float(info.window_error), floor)


def is_stationary(objective: float, promised: float, dtype: np.dtype) -> bool:
    """Whether an M-step that did not move was at its maximum, up to rounding."""
    return promised <= 1e3 * rounding(objective, dtype)


def has_decreased(step: Step, dtype: np.dtype, noise: float = 0.0) -> bool:
    """Deterministic E-steps: did the objective fall by more than rounding, or than `noise`?"""
    return step.change < -max(100 * rounding(step.objective, dtype), noise)


def verdict(step: Step, dtype: np.dtype) -> str:
    """`up`, `within noise` or `down`: a step's gain against twice its error, or rounding."""
    noise = max(2 * step.error, rounding(step.objective, dtype))
    if abs(step.change) <= noise:
        return "within noise"
    return "up" if step.change > 0 else "down"


NEAR = 0.1
"""Gain per step below which Newton steps are tried. The rest is more where EM is slow."""


def has_settled(steps: Sequence[Step], within_noise: bool = False) -> bool:
    """Monte Carlo E-steps: are the last gains small, or, if asked, within twice their errors?

    The end of the moving phase only: convergence is decided on fresh draws.
    """
    if len(steps) < 5:
        return False
    if not within_noise and all(step.change <= NEAR + 2 * step.error for step in steps[-2:]):
        return True
    return all(abs(step.change) <= 2 * step.error for step in steps[-3:])
