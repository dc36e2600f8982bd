"""Latents that are exactly Gaussian given data and parameters, in chains: smoothed states.

The precision is block tridiagonal, with blocks D_t and, below the diagonal, E_t. Its Cholesky
factor has L_t on the diagonal and C_t below it: C_t = E_t L_(t-1)^-T, L_t = chol(D_t - C_t C_t').
Each block given the next one has the covariance W_t W_t' and the slope G_t on it, W_t = L_t^-T and
G_t = -W_t C_(t+1)'; `gaussian_filter.py` finds these without the precision.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from ppl_em.posterior.linalg import inverse_transpose, log_det, normal_terms, standard_normal
from ppl_em.structure import Band, Chain


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class GaussianChain:
    """N(mean, covariance) on the unconstrained scale, B chains of T blocks of k coordinates.

    `mean` is (d,). Time is in front of all else, (T, B, k, k): `root` holds the W_t, `tril` their
    inverse transposes, `gain` the G_t, zero at the end.
    """

    mean: jax.Array
    tril: jax.Array
    root: jax.Array
    gain: jax.Array
    chain: Chain = field(metadata={"static": True})

    @classmethod
    def around(
        cls, chain: Chain, precision: Band, here: jax.Array, gradient: jax.Array
    ) -> "GaussianChain":
        """The law with this precision and a log-density of this gradient at `here` (d,)."""
        diagonal, lower = (jnp.moveaxis(piece, 1, 0) for piece in precision)
        score = jnp.moveaxis(chain.split(gradient), 1, 0)[..., None]

        def factor(before: tuple, inputs: tuple) -> tuple:
            root, half = before
            here, below, score = inputs
            link = mul(below, root)
            tril = jnp.linalg.cholesky(here - mul(link, transpose(link)))
            root = inverse_transpose(tril)
            half = mul(transpose(root), score - mul(link, half))
            return (root, half), (tril, root, link, half)

        start = (jnp.zeros_like(diagonal[0]), jnp.zeros_like(score[0]))
        factors: tuple = jax.lax.scan(factor, start, (diagonal, lower, score))[1]
        tril, root, link, half = factors
        coupling = jnp.concatenate([link[1:], jnp.zeros_like(link[:1])])
        gain = -mul(root, transpose(coupling))

        def substitute(after: jax.Array, inputs: tuple) -> tuple:
            gain, shift = inputs
            shift = shift + mul(gain, after)
            return shift, shift

        inputs = (gain, mul(root, half))
        shift: jax.Array = jax.lax.scan(substitute, start[1], inputs, reverse=True)[1]
        mean = here + chain.join(jnp.moveaxis(shift[..., 0], 0, 1))
        return cls(mean, tril, root, gain, chain)

    @property
    def center(self) -> jax.Array:
        """The mean, (d,)."""
        return self.mean

    @property
    def center_is_mean(self) -> np.ndarray:
        """Not unless the transform is the identity, (d,)."""
        return np.zeros(self.mean.size, bool)

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u), all chains together; a scalar."""
        return standard_normal(self._noise(u), u.size) + log_det(self.tril)

    def log_densities(self, u: jax.Array) -> jax.Array:
        """Terms of `log_density`, (d,), each at a coordinate of its chain."""
        return self.chain.join(jnp.moveaxis(normal_terms(self._noise(u), self.tril), 0, 1))

    def _noise(self, u: jax.Array) -> jax.Array:
        """What is standard normal if `u` (d,) has this law, (T, B, k)."""
        away = jnp.moveaxis(self.chain.split(u - self.mean), 1, 0)
        after = jnp.concatenate([away[1:], jnp.zeros_like(away[:1])])
        away = away - jnp.einsum("tbij,tbj->tbi", self.gain, after)
        return jnp.einsum("tbji,tbj->tbi", self.tril, away)

    def points(self) -> jax.Array:
        """4 k equally weighted points, (4k, d), over which the log-joint has its exact mean.

        They lie at the mean plus and minus sqrt(2k) times each of 2k columns. Covariances of blocks
        that are not neighbors are wrong, but the log-joint has no such terms. No fewer points have
        the right covariances of all pairs of neighbors.
        """
        columns = self.columns()
        offsets = np.sqrt(len(columns)) * columns
        return self.mean + jnp.concatenate([offsets, -offsets])

    def columns(self) -> jax.Array:
        """2k directions, (2k, d), whose outer products sum to the covariances of neighbors."""
        columns = jnp.transpose(_columns(self.root, self.gain), (3, 1, 0, 2))
        return self.chain.join(columns)

    def solve(self, vector: jax.Array) -> jax.Array:
        """The covariance times a vector, (d,)."""
        score = jnp.moveaxis(self.chain.split(vector), 1, 0)[..., None]

        def forward(before: jax.Array, inputs: tuple) -> tuple:
            gain, score = inputs
            score = score + before
            return mul(transpose(gain), score), score

        def backward(after: jax.Array, inputs: tuple) -> tuple:
            gain, shift = inputs
            shift = shift + mul(gain, after)
            return shift, shift

        start = jnp.zeros_like(score[0])
        scores: jax.Array = jax.lax.scan(forward, start, (self.gain, score))[1]
        inputs = (self.gain, mul(self.root, mul(transpose(self.root), scores)))
        shift: jax.Array = jax.lax.scan(backward, start, inputs, reverse=True)[1]
        return self.chain.join(jnp.moveaxis(shift[..., 0], 0, 1))

    def pair_covariances(self) -> jax.Array:
        """Covariances of neighboring blocks t and t + 1 together, (T - 1, B, 2k, 2k)."""

        def step(after: jax.Array, inputs: tuple) -> tuple:
            kept, gain = inputs
            across = mul(gain, after)
            own = kept + mul(across, transpose(gain))
            return own, (own, across)

        start = jnp.zeros_like(self.root[0])
        inputs = (mul(self.root, transpose(self.root)), self.gain)
        covariances: tuple = jax.lax.scan(step, start, inputs, reverse=True)[1]
        own, across = covariances
        return jnp.block([[own[:-1], across[:-1]], [transpose(across[:-1]), own[1:]]])

    def cancellation(self) -> jax.Array:
        """How many times larger the entries of the precision are than what is left of them.

        Left when a block is taken from the next one: rounding is multiplied by this much. The
        largest of all coordinates; a scalar.
        """
        pivots = jnp.diagonal(self.tril, axis1=-2, axis2=-1) ** 2
        link = mul(transpose(self.tril), self.gain)
        taken = jnp.sum(link[:-1] ** 2, axis=-2)
        own = jnp.sum(self.tril**2, axis=-1).at[1:].add(taken)
        return jnp.max(own / pivots)

    def draw(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, d), each from the last block to the first."""
        shape = (*self.tril.shape[:3], num_samples)
        noise = jax.random.normal(rng_key, shape, self.mean.dtype)

        def step(after: jax.Array, inputs: tuple) -> tuple:
            gain, noise = inputs
            draw = noise + gain @ after
            return draw, draw

        start, inputs = jnp.zeros_like(noise[0]), (self.gain, self.root @ noise)
        draws: jax.Array = jax.lax.scan(step, start, inputs, reverse=True)[1]
        return self.mean + self.chain.join(jnp.transpose(draws, (3, 1, 0, 2)))


def _columns(root: jax.Array, gain: jax.Array) -> jax.Array:
    """Columns U_t, (T, B, k, 2k), from the last to the first.

    U_t U_t' and U_t U_(t+1)' are the covariances of block t with itself and with its neighbor.
    U_t = W_t N_t + G_t U_(t+1), where the rows of N_t are orthonormal and orthogonal
    to those of U_(t+1).
    """
    last = jnp.concatenate([jnp.zeros_like(root[0]), jnp.ones_like(root[0]) * _eye(root)], axis=-1)

    def step(after: jax.Array, inputs: tuple) -> tuple:
        root, gain = inputs
        columns = mul(root, complement(after)) + mul(gain, after)
        return columns, columns

    return jax.lax.scan(step, last, (root, gain), reverse=True)[1]


@jax.custom_jvp
def complement(rows: jax.Array) -> jax.Array:
    """Orthonormal rows (..., k, 2k) orthogonal to the given ones (..., k, 2k)."""
    square = jnp.linalg.qr(transpose(rows), mode="complete")[0]
    return transpose(square[..., rows.shape[-2] :])


@complement.defjvp
def _complement_jvp(primals: tuple, tangents: tuple) -> tuple:
    """Keeps the rows orthogonal; any rotation among them is as good, so they do not rotate."""
    (rows,), (change,) = primals, tangents
    value = complement(rows)
    return value, -(value @ transpose(change)) @ jnp.linalg.solve(rows @ transpose(rows), rows)


def mul(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix product; of small matrices as one fused kernel, twice as fast inside a scan."""
    if max(*left.shape[-2:], right.shape[-1]) > 16:
        return left @ right
    return jnp.sum(left[..., :, :, None] * right[..., None, :, :], axis=-2)


def _eye(like: jax.Array) -> jax.Array:
    return jnp.eye(like.shape[-1], dtype=like.dtype)


def transpose(matrix: jax.Array) -> jax.Array:
    """Of each matrix, (..., k, n)."""
    return jnp.swapaxes(matrix, -1, -2)
