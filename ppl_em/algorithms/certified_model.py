"""Where a run has ended: the quadratic model of the log-likelihood there, whole or by products."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.algorithms.ascent import MAX_LENGTH, Model, Point
from ppl_em.algorithms.history import Run
from ppl_em.algorithms.stopping import rounding
from ppl_em.e_step import expectation
from ppl_em.likelihood import (
    Information,
    Spectrum,
    marginal_information,
    moved,
    named,
    set_aside,
    spectrum,
)
from ppl_em.params import flat_labels, has_end
from ppl_em.result import Certificate

UPWARDS = 1e-3
"""Size of a negative eigenvalue, by products, from which a direction curves upwards."""


@dataclass(eq=False)
class Whole:
    """The log-likelihood with what cannot move held; `information` is that at the latest point."""

    run: Run
    raw: Information | None = field(default=None, init=False)
    information: Information = field(init=False)
    left_out: np.ndarray = field(init=False)

    def at(self, x: jax.Array, state: Any) -> tuple[float, Any]:
        """Its value at `x` (p,), and the state of the E-step there."""
        self.run.history.evaluations += 1
        _, state, info = expectation(self.run.e_step, self.run.problem, x, state)
        return float(info.objective), state

    def floor(self, value: float) -> float:
        """Differences that mean nothing."""
        return max(self.run.e_step.noise or 0.0, rounding(value, self.run.history.x.dtype))

    def move(self, here: Point, step: np.ndarray) -> jax.Array | None:
        """Along the constraints that are held."""
        return moved(self.run.problem, here.x, step, self.information)

    def model(self, x: jax.Array, state: Any, before: Point, taken: np.ndarray) -> Model | None:
        """Anew at every step."""
        return self.model_at(x, state)

    def model_at(self, x: jax.Array, state: Any) -> Model | None:
        """By the Hessian; without what is at a bound, flat, or has no influence."""
        run, known = self.run, self.run.history.information
        if known is not None and known[0] is x:
            raw = known[1]
        else:
            run.history.evaluations += x.size
            raw = marginal_information(run.e_step, run.problem, x, state)
        self.raw = raw
        if not np.all(np.isfinite(raw.matrix)):
            return None

        def look(x: jax.Array) -> float:
            return self.at(x, state)[0]

        found = set_aside(run.problem, x, raw, run.history.at, look)
        self.information, self.left_out, _ = found
        step, promised = self.information.uphill(MAX_LENGTH)
        if not np.isfinite(promised):
            return None
        longest = np.max(np.abs(step)[has_end(run.problem.space)], initial=0.0)
        return Model(step * min(1.0, MAX_LENGTH / max(longest, 1e-300)), promised)

    def certificate(self, x: jax.Array) -> Certificate:
        """From the latest information, which is at `x` (p,)."""
        here = self.information
        labels = flat_labels(self.run.problem.constrain(x))
        held = tuple(labels[i] for i in self.left_out)
        score, inside = here.inside
        if not len(score):
            return Certificate(0.0, 0.0, np.inf, held)
        values, vectors = np.linalg.eigh(inside)
        if not here.usable:
            promised = here.uphill(MAX_LENGTH)[1]
            along = here.frame @ vectors[:, 0]
            names = tuple(named(self.run.problem, x, along, here.matrix))
            return Certificate(
                promised, float(np.sqrt(2 * promised)), float(values[0]), held, "information", names
            )
        step, errors = here.newton_step, np.sqrt(np.diag(here.covariance))
        longest = float(np.max(np.abs(step) / np.where(errors > 0, errors, np.inf)))
        return Certificate(float(0.5 * step @ here.gradient), longest, float(values[0]), held)

    def upwards(self) -> np.ndarray:
        """Directions, (p, k), that curve upwards, or not at all."""
        here = self.information
        found = np.zeros((len(here.gradient), 0)) if here.flat is None else here.flat
        if here.usable:
            return found
        values, vectors = np.linalg.eigh(here.inside[1])
        return np.concatenate([here.frame @ vectors[:, values < -here.resolution], found], axis=1)


class ByProducts(Whole):
    """The same where the information is too large: by its products with vectors."""

    known: Spectrum

    def move(self, here: Point, step: np.ndarray) -> jax.Array | None:
        """There are none that are held."""
        return here.x + jnp.asarray(step, here.x.dtype)

    def model_at(self, x: jax.Array, state: Any) -> Model | None:
        """By conjugate gradients."""
        found = spectrum(self.run.e_step, self.run.problem, x, state)
        if found is None:
            return None
        self.known = found
        length = float(np.max(np.abs(found.step)[has_end(self.run.problem.space)], initial=0.0))
        length = max(length, float(np.sqrt(2 * abs(found.promised))))
        step = found.step * min(1.0, MAX_LENGTH / max(length, 1e-300))
        return Model(step, max(found.promised, 0.0))

    def certificate(self, x: jax.Array) -> Certificate:
        """From the latest products, which are at `x` (p,)."""
        here, labels = self.known, flat_labels(self.run.problem.space.unravel(np.asarray(x)))
        names: tuple[str, ...] = ()
        if here.smallest < -UPWARDS:
            names = tuple(labels[i] for i in np.argsort(-np.abs(here.direction / here.scale))[:4])
        longest = float(np.max(np.abs(here.step / here.scale)))
        return Certificate(here.promised, longest, here.smallest, (), "lanczos", names)

    def upwards(self) -> np.ndarray:
        """The direction, (p, 1), that curves upwards most; (p, 0) if none does."""
        curved = self.known.smallest < -UPWARDS
        return self.known.direction[:, None][:, : int(curved)]
