"""Latents whose conditional laws are gamma, inverse-gamma, beta or Dirichlet, element by element.

On the unconstrained scale all of them are independent scalar laws of two kinds: the log of a gamma
variable (or minus it), and the logit of a beta variable. A Dirichlet vector broken like a stick is
a row of independent beta variables (Connor & Mosimann 1969).

References
----------
Connor & Mosimann (1969), Concepts of independence for proportions with a generalization of the
Dirichlet distribution. Journal of the American Statistical Association 64, 194-206.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln

from ppl_em.util import Static

LARGE = 100.0
"""From here on, series in 1/a are exact to double precision and differences of logs are not."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LogGamma:
    """u = sign * w with exp(w) ~ Gamma(shape, rate): log p = shape w - rate exp(w) + const.

    `shape` and `rate` are (d,); `sign` is 1 for a gamma latent, -1 for an inverse-gamma one.
    """

    shape: jax.Array
    rate: jax.Array
    sign: Static = field(metadata={"static": True})

    @property
    def center(self) -> jax.Array:
        """The mode on the unconstrained scale, (d,)."""
        return self.sign.value * (jnp.log(self.shape) - jnp.log(self.rate))

    @property
    def center_is_mean(self) -> np.ndarray:
        """True for gamma laws: exp(center) is shape / rate; (d,)."""
        return self.sign.value > 0

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u), all coordinates together; NaN unless shape and rate are positive."""
        return jnp.sum(self.log_densities(u))

    def log_densities(self, u: jax.Array) -> jax.Array:
        """Terms of `log_density`, one for each coordinate, (d,)."""
        away = self.sign.value * (u - self.center)
        return _log_peak(self.shape) + self.shape * (away - jnp.expm1(away))

    def points(self) -> jax.Array:
        """Two points, (2, d), whose mean has the right E[w] and E[exp(w)].

        They are E[w] ± arccosh(E[exp(w)] / exp(E[w])).
        """
        gap = _log_minus_digamma(self.shape)
        mean = jnp.log(self.shape) - jnp.log(self.rate) - gap
        spread = gap + jnp.log1p(jnp.sqrt(-jnp.expm1(-2 * gap)))
        return self.sign.value * (mean + jnp.stack([spread, -spread]))

    def draw(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, d)."""
        noise = jax.random.loggamma(rng_key, self.shape, (num_samples, *self.shape.shape))
        return self.sign.value * (noise - jnp.log(self.rate))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LogitBeta:
    """u = shift + w with z = sigmoid(w) ~ Beta(a, b): log p = a log z + b log(1 - z) + const.

    `a` and `b` are (d,); `shift` is 0 but for sticks, which NumPyro balances.
    """

    a: jax.Array
    b: jax.Array
    shift: Static = field(metadata={"static": True})

    @property
    def center(self) -> jax.Array:
        """The mode on the unconstrained scale, (d,)."""
        return self.shift.value + jnp.log(self.a) - jnp.log(self.b)

    @property
    def center_is_mean(self) -> np.ndarray:
        """True: sigmoid(center) is a / (a + b), also for sticks, whose products are means; (d,)."""
        return np.ones(self.shift.value.shape, bool)

    def log_density(self, u: jax.Array) -> jax.Array:
        """log q(u), all coordinates together; NaN unless a and b are positive."""
        return jnp.sum(self.log_densities(u))

    def log_densities(self, u: jax.Array) -> jax.Array:
        """Terms of `log_density`, one for each coordinate, (d,)."""
        w, top = u - self.shift.value, self.center - self.shift.value
        log_z = jax.nn.log_sigmoid(w) - jax.nn.log_sigmoid(top)
        log_rest = jax.nn.log_sigmoid(-w) - jax.nn.log_sigmoid(-top)
        peak = _log_peak(self.a) + _log_peak(self.b) - _log_peak(self.a + self.b)
        return peak + self.a * log_z + self.b * log_rest

    def points(self) -> jax.Array:
        """Two points, (2, d), whose mean has the right E[log z] and E[log(1 - z)].

        They are m ± h with m = E[log z - log(1 - z)], A = exp(-(E log z + E log(1 - z)) / 2),
        B = 2 cosh(m / 2) and sinh(h / 2)² = (A² - B²) / 4. NaN where a point lies so close to 1
        that 1 - z is lost to rounding: the model could not be evaluated there.
        """
        total = self.a + self.b
        share, rest = self.a / total, self.b / total
        gap_a, gap_b = _log_minus_digamma(self.a), _log_minus_digamma(self.b)
        half = 0.5 * (gap_b - gap_a)
        level = 0.5 * (gap_a + gap_b) - _log_minus_digamma(total)
        low = share * jnp.expm1(half) + rest * jnp.expm1(-half)
        high = jnp.expm1(level)
        squared = (high - low) * (high + low + 2) / (4 * share * rest)
        mean = jnp.log(self.a) - jnp.log(self.b) + 2 * half
        spread = 2 * jnp.arcsinh(jnp.sqrt(squared))
        points = mean + jnp.stack([spread, -spread])
        limits = jnp.finfo(points.dtype)
        usable = (points > np.log(limits.tiny)) & (points < -2 / 3 * np.log(limits.eps))
        return self.shift.value + jnp.where(usable, points, jnp.nan)

    def draw(self, rng_key: jax.Array, num_samples: int) -> jax.Array:
        """Independent draws, (num_samples, d)."""
        shape, keys = (num_samples, *self.a.shape), jax.random.split(rng_key)
        first = jax.random.loggamma(keys[0], self.a, shape)
        return self.shift.value + first - jax.random.loggamma(keys[1], self.b, shape)


def _log_peak(a: jax.Array) -> jax.Array:
    """a log a - a - log Gamma(a), without cancellation for large a; NaN unless a > 0."""
    small, large = jnp.minimum(a, LARGE), jnp.maximum(a, LARGE)
    square = large**-2
    series = (1 / 12 - square * (1 / 360 - square / 1260)) / large
    asymptotic = 0.5 * (jnp.log(large) - np.log(2 * np.pi)) - series
    return jnp.where(a > LARGE, asymptotic, small * jnp.log(small) - small - gammaln(small))


def _log_minus_digamma(a: jax.Array) -> jax.Array:
    """log a - digamma(a), the derivative of `_log_peak`; NaN unless a > 0."""
    small, large = jnp.minimum(a, LARGE), jnp.maximum(a, LARGE)
    square = large**-2
    asymptotic = 0.5 / large + square * (1 / 12 - square * (1 / 120 - square / 252))
    return jnp.where(a > LARGE, asymptotic, jnp.log(small) - digamma(small))
