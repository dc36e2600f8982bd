"""From starts to a result: restarts, the end of a run, audits."""

from ppl_em.fit.condensed import on_all_rows
from ppl_em.fit.degeneracy import judged
from ppl_em.fit.restarts import run_restarts
from ppl_em.fit.starts import drawn_starts, given_starts, nudged, split_starts

__all__ = [
    "drawn_starts",
    "given_starts",
    "judged",
    "nudged",
    "on_all_rows",
    "run_restarts",
    "split_starts",
]
