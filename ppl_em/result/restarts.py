"""Restarts: what became of every start, and the distinct optima that they found."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl_em.params import Params, flat_labels

NO_OPTIMUM = -1
"""Cluster of starts that ended at no optimum: degenerate, failed, or not converged."""

APART = 0.1
"""Standard errors up to which two fits are one optimum, beside their Monte Carlo errors."""

GAIN_APART = 0.01
"""Nats up to which they are."""

UNITS_APART = 0.01
"""Difference relative to 1 + |value| up to which they are, where there is no standard error."""


class Fit(NamedTuple):
    """One finished start, as far as clustering needs it.

    `flat`, `se` and `mcse` are all parameters, aligned and flattened, (P,); `noise` is the Monte
    Carlo error of the `objective`.
    """

    objective: float
    noise: float
    converged: bool
    flat: np.ndarray
    mcse: np.ndarray


@dataclass(frozen=True)
class Optimum:
    """One of the optima, in the words of the best start that found it.

    Attributes
    ----------
    params
        Its parameters; exchangeable components in the order nearest to that of the best optimum.
    log_likelihood, objective
        There; `objective` is what was maximised, with priors and penalties of the parameters.
    below_best
        How far its objective is below that of the best optimum, in nats.
    starts
        Numbers of the starts that ended there.
    share
        Their share of all starts.
    note
        What is peculiar about it: a component without weight, say; empty if nothing is.
    """

    params: Params
    log_likelihood: float
    objective: float
    below_best: float
    starts: tuple[int, ...]
    share: float
    note: str


@dataclass(frozen=True)
class Restarts:
    """What became of R starts; start 0 is at the initial values, or the first that was given.

    Attributes
    ----------
    log_likelihood, objective
        At the end of each start, (R,); NaN where it failed. `objective` is what was maximised.
    status
        The name of each one's `Status`, or `"FAILED"`.
    cluster
        The place in `optima` of the one that it ended at, (R,); -1 for none.
    degenerate
        Where the likelihood has no bound or is not finite, (R,).
    message
        Why a start is degenerate or failed; empty for the others.
    num_steps, seconds
        Of each start, (R,).
    optima
        Distinct optima, the best first.
    best
        The start that was returned.
    exchangeable
        Which parameters may be permuted together, in words; empty if none.
    histories
        `EMResult.history` of each start, components not permuted; empty for failed ones.
    """

    log_likelihood: np.ndarray
    objective: np.ndarray
    status: tuple[str, ...]
    cluster: np.ndarray
    degenerate: np.ndarray
    message: tuple[str, ...]
    num_steps: np.ndarray
    seconds: np.ndarray
    optima: tuple[Optimum, ...]
    best: int
    exchangeable: str = ""
    histories: tuple[dict[str, np.ndarray], ...] = field(default=(), repr=False)

    def table(self) -> dict[str, Any]:
        """Columns with one entry per start."""
        names = ("log_likelihood", "objective", "status", "cluster", "degenerate", "message")
        columns = {name: getattr(self, name) for name in names}
        columns["below_best"] = self.objective[self.best] - self.objective
        return columns | {"num_steps": self.num_steps, "seconds": self.seconds}

    def as_dict(self) -> dict[str, Any]:
        """The table and the optima as plain dictionaries, without histories."""
        optima = [
            {**vars(one), "params": jax.tree.map(np.asarray, one.params)} for one in self.optima
        ]
        found = {"starts": self.table(), "optima": optima, "best": self.best}
        return found | {"exchangeable": self.exchangeable}

    def __str__(self) -> str:
        count = len(self.status)
        lines = [f"{count} starts, {len(self.optima)} distinct optima"]
        if self.optima:
            values = [f"{one.objective:.6f}" for one in self.optima]
            width = max(map(len, [*values, "objective"]))
            lines.append(f"{'optimum':>7}  {'objective':>{width}}  below best  share  parameters")
            for k, (one, value) in enumerate(zip(self.optima, values, strict=True)):
                lines.append(
                    f"{k:7d}  {value:>{width}}  {one.below_best:10.4f}  {one.share:5.0%}  "
                    f"{_brief(one.params)}" + (f"; {one.note}" if one.note else "")
                )
        lines += _counted("degenerate", (m for m, d in self._told() if d))
        lines += _counted("failed", (m for m, d in self._told() if not d))
        lost = (self.cluster == NO_OPTIMUM) & ~self.degenerate & (np.array(self.status) != "FAILED")
        if lost.any():
            names = sorted({self.status[i] for i in np.flatnonzero(lost)})
            lines.append(f"{lost.sum()} of {count} starts reached no optimum: {', '.join(names)}")
        if self.exchangeable:
            lines.append(f"exchangeable: {self.exchangeable}")
        return "\n".join(lines)

    def _told(self) -> list[tuple[str, bool]]:
        return [(m, bool(d)) for m, d in zip(self.message, self.degenerate, strict=True) if m]


def clusters(
    fits: dict[int, Fit],
    errors: Callable[[int], np.ndarray],
    dip: Callable[[int, int], float],
    gap: float,
) -> list[list[int]]:
    """Fits by number, put together where they are the same optimum; the best optimum first.

    Within each, the best fit comes first. Two are the same if objectives and parameters agree:
    parameters within a tenth of a standard error, and both within what convergence and Monte Carlo
    noise leave open. So are two with one objective between which it does not dip, as where some
    parameters do not matter. Fits that did not converge join an optimum but make none.

    Parameters
    ----------
    fits
        Numbers and fits, aligned.
    errors
        Function of the number of a fit: its standard errors, (P,), NaN where it has none.
    dip
        Function of two numbers: how far the objective falls between two fits, in nats.
    gap
        What convergence leaves to gain, in nats.
    """
    order = sorted(fits, key=lambda i: (not fits[i].converged, -fits[i].objective))
    found: list[tuple[np.ndarray, list[int]]] = []
    for i in order:
        for se, members in found:
            one, other = fits[members[0]], fits[i]
            allowed = max(GAIN_APART, 2 * gap) + 4 * np.hypot(one.noise, other.noise)
            if abs(one.objective - other.objective) > allowed:
                continue
            if _same(one, other, se, gap) or dip(members[0], i) < allowed:
                members.append(i)
                break
        else:
            if fits[i].converged:
                found.append((errors(i), [i]))
    return [members for _, members in found]


def _same(one: Fit, other: Fit, se: np.ndarray, gap: float) -> bool:
    """Whether the parameters of two fits are the same, up to what is known of them."""
    away = np.abs(one.flat - other.flat)
    mcse = np.nan_to_num(np.hypot(one.mcse, other.mcse))
    known = np.isfinite(se)
    if not known.any():
        return bool(np.all(away <= UNITS_APART * (1 + np.abs(one.flat)) + 4 * mcse))
    limit = max(APART, 2 * np.sqrt(2 * gap)) * se + 4 * mcse
    rounding = 1e-6 * (1 + np.abs(one.flat))  # for fixed parameters, whose error is 0
    return bool(np.all((away <= limit + rounding)[known]))


def _brief(params: Params, most: int = 12) -> str:
    """Parameters in one line."""
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
    parts = [f"{k}={v:.4g}" for k, v in zip(flat_labels(params), flat, strict=True)]
    return " ".join(parts[:most]) + (" ..." if len(parts) > most else "")


def _counted(what: str, messages: Iterable[str]) -> list[str]:
    """How often each message occurs."""
    listed = list(messages)
    if not listed:
        return []
    first = f"{len(listed)} {what}: {listed[0]}"
    return [first + (" (and others)" if len(set(listed)) > 1 else "")]
