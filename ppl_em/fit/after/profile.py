"""Limits of a profile of the log-likelihood, and the curve."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ppl_em.fit.after.held import Held, Place
from ppl_em.likelihood import flat_and_jacobian
from ppl_em.params import AtBounds, Boundary, flat_bounds, flat_labels
from ppl_em.util import ModelError

MAX_PLACES = 60
"""Values of the parameter that are tried for one limit."""

CLOSE = 1e-6
"""Relative error of the root of the deviance at a limit."""

WIDEST = 2.0
"""Longest step on a log or logit scale: near a bound precisions overflow sooner or later."""

LEVEL = 1e-5
"""Change of the log-likelihood, in nats, over such a step, by which it has come to its limit."""

HIGHER = 1e-4
"""By how much, in nats, a profile may be above the estimate, as runs end a little early."""

STUCK = 1e-12
"""Relative width of a bracket that is no longer narrowed."""

OPEN = "open: the likelihood does not fall that far towards the bound"
AT = "at the bound"
LOST = "not found: the log-likelihood could not be maximised over the others further out"
"""What is said of limits that are none; the last is NaN."""


@dataclass(frozen=True, eq=False)
class Profile:
    """The profile of one scalar parameter.

    Attributes
    ----------
    held
        The parameter.
    top
        Its estimate; `t` is infinite where that is a bound.
    unit
        Standard error on the scale without bounds; at a bound, the logarithm of the distance at
        which the deviance is about 1, in that scale.
    places
        What has been found.
    inside
        Where other parameters that are at a bound may leave it, (p,), NaN for all others; None
        if there are none.
    """

    held: Held
    top: Place
    unit: float
    places: list[Place] = field(default_factory=list)
    inside: np.ndarray | None = None

    @property
    def at_bound(self) -> bool:
        """Whether the estimate is a bound."""
        return bool(np.isinf(self.top.t))

    def root(self, place: Place) -> float:
        """The signed root of the deviance, about standard normal."""
        side = np.sign(place.t - self.top.t)
        return float(side * np.sqrt(max(2 * (self.top.value - place.value), 0.0)))

    def at(self, t: float) -> Place | None:
        """The best place with the parameter at `t`; None where none is found."""
        start = min([self.top, *self.places], key=lambda place: abs(place.t - t)).x
        found = self.held.best(start, t)
        if self.inside is not None:
            moved = np.where(
                np.isnan(self.inside), start if found is None else found.x, self.inside
            )
            other = replace(self.held, normals=None).best(moved, t)
            if other is not None and (found is None or other.value > found.value + LEVEL / 10):
                found = other
        if found is not None:
            self.places.append(found)
        return found

    def limits(self, height: float) -> tuple[list[float], str]:
        """Both limits, and what is to be said of those that are none."""
        found = [self.limit(side, height) for side in (-1, 1)]
        words = [
            f"{end} {why}" for end, (_, why) in zip(("lower", "upper"), found, strict=True) if why
        ]
        return [value for value, _ in found], "; ".join(words)

    def limit(self, side: int, height: float) -> tuple[float, str]:
        """Where the root of the deviance is `height` on one side; and why not, if it is nowhere."""
        end = self.held.scale.low if side < 0 else self.held.scale.high
        if self.at_bound and np.sign(self.top.t) == side:
            return end, AT
        center = self.unit if self.at_bound else self.top.t
        t = center if self.at_bound else center + side * min(height * self.unit, self._widest)
        inner, outer = (self.top.t, 0.0), None
        last = np.inf
        for _ in range(MAX_PLACES):
            place = self.at(t)
            if place is None:
                if outer is not None or abs(t - inner[0]) < 1e-3 * self.unit:
                    return np.nan, LOST
                t = (t + (center if np.isinf(inner[0]) else inner[0])) / 2
                continue
            noise = self.held.rounding(self.top.value)
            if place.value > self.top.value + HIGHER + noise:
                raise ModelError(
                    f"`result.conf_int`: the log-likelihood is higher ({place.value:.6f}) than at "
                    f"the estimates ({self.top.value:.6f}), with {self.held.label} at "
                    f"{self.held.scale.back(t):.6g}. Fit again with `num_restarts`."
                )
            root = abs(self.root(place))
            if abs(root - height) < max(CLOSE * height, noise / height):
                return self.held.scale.back(t), ""
            if root < height:
                inner = (t, root)
            else:
                outer = (t, root)
            if outer is None and abs(place.value - last) < LEVEL + noise:
                return end, OPEN
            last = place.value
            if outer is not None and abs(outer[0] - inner[0]) < STUCK * (1 + abs(t)):
                return self.held.scale.back(t), ""
            t = self._next(side, inner, outer, height)
        raise ModelError(f"`result.conf_int`: no limit found among {MAX_PLACES} values tried.")

    @property
    def _widest(self) -> float:
        scale = self.held.scale
        return WIDEST if np.isfinite(scale.low) or np.isfinite(scale.high) else np.inf

    def _next(
        self,
        side: int,
        inner: tuple[float, float],
        outer: tuple[float, float] | None,
        height: float,
    ) -> float:
        """Where the line through two places has the height: the root is nearly one."""
        if outer is None:
            if self.at_bound:
                return inner[0] + side
            away = inner[0] - self.top.t
            if inner[1] == 0:
                return inner[0] + side * min(abs(away), self._widest)
            more = abs(away) * min(1.02 * height / inner[1] - 1, 1.0)
            return inner[0] + side * min(max(more, 0.02 * abs(away)), self._widest)
        if np.isinf(inner[0]):
            return outer[0] - side
        share = (height - inner[1]) / (outer[1] - inner[1])
        return inner[0] + float(np.clip(share, 0.02, 0.98)) * (outer[0] - inner[0])

    def curve(self, height: float, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Values on the model's own scale and signed roots, ascending, `number` from end to end."""
        ends = [self.limit(side, height)[0] for side in (-1, 1)]
        ts = [self.held.scale.to(end) for end in ends]
        known = [place.t for place in self.places if np.isfinite(place.t)]
        ts = [t if np.isfinite(t) else pick(known) for t, pick in zip(ts, (min, max), strict=True)]
        for t in np.linspace(ts[0], ts[1], number):
            self.at(float(t))
        found = sorted([*self.places, self.top], key=lambda place: place.t)
        inside = [place for place in found if ts[0] <= place.t <= ts[1] or place is self.top]
        values = [self.held.scale.back(place.t) for place in inside]
        return np.array(values), np.array([self.root(place) for place in inside])


