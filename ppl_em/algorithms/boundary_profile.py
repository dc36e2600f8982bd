"""The log-likelihood as a landscape: followed to bounds, climbed with some coordinates held."""

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.ascent import MAX_LENGTH, Model, Point, ascend
from ppl_em.algorithms.stopping import rounding
from ppl_em.e_step import DeterministicEStep, expectation
from ppl_em.likelihood import Information, holding, marginal_information
from ppl_em.params import Boundary, Place, has_end
from ppl_em.problem import Problem
from ppl_em.util import moved_by

DECADE = float(np.log(10.0))
"""Unconstrained change that divides a distance from a bound by ten."""

MAX_DECADES = 14
"""How much closer to a bound a parameter is put, at most."""

MAX_LOSS = 10.0
"""Log-likelihood that may be lost on the way there, before the other parameters adapt."""

SETTLED = 3e-9
"""Change of the log-likelihood over a decade at which the bound is as good as reached.

No smaller: a latent with a standard deviation of tau has scores with rounding errors of 1 / tau^2.
"""

IN_ROUNDING = 1e-4
"""The same where it does not shrink any more, which is rounding: at a correlation of 1, say."""

ROUGHEST = 1e-9
"""The same as a share of the log-likelihood, if it is large."""

TINY = (1e-7, -1e-7, 2e-7)
"""Parts of a decade over which only rounding changes the log-likelihood."""

CAREFUL = 10.0
"""Weight of rounding next to what is still to gain: that is known better by extrapolation."""

MAX_RISE = 10.0
"""Growth of changes, from the smallest, from which they are rounding."""

QUICKEST = 1e4
"""Largest factor by which changes shrink from decade to decade."""

RICHARDSON = 8
"""Decades back from a bound from which it is extrapolated to."""

LEAST = 5
"""Those that it takes, at least."""

MEANT = 1e-3
"""Log-likelihood that means something: a bound is looked at if less is lost on the way."""

NEAR = 1e-8
"""Gain that a Newton step promises from which it is the last one."""

IDLE = 1e-5
"""Change of the log-likelihood over a decade of a parameter that has no influence."""

VISIBLE = 1e-5
"""Fall of the log-likelihood that the score at a bound is read from."""

MAX_NEWTON = 20
"""Newton steps in the other parameters."""


@dataclass(frozen=True, eq=False)
class Landscape:
    """The log-likelihood as a landscape; `gaps` (p,) are coordinates that are logarithms of gaps.

    Cut points that go to infinity together do so on a line, and so do their gaps.
    """

    problem: Problem
    e_step: DeterministicEStep
    gaps: np.ndarray | None = None

    def look(self, x: jax.Array, state: Any) -> tuple[float, Any]:
        """Its value at `x` (p,), and the state of an E-step there.

        Twice, because rounding is large where the latents are expanded far from their mean, in
        units of a standard deviation that is nearly zero.
        """
        for _ in range(2):
            _, state, info = expectation(self.e_step, self.problem, x, state)
        return float(info.objective), state

    def go(self, x: jax.Array, step: np.ndarray) -> jax.Array:
        """Where `step` (p,) leads from `x` (p,): in gaps as such."""
        if self.gaps is None:
            return moved_by(x, step)
        moved = x + jnp.asarray(step, x.dtype)
        return jnp.where(self.gaps, jnp.log(jnp.exp(x) + jnp.asarray(step, x.dtype)), moved)

    def floor(self, value: float) -> float:
        """Differences that mean nothing."""
        dtype = self.problem.start.dtype
        return max(self.e_step.noise or 0.0, 10 * rounding(value, dtype))

    def descend(self, x: jax.Array, state: Any, value: float, step: np.ndarray) -> "Settled | None":
        """Follow `step` (p,), a decade towards bounds, until nothing changes; None if it falls.

        Where rounding keeps it from that, it ends where changes and rounding are smallest: gamma
        functions lose their digits far out.
        """
        best, here, last = None, Settled(x, state, value, np.inf), 0.0
        for _ in range(MAX_DECADES):
            new, following = self.look(self.go(here.x, step), here.state)
            if not new >= value - MAX_LOSS:
                break
            # A change that is much smaller than the one before is luck.
            change = max(abs(new - here.value), last / QUICKEST)
            rough, enough = self.roughness(here, step), max(SETTLED, self.floor(new))
            left = max(change, CAREFUL * rough)
            if best is None or left < best.noise:
                best = here._replace(noise=left)
            if max(change, rough) <= enough:
                return here._replace(noise=change)
            if CAREFUL * rough > change or MAX_RISE * best.noise < min(change, IN_ROUNDING):
                break
            here, last = Settled(self.go(here.x, step), following, new, 0.0), change
        enough = max(IN_ROUNDING, ROUGHEST * abs(value))
        return best if best is not None and best.noise <= enough else None

    def roughness(self, there: "Settled", step: np.ndarray) -> float:
        """What rounding makes of the log-likelihood: its changes where there should be none."""
        tiny = (self.go(there.x, part * step) for part in TINY)
        return max(abs(self.look(x, there.state)[0] - there.value) for x in tiny)

    def rest(self, there: "Settled", step: np.ndarray, power: int) -> float:
        """What is still to gain from `there` to the bound itself, by extrapolation.

        The log-likelihood is a series in powers of a distance that `step` (p,) divides by ten.
        Richardson's extrapolation takes its first two terms out, from where rounding is small.
        """
        if there.noise <= max(SETTLED, self.floor(there.value)):
            return 0.0
        values = [there.value]
        for count in range(1, RICHARDSON):
            values.append(self.look(self.go(there.x, -count * step), there.state)[0])
        finite = np.isfinite(values)
        found = np.array(values)[: int(np.argmin(finite)) if not finite.all() else None]
        if len(found) < LEAST:
            return 0.0
        for order in (1, 2):
            found = found[:-1] + (found[:-1] - found[1:]) / (10.0 ** (order * power) - 1)
        errors = np.abs(np.diff(found))
        errors = np.maximum(errors[:-1], errors[1:] / 1000.0**power)  # less than that is luck
        best = int(np.argmin(errors))
        return float(found[best + 1] - there.value) if errors[best] < there.noise else 0.0

    def maximize(
        self,
        x: jax.Array,
        state: Any,
        value: float,
        held: np.ndarray,
        noise: float = 0.0,
        across: np.ndarray | None = None,
    ) -> tuple[list[Point], bool]:
        """Newton steps with coordinates `held` (p,) as they are, and whether they converged.

        `noise` is what rounding makes of the log-likelihood there; nothing moves `across` (p, r)
        either.
        """
        terrain = Inside(self, held, noise, across)
        path = [Point(x, state, value, terrain.model_at(x, state))]
        for here in islice(ascend(terrain, path[0]), MAX_NEWTON):
            last = path[-1].model
            path.append(here)
            if last is not None and last.promised < NEAR:
                return path, True
        end = path[-1].model
        return path, len(path) <= MAX_NEWTON and end is not None and end.promised < NEAR

    def slope(self, x: jax.Array, state: Any, value: float, there: Place) -> Boundary | None:
        """How the log-likelihood falls from an end, inwards; None if it rises, or stays.

        `x` (p,) is at the end, in effect. It is moved away until there is a difference well above
        rounding, and once more to see to which power it grows.
        """
        place, side, space = there.place, there.side, self.problem.space
        nearer, _ = self.look(moved_by(x, side * DECADE, place), state)
        noise = max(100 * self.floor(value), 10 * abs(nearer - value))
        start = there.distance(space, x)
        changes: list[tuple[float, float]] = []
        for count in range(1, 4 * MAX_DECADES):
            away = moved_by(x, -side * count * DECADE / 2, place)
            new, state = self.look(away, state)
            if not new - value < noise:
                return None
            distance = there.distance(space, away)
            fell = value - new > max(VISIBLE, 30 * noise) and distance > 2 * start
            if fell or changes:
                changes.append((distance, new - value))
            if len(changes) == 2:
                break
        else:
            return None
        (near, first), (far, second) = changes
        if second >= first or far <= near:
            return None
        power = max(1, round(np.log(second / first) / np.log(far / near)))
        return Boundary(there.bound, float(first / (near**power - start**power)), power)

    def is_idle(self, x: jax.Array, state: Any, value: float, place: int) -> bool:
        """Whether nothing responds to coordinate `place` of `x` (p,): a correlation without sd."""
        tried = (moved_by(x, sign * DECADE, place) for sign in (-1, 1))
        return all(abs(self.look(there, state)[0] - value) < IDLE for there in tried)


