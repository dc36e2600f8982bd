"""Find blocks in which the continuous latents are Gaussian given the discrete ones, and prove it.

The proof is numerical, at random parameters and latents: in every joint state of every block the
gradient at one point must be what a quadratic at another point predicts, no block may touch
another's coordinates, and the mixture that comes of it must have the gradient of the log-joint.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.discrete import Layout, States, num_states
from ppl_em.e_step.exact.mixture import Conditional, Expansion
from ppl_em.e_step.exact.not_exact import REMEDY, ImproperError, NotExactError
from ppl_em.posterior import BlockLayout
from ppl_em.problem import Problem
from ppl_em.structure import Blocks, site_names, tolerance
from ppl_em.util import ModelError, Static, compiled
from ppl_em.util.dependence import dependence


def find_layout(
    rng_key: jax.Array, problem: Problem, x: jax.Array, max_states: int, max_dense: int
) -> BlockLayout:
    """Divide the latents of a model with discrete and continuous ones into blocks.

    Parameters
    ----------
    rng_key
        Draws the points at which the log-joint is looked at.
    problem, x
        The problem and its unconstrained parameters, shape (p,).
    max_states
        Largest number of joint states of a block.
    max_dense
        Largest number of continuous coordinates of a block.

    Raises
    ------
    NotExactError
        If the latents are not proved to be Gaussian given few joint states: the site and why.
    """
    spec = problem.spec
    for latent in spec.latents:
        if latent.support is None:
            raise NotExactError(
                f"Site '{latent.name}': its support changes with other latents, so it is not "
                f"Gaussian given the discrete ones. {REMEDY}"
            )
    for site in spec.discrete:
        if site.in_scan:
            raise NotExactError(
                f"Site '{site.name}': it is discrete and in a `scan`, and continuous latents stand "
                f"beside it, so the posterior is a mixture with one term for every path of "
                f"states. {REMEDY}"
            )
    found, moving, jacobian_moves = _moving_tables(problem, x)
    states = _states(problem, x, found, moving, max_states)
    blocks = Blocks(Static(_block_index(problem, states.plates)))
    if blocks.block_size > max_dense:
        raise NotExactError(
            f"Site '{spec.latents[0].name}': a block has {blocks.block_size} continuous "
            f"coordinates; at most {max_dense} are done exactly (`Exact(max_dense=...)`). {REMEDY}"
        )
    names = dict(found.names)
    shared = jacobian_moves or any(not states.has(names[key]) for key in moving)
    layout = BlockLayout(states, blocks, moving, shared)
    _prove(rng_key, Conditional(layout), problem, x)
    return layout


def _moving_tables(problem: Problem, x: jax.Array) -> tuple[Layout, tuple[str, ...], bool]:
    """What the tables are, which depend on continuous latents, and whether the rest does."""
    found: list[Layout] = []

    def terms(u: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        factors, jacobian = problem.log_factors_unconstrained(problem.constrain(x), u)
        found.append(factors.layout)
        for site in factors.weights:
            raise NotExactError(
                f"Site '{site}': a `numpyro.handlers.scale` weights it, and continuous latents "
                f"stand beside it. {REMEDY}"
            )
        return factors.tables, jacobian

    *needs, jacobian = dependence(terms, problem.start)
    keys = sorted(name for name, _ in found[0].names)
    moving = tuple(key for key, need in zip(keys, needs, strict=True) if need)
    return found[0], moving, bool(jacobian)


def _states(
    problem: Problem, x: jax.Array, layout: Layout, moving: tuple[str, ...], max_states: int
) -> States:
    """Joint states of the sites that touch continuous latents, or of all if those cannot do."""
    names, variables = dict(layout.names), dict(layout.variables)
    touching = {n for key in moving for n in names[key] if n in variables}
    for kept in (touching, set(variables)):
        every = [frozenset(name for name, _ in site.plates) for site in problem.spec.latents]
        every += [variables[name].plates for name in kept]
        plates = frozenset.intersection(*every)
        count = num_states(layout, plates, kept)
        if count > max_states:
            raise _too_many(layout, plates, kept, count, max_states)
        states = States.of(layout, plates, kept)
        if _separates(problem, x, states):
            break
    return states


def _separates(problem: Problem, x: jax.Array, states: States) -> bool:
    """Whether all other discrete sites can be summed out within the blocks."""

    def collect(problem: Problem, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        factors, _ = problem.log_factors_unconstrained(problem.constrain(x), problem.start)
        return states.collect(factors, factors.tables)

    try:
        jax.eval_shape(collect, problem, x)
    except ModelError:
        return False
    return True


def _too_many(
    layout: Layout, plates: frozenset[str], kept: set[str], count: int, max_states: int
) -> NotExactError:
    worst = max(sorted(kept), key=lambda name: num_states(layout, plates, [name]))
    number = f"{count:,}" if count < 10**6 else f"about 10^{math.log10(count):.0f}"
    which = " and ".join(f"'{name}'" for name in sorted(plates))
    where = f"in each cell of plate {which}" if plates else "in no plate that all latents share,"
    return NotExactError(
        f"Site '{worst}': {where} the discrete latents beside continuous ones have {number} joint "
        f"states; at most {max_states} are done exactly (`Exact(max_states=...)`). {REMEDY}"
    )


def _block_index(problem: Problem, plates: tuple[str, ...]) -> np.ndarray:
    """Coordinates of every block, (G, d), blocks in the order of `States`."""
    positions = problem.unravel(jnp.arange(problem.num_latents))
    columns = []
    for site in problem.spec.latents:
        places, axes = np.asarray(positions[site.name]), dict(site.plates)
        front = np.moveaxis(places, [axes[name] for name in plates], range(len(plates)))
        count = math.prod(front.shape[: len(plates)])
        columns.append(front.reshape(count, -1))
    return np.concatenate(columns, axis=1)


def _prove(rng_key: jax.Array, engine: Conditional, problem: Problem, x: jax.Array) -> None:
    found = _errors(engine, problem, x, problem.start, rng_key)
    law, joint, proper = (np.asarray(part) for part in found)
    owner, limit = site_names(problem), tolerance(problem.start.dtype)
    if not np.all(law < limit):
        at = int(np.argmax(law))
        raise NotExactError(
            f"Site '{owner[at]}': given the discrete latents the log-joint is not quadratic in it "
            f"{_size(law[at])}, so its posterior is no mixture of Gaussians. {REMEDY}"
        )
    if not np.all(proper):
        raise ImproperError(
            f"Site '{owner[np.argmin(proper)]}': at the initial parameters its posterior given the "
            f"discrete latents is not proper. Start elsewhere with `init_params`. {REMEDY}"
        )
    if not np.all(joint < limit):
        at = int(np.argmax(joint))
        raise NotExactError(
            f"Site '{owner[at]}': it is Gaussian given the discrete latents, but not independent "
            f"from cell to cell of the plates that all latents share {_size(joint[at])}, so the "
            f"posterior is no product of small mixtures. {REMEDY}"
        )


def _size(error: float) -> str:
    fact = f"is off by {100 * error:.2g} %" if np.isfinite(error) else "is not finite"
    return f"(the gradient of the best such law {fact})"


@compiled(static_argnums=0)
def _errors(
    engine: Conditional, problem: Problem, x: jax.Array, u: jax.Array, rng_key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Relative errors of gradients by coordinate, (D,), and whether the law is proper at `x`.

    First those that a quadratic in the block's own coordinates predicts, the worst of all states;
    then those of a random average over states, and of the mixture.
    """
    blocks = engine.layout.blocks

    def compare(inputs: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        scale, key = inputs
        keys = jax.random.split(key, 5)
        params = problem.constrain(problem.nearby(keys[0], x, scale))
        spread = jax.random.uniform(keys[1], (2, 1), u.dtype, 0.3, 1.5)
        first, other = u + spread * jax.random.normal(keys[2], (2, *u.shape), u.dtype)
        # The same move in all blocks does not tell apart whose coordinates matter.
        move = jax.random.normal(keys[3], (blocks.block_size,), u.dtype)
        alike = first + blocks.join(jnp.broadcast_to(move, blocks.index.value.shape))
        constant = engine.constant(problem, params, u)[0]
        points = jnp.stack([first, alike])
        both = jax.lax.map(lambda u: engine.expand(problem, params, u, constant), points)
        here = jax.tree.map(lambda leaf: leaf[0], both)
        there = jax.tree.map(lambda leaf: leaf[1], both)
        expected, size = _predicted(here, jnp.broadcast_to(move, blocks.index.value.shape))
        possible = (here.possible & there.possible)[..., None]
        gap = jnp.where(possible, jnp.abs(there.gradient - expected) / size, 0.0)
        gap = jnp.where((here.possible != there.possible)[..., None], jnp.inf, gap)
        law = blocks.join(jnp.max(gap, axis=0))

        weights = jnp.where(possible, jax.random.uniform(keys[4], possible.shape, u.dtype), 0.0)
        weights /= jnp.sum(weights, axis=0)

        def average(u: jax.Array) -> jax.Array:
            inside, outside = engine.layout.terms(problem, params, u)
            chosen = weights[..., 0]
            return jnp.sum(jnp.where(chosen > 0, chosen * inside, 0.0)) + outside

        expected, size = _predicted(here, blocks.split(other - first))
        gap = jnp.abs(jax.grad(average)(other) - blocks.join(jnp.sum(weights * expected, 0)))
        joint = gap / blocks.join(jnp.sum(weights * size, 0))

        posterior = engine.fit(problem, params, first)[1]
        density = problem.density(params)
        points = jnp.stack([first, other])
        true, found = (jax.lax.map(jax.grad(f), points) for f in (density, posterior.log_density))
        mixture = jnp.max(jnp.abs(true - found), 0) / (jnp.max(jnp.abs(true), 0) + 1e-30)
        return law, jnp.maximum(joint, mixture), jnp.all(jnp.isfinite(posterior.points()), axis=0)

    scales = jnp.asarray([0.0, 0.3, 0.3, 0.3], x.dtype)
    law, joint, proper = jax.lax.map(compare, (scales, jax.random.split(rng_key, 4)))
    law, joint = (jnp.where(jnp.isfinite(part), part, jnp.inf) for part in (law, joint))
    return jnp.max(law, axis=0), jnp.max(joint, axis=0), proper[0]


def _predicted(expansion: Expansion, move: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients after a move (G, d) by a quadratic, (S, G, d), and the size of their terms."""
    gradient, hessian = expansion.gradient, expansion.hessian
    change = jnp.einsum("sgij,gj->sgi", hessian, move)
    size = jnp.abs(gradient) + jnp.einsum("sgij,gj->sgi", jnp.abs(hessian), jnp.abs(move))
    return gradient + change, size + 1e-30