def profile_from(held: Held, x: jax.Array, covariance: np.ndarray, at: AtBounds | None) -> Profile:
    """Of a parameter inside its support, from the estimates `x` (p,) and their covariance."""
    flat, jacobian = (np.asarray(part, float) for part in flat_and_jacobian(held.problem, x))
    own, slope = float(flat[held.index]), jacobian[held.index]
    error = float(np.sqrt(slope @ covariance @ slope)) * held.scale.slope(own)
    start = np.asarray(x, float)
    top = Place(held.scale.to(own), start, held.value(start))
    return Profile(held, top, error, inside=_inside(held, at, x, None))


def profile_from_bound(held: Held, at: AtBounds, x: jax.Array) -> Profile:
    """Of a parameter at a bound of its support."""
    where, scale, start = at.found[held.label], held.scale, np.asarray(x, float)
    slope = np.asarray(flat_and_jacobian(held.problem, x)[1], float)[held.index]
    others = at.held & (slope == 0)
    if others.any():
        held = replace(held, normals=np.eye(len(start))[:, others])
    low = where.bound == scale.low
    near = scale.low + _away(where, 0.5) if low else scale.high - _away(where, 0.5)
    top = Place(-np.inf if low else np.inf, start, held.value(start) + at.rest)
    return Profile(held, top, scale.to(near), inside=_inside(held, at, x, held.label))


def _away(where: Boundary, loss: float) -> float:
    """How far from its bound a parameter is where the log-likelihood has fallen by `loss`."""
    return float((loss / max(abs(where.score), 1e-300)) ** (1 / max(where.power, 1)))


def _inside(held: Held, at: AtBounds | None, x: jax.Array, own: str | None) -> np.ndarray | None:
    """Coordinates (p,) of parameters at bounds, but for the `own` one, a little inside of them."""
    if at is None or at.across is not None:
        return None
    params = held.problem.constrain(x)
    values, unravel = ravel_pytree(params)
    labels, moved = flat_labels(params), np.array(values)
    bounds = flat_bounds(held.problem.space, params)
    for label, where in at.found.items():
        if label in labels and label != own and np.isfinite(where.bound):
            place = labels.index(label)
            side = 1 if where.bound == bounds[place, 0] else -1
            moved[place] = where.bound + side * _away(where, 0.05)
    there = np.asarray(held.problem.unconstrain(unravel(jnp.asarray(moved, values.dtype))), float)
    left = at.held & np.isfinite(there) & (there != np.asarray(x, float))
    return np.where(left, there, np.nan) if left.any() else None