class Settled(NamedTuple):
    """A place next to bounds: `x` (p,), the E-step's state, value, and change over a decade."""

    x: jax.Array
    state: Any
    value: float
    noise: float


@dataclass(frozen=True, eq=False)
class Inside:
    """The landscape with coordinates `held` (p,) in place."""

    ground: Landscape
    held: np.ndarray
    noise: float = 0.0
    across: np.ndarray | None = None

    def at(self, x: jax.Array, state: Any) -> tuple[float, Any]:
        """As of the whole landscape."""
        return self.ground.look(x, state)

    def floor(self, value: float) -> float:
        """As of the whole landscape, or the noise that was found."""
        return max(self.ground.floor(value), self.noise)

    def move(self, here: Point, step: np.ndarray) -> jax.Array:
        """Anywhere."""
        return moved_by(here.x, step)

    def model(self, x: jax.Array, state: Any, before: Point, taken: np.ndarray) -> Model | None:
        """Anew at every step."""
        return self.model_at(x, state)

    def model_at(self, x: jax.Array, state: Any) -> Model | None:
        """By the Hessian. Coordinates to which nothing responds stay as well.

        A correlation, for example, where a variance is zero.
        """
        problem = self.ground.problem
        here = marginal_information(self.ground.e_step, problem, x, state)
        free = np.outer(~self.held, ~self.held)
        here = replace(
            here,
            gradient=np.where(self.held, 0.0, here.gradient),
            matrix=np.where(free, here.matrix, 0.0),
        )
        still = self.held | self._no_response(x, state, here)
        normals = np.eye(len(still))[:, still]
        if self.across is not None:
            normals = np.concatenate([normals, self.across], axis=1)
        if normals.size and np.all(np.isfinite(here.matrix)):
            here = holding(problem, x, here, normals)
        step, promised = here.uphill(MAX_LENGTH)
        return Model(step, promised) if np.isfinite(promised) else None

    def _no_response(self, x: jax.Array, state: Any, here: Information) -> np.ndarray:
        """Coordinates of `x` (p,) to which nothing responds, (p,): up to rounding, if logarithms.

        A real parameter in a large unit responds as weakly: it is moved to tell.
        """
        curvature = np.abs(np.diag(here.matrix))
        response = curvature + np.abs(here.gradient)
        logarithm = has_end(self.ground.problem.space)
        most = 1 + np.max(curvature, where=logarithm, initial=0.0)
        still = ~(response > 1e-9 * most)
        for place in np.flatnonzero(still & ~logarithm & (curvature > 0) & ~self.held).tolist():
            value, _ = self.ground.look(x, state)
            moved = moved_by(x, 1 / np.sqrt(curvature[place]), place)
            still[place] = abs(self.ground.look(moved, state)[0] - value) < IDLE
        return still
