"""Back to where the log-likelihood has its digits, from so far out that it has lost them.

Gamma functions of a dispersion lose their digits in proportion to it. What is maximized there is
rounding, so that a run may end anywhere, and higher than its limit.
"""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.boundary_profile import DECADE, MEANT, Landscape, Settled
from ppl_em.algorithms.history import Run
from ppl_em.params import ends, has_end

OUT = 6 * DECADE
"""Unconstrained value to which a coordinate is brought back."""

ROUGH = 1e-7
"""Rounding, in nats, from which it is."""

FEW = 10
"""Times that by which a log-likelihood may be too high by chance."""


def within_digits(run: Run) -> None:
    """Bring coordinates back, alone or all together, where nothing but rounding is lost by it."""
    history, space = run.history, run.problem.space
    if history.at is not None:
        return
    x, limits = np.asarray(history.x, float), ends(space)
    side = np.sign(x)
    may_go = ~has_end(space) | ~np.isnan(np.where(side < 0, limits[:, 0], limits[:, 1]))
    far = (np.abs(x) > OUT) & may_go
    if not far.any():
        return
    ground = Landscape(run.problem, run.e_step)
    value, state = ground.look(history.x, history.e_state)
    if not np.isfinite(value):
        return
    here = Settled(history.x, state, value, 0.0)
    for some in _sets(far):
        rough = ground.roughness(here, np.where(some, side * DECADE, 0.0))
        if rough <= ROUGH:
            continue
        shift = np.where(some, side * np.min(np.abs(x)[some] - OUT), 0.0)
        nearer = here.x - jnp.asarray(shift, here.x.dtype)
        there, state = ground.look(nearer, here.state)
        if there >= here.value - MEANT - FEW * rough:
            here = Settled(nearer, state, there, 0.0)
            x = np.asarray(nearer, float)
    if here.x is not history.x:
        history.decide("back to where the log-likelihood has not lost its digits")
        history.x, history.e_state, history.objective = here.x, here.state, here.value
        history.inverse = history.information = None


def _sets(far: np.ndarray) -> Iterator[np.ndarray]:
    """All coordinates that are `far` (p,) together, then one by one."""
    yield far
    if np.sum(far) > 1:
        yield from (np.arange(len(far)) == place for place in np.flatnonzero(far))
