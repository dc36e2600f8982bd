"""Chains whose steps all look alike: a step sees two neighboring blocks, each step in one way.

The rows of a condensed scan (see `condense_steps.py`) are then J (u_t, u_(t+1)) plus what does not
depend on the latents, with one J for all steps. Their moments need only the sum over steps of the
covariances of neighbors, and not the points over which any quadratic function is averaged. All
other terms of the log-joint see one pair of neighbors, as those of the first step do.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.params import Params
from ppl_em.posterior import GaussianChain
from ppl_em.problem import Problem
from ppl_em.structure import (
    Band,
    Chain,
    StepPoints,
    StepTotals,
    Structure,
    other_terms,
    steps_term,
    summed,
)
from ppl_em.util import cholesky, compiled


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class UniformChain:
    """Row r of `count` sees blocks `first + r` and the next; all else sees `near` and the next.

    `jacobian` (B, 2k, m) is the derivative of a row with respect to the pair of each of B chains.
    """

    jacobian: jax.Array
    chain: Chain = field(metadata={"static": True})
    count: int = field(metadata={"static": True})
    first: int = field(metadata={"static": True})
    near: int = field(metadata={"static": True})

    def fit(
        self,
        problem: Problem,
        params: Params,
        u: jax.Array,
        gradient: jax.Array,
        points: StepPoints,
    ) -> GaussianChain:
        """The conditional law, from the log-joint near `u` (D,) and its gradient there (D,)."""
        precision = self._precision(problem, params, u, points)
        return GaussianChain.around(self.chain, precision, u, gradient)

    def _precision(
        self, problem: Problem, params: Params, u: jax.Array, points: StepPoints
    ) -> Band:
        """Minus the Hessian of the log-joint at `u` (D,), from one step and from all else.

        `compressed_hessian` would find the same by products with the whole of it.
        """
        ((time, w),) = points.items()
        ones = {time: jnp.ones(1, u.dtype)}
        index = _pair_index(self.chain, self.near)

        def one_step(row: jax.Array) -> jax.Array:
            factors = problem.log_factors_unconstrained(params, u, {time: row[None]})[0]
            return steps_term(factors, ones)

        def others(pair: jax.Array) -> jax.Array:
            at = u.at[index].set(pair)
            factors, jacobian = problem.log_factors_unconstrained(params, at, points)
            return other_terms(factors, points) + jacobian

        def product(column: jax.Array) -> jax.Array:
            direction = jnp.zeros_like(u[index]).at[:, column].set(1.0)
            return jax.jvp(jax.grad(others), (u[index],), (direction,))[1]

        step = jax.hessian(one_step)(w[0])
        step = jnp.einsum("bim,mn,bjn->bij", self.jacobian, step, self.jacobian)
        rest = jax.vmap(product, out_axes=-1)(jnp.arange(index.shape[1]))
        k, length = self.chain.block_size, self.chain.length
        place = jnp.arange(length)[:, None, None] - self.first
        before = (place >= 0) & (place < self.count)
        after = (place >= 1) & (place < self.count + 1)
        diagonal = before * step[:, None, :k, :k] + after * step[:, None, k:, k:]
        lower = after * step[:, None, k:, :k]
        diagonal = diagonal.at[:, self.near].add(rest[:, :k, :k])
        diagonal = diagonal.at[:, self.near + 1].add(rest[:, k:, k:])
        lower = lower.at[:, self.near + 1].add(rest[:, k:, :k])
        return Band(-diagonal, -lower)

    def moments(
        self, problem: Problem, params: Params, law: GaussianChain, points: StepPoints
    ) -> tuple[jax.Array, StepTotals]:
        """What `Product` needs of the law.

        4k equally weighted points, (4k, D), over which all other terms have their mean, and the
        expected sums over steps of the coefficients of `points`, as `condense_steps.totals`.
        """
        ((time, w),) = points.items()
        covariances = law.pair_covariances()
        rows = problem.step_rows(params, problem.constrain_latents(params, law.center))[time]
        pairs = jnp.sum(covariances[self.first : self.first + self.count], axis=0)
        spread = jnp.einsum("bim,bij,bjn->mn", self.jacobian, pairs, self.jacobian)

        root = cholesky(covariances[self.near])
        columns = np.sqrt(root.shape[-1]) * jnp.moveaxis(root, -1, 0)
        offsets = jnp.concatenate([columns, -columns]).reshape(2 * len(columns), -1)
        index = _pair_index(self.chain, self.near).ravel()
        nodes = jnp.tile(law.mean, (len(offsets), 1)).at[:, index].add(offsets)
        return nodes, StepTotals(points, {time: summed(rows, w, spread)})


def find_uniform(
    rng_key: jax.Array, problem: Problem, x: jax.Array, structure: Structure, points: StepPoints
) -> UniformChain | None:
    """What a scan's steps see of a chain, with proof; None if they do not look alike.

    Parameters
    ----------
    rng_key
        Draws the parameters and latents at which all is checked.
    problem, x
        A problem whose latents are one chain, and its unconstrained parameters, shape (p,).
    structure
        Of their Hessian.
    points
        From `condense_steps`.
    """
    chain = structure
    if not isinstance(chain, Chain) or chain.length < 2 or np.any(chain.index.value < 0):
        return None
    if len(points) != 1:
        return None
    keys = jax.random.split(rng_key, 4)
    near_x = x + 0.3 * jax.random.normal(keys[0], x.shape, x.dtype)
    u, other = (problem.start + jax.random.normal(k, problem.start.shape) for k in keys[1:3])
    found = _pair_of_the_rows(problem, x, u, chain, points)
    near = _pair_of_the_rest(_slope_of_others(problem, near_x, u, points), chain)
    if found is None or near is None:
        return None
    first, jacobian = found
    # The same derivative in every row, at other parameters and latents.
    after, before = (_rows(problem, near_x, point, points) for point in (other, u))
    moved = np.asarray(after - before)
    blocks = np.asarray(chain.split(other - u))
    pairs = np.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=-1)[:, first : first + len(moved)]
    expected = np.einsum("bti,bim->tm", pairs, jacobian)
    small = 1e3 * float(jnp.finfo(x.dtype).eps)
    if not np.max(np.abs(moved - expected)) <= small * (1 + np.max(np.abs(expected))):
        return None
    mixed = other.at[_pair_index(chain, near)].set(u[_pair_index(chain, near)])
    values = [float(_others(problem, near_x, point, points)) for point in (u, mixed)]
    if not abs(values[0] - values[1]) <= small * (1 + abs(values[0])):
        return None
    return UniformChain(jnp.asarray(jacobian), chain, len(moved), first, near)


def _pair_index(chain: Chain, t: int) -> np.ndarray:
    """Positions in `u` of blocks t and t + 1 of every chain, (B, 2k)."""
    index = chain.index.value
    return np.concatenate([index[:, t], index[:, t + 1]], axis=-1)


@compiled
def _rows(problem: Problem, x: jax.Array, u: jax.Array, points: StepPoints) -> jax.Array:
    """What the steps of the scan see, (R, m)."""
    (time,) = points
    params = problem.constrain(x)
    return problem.step_rows(params, problem.constrain_latents(params, u))[time]


@compiled
def _others(problem: Problem, x: jax.Array, u: jax.Array, points: StepPoints) -> jax.Array:
    """The terms that no point stands for; a scalar."""
    factors, jacobian = problem.log_factors_unconstrained(problem.constrain(x), u, points)
    return other_terms(factors, points) + jacobian


_slope_of_others = compiled(jax.grad(_others, argnums=2))


@compiled
def _slopes_of_row(
    problem: Problem, x: jax.Array, u: jax.Array, points: StepPoints, row: jax.Array
) -> jax.Array:
    """Derivatives of one row, (m, D)."""
    return jax.jacrev(lambda u: _rows(problem, x, u, points)[row])(u)


def _pair_of_the_rows(
    problem: Problem, x: jax.Array, u: jax.Array, chain: Chain, points: StepPoints
) -> tuple[int, np.ndarray] | None:
    """The block that the first row sees first, and the derivative of a row, (B, 2k, m)."""
    count = len(_rows(problem, x, u, points))
    middle = count // 2
    slopes = np.asarray(_slopes_of_row(problem, x, u, points, middle))
    times = np.flatnonzero(np.any(slopes[:, chain.index.value] != 0, axis=(0, 1, 3)))
    if not len(times) or times[-1] - times[0] > 1:
        return None
    first = int(times[0]) - middle
    if times[0] == times[-1] and first + count >= chain.length:
        first -= 1  # rows that see one block each, up to the last
    if first < 0 or first + count >= chain.length:
        return None
    return first, np.moveaxis(slopes[:, _pair_index(chain, first + middle)], 0, -1)


def _pair_of_the_rest(slope: jax.Array, chain: Chain) -> int | None:
    """The first of the two neighboring blocks that terms with this gradient (D,) see."""
    times = np.flatnonzero(np.any(np.asarray(slope)[chain.index.value] != 0, axis=(0, 2)))
    if len(times) and times[-1] - times[0] > 1:
        return None
    return int(min(times[0] if len(times) else 0, chain.length - 2))
