"""Restarts: what became of every start, and the distinct optima that they found."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ppl_em.params import Params, flat_labels
from ppl_em.util import printable

NO_OPTIMUM = -1
"""Cluster of starts that ended at no optimum: degenerate, failed, or not converged."""


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

    Examples
    --------
    As in the example of `ppl_em.EM`, with its `model` and data:

    >>> fit = EM(model, num_restarts=3).run(jax.random.key(0), y, progress_bar=False)
    >>> best = fit.restarts.optima[0]
    >>> best.starts, best.share
    ((0, 1, 2), 1.0)
    """

    params: Params
    log_likelihood: float
    objective: float
    below_best: float
    starts: tuple[int, ...]
    share: float
    note: str


@dataclass(frozen=True, eq=False)
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

    Examples
    --------
    As in the example of `ppl_em.EM`, with its `model` and data:

    >>> fit = EM(model, num_restarts=3).run(jax.random.key(0), y, progress_bar=False)
    >>> print(fit.restarts)
    3 starts, 1 distinct optima
    optimum  objective  below best  share  parameters
          0  -8.319266      0.0000   100%  sd=1.658
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
        return printable("\n".join(lines))

    def _told(self) -> list[tuple[str, bool]]:
        return [(m, bool(d)) for m, d in zip(self.message, self.degenerate, strict=True) if m]


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
