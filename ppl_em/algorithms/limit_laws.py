"""The laws that a model's distributions have at a limit at infinity, by name.

Counts with a dispersion are Poisson, binomial or multinomial counts where they have none, and
Student's law is normal. Where a parameter has gone to such a limit, the site is said that has it.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl_em.params import AtBounds, flat_labels, place_of
from ppl_em.problem import Problem, run_model

LAWS: tuple[tuple[Any, tuple[str, ...], str], ...] = (
    (dist.GammaPoisson, ("concentration",), "the Poisson limit"),
    (dist.BetaBinomial, ("concentration1", "concentration0"), "the binomial limit"),
    (dist.DirichletMultinomial, ("concentration",), "the multinomial limit"),
    (dist.StudentT, ("df",), "the normal limit"),
    (dist.MultivariateStudentT, ("df",), "the normal limit"),
    (dist.Gamma, ("concentration",), "the limit without variance"),
    (dist.InverseGamma, ("concentration",), "the limit without variance"),
    (dist.Beta, ("concentration1", "concentration0"), "the limit without variance"),
    (dist.Dirichlet, ("concentration",), "the limit without variance"),
)
"""Distributions, what of them goes to infinity, and what they are then."""

GROWTH = 5.0
"""Factor by which that grows over a decade outwards."""


def with_laws(problem: Problem, at: AtBounds | None) -> AtBounds | None:
    """What is at a bound, with the laws of the model's sites there, where they are known."""
    if at is None or at.x is None:
        return at
    known, found = flat_labels(problem.space.unravel(np.asarray(at.x))), dict(at.found)
    for place, side in enumerate(at.towards.tolist()):
        if side:
            label = place_of(problem.space, at.x, place, side).label
            text = _law(problem, at.x, np.where(np.arange(at.x.size) == place, side, 0.0))
            if text and label in found:
                found[label] = found[label]._replace(limit=text)
    together = {label for label, where in found.items() if where.power == 0}
    way = [np.sign(found[label].bound) if label in together else 0.0 for label in known]
    text = _law(problem, at.x, np.array(way)) if together else ""
    for label in together if text else ():
        found[label] = found[label]._replace(limit=text)
    return replace(at, found=found)


def _law(problem: Problem, x: jax.Array, way: np.ndarray) -> str:
    """What the sites become that have no dispersion any more as `x` (p,) goes along `way` (p,)."""
    step = jnp.asarray(way * np.log(10.0), x.dtype)
    before, here = _laws(problem, x - step), _laws(problem, x)
    words: dict[str, list[str]] = {}
    for name, (text, sizes) in here.items():
        if np.all(sizes >= GROWTH * before[name][1]):
            words.setdefault(text, []).append(f"`{name}`")
    return "; ".join(f"{text} of {', '.join(names)}" for text, names in words.items())


def _laws(problem: Problem, x: jax.Array) -> dict[str, tuple[str, np.ndarray]]:
    """For each site with such a limit its words, and what goes to infinity, flattened."""
    args, kwargs = problem.arguments
    values = problem.constrain(x)
    found = {}
    for name, site in run_model(
        problem.spec.model, jax.random.key(0), args, kwargs, values
    ).items():
        law: Any = site["fn"] if site["type"] == "sample" else None
        while hasattr(law, "base_dist"):
            law = law.base_dist
        for kind, sizes, text in LAWS:
            if isinstance(law, kind):
                flat = [np.ravel(np.asarray(getattr(law, size))) for size in sizes]
                found[name] = text, np.concatenate(flat)
    return found
