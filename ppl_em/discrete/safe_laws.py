"""Laws of counts whose log-densities have derivatives where NumPyro's have none.

At a probability of exactly 0 or 1, as in `Bernoulli(z * p)`, NumPyro's second derivative is 0 / 0;
at logits of exactly 0 its first one is that of a side. The values are the same. A probability of 0
counts as such in the tables of discrete sites only, by `impossible`: elsewhere it is a rounded one.
"""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from numpyro.distributions import (
    Distribution,
    ExpandedDistribution,
    Independent,
    MaskedDistribution,
)
from numpyro.distributions.util import validate_sample


@jax.custom_jvp
def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, whose derivatives have no power of b in them: 1 / b² may be more than a number."""
    return a / b


@_ratio.defjvp
def _ratio_jvp(primals: tuple, tangents: tuple) -> tuple:
    (a, b), (da, db) = primals, tangents
    found = _ratio(a, b)
    return found, _ratio(da, b) - found * _ratio(db, b)


@jax.custom_jvp
def _log(p: jax.Array) -> jax.Array:
    return jnp.log(p)


@_log.defjvp
def _log_jvp(primals: tuple, tangents: tuple) -> tuple:
    return _log(primals[0]), _ratio(tangents[0], primals[0])


def _times_log(count: Any, p: jax.Array, otherwise: Any) -> jax.Array:
    """count * log(p), 0 where the count is; times the constant `otherwise` if p is 0."""
    positive = p >= jnp.finfo(p.dtype).tiny
    found = jnp.where(positive, _log(jnp.where(positive, p, 1.0)), otherwise)
    counts = jnp.asarray(count, p.dtype)
    return jnp.where(counts == 0, 0.0, jnp.where(counts == 0, 1.0, counts) * found)


def _binary(successes: Any, failures: Any, p: Any) -> jax.Array:
    """Of independent trials; at the ends with the probabilities that NumPyro takes for 0 and 1."""
    p = _real(p)
    info = jnp.finfo(p.dtype)
    inside = p < 1
    fails = jnp.where(inside, jnp.log1p(-jnp.where(inside, p, 0.0)), jnp.log(info.eps))
    count = jnp.asarray(failures, p.dtype)
    fails = jnp.where(count == 0, 0.0, count * fails)
    return _times_log(successes, p, jnp.log(info.tiny)) + fails


def _real(values: Any) -> jax.Array:
    return jnp.asarray(values, jnp.result_type(values, float))


def _choices(total: Any, value: Any) -> jax.Array:
    total, value = _real(total), _real(value)
    return gammaln(total + 1) - gammaln(value + 1) - gammaln(total - value + 1)


class _BernoulliProbs(dist.BernoulliProbs):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        value = _real(value)
        return _binary(value, 1 - value, self.probs)


class _BernoulliLogits(dist.BernoulliLogits):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        logits = _real(self.logits)
        usual = jnp.isfinite(logits)
        safe = jnp.where(usual, logits, 0.0)
        end = jnp.where(jnp.logical_xor(value, logits > 0), -jnp.inf, 0.0)
        return jnp.where(usual, safe * value - jax.nn.softplus(safe), end)


class _BinomialProbs(dist.BinomialProbs):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        value = _real(value)
        log_prob = _binary(value, self.total_count - value, self.probs)
        return _choices(self.total_count, value) + log_prob


class _BinomialLogits(dist.BinomialLogits):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        total, logits = _real(self.total_count), _real(self.logits)
        both = value * logits - jnp.where(total == 0, 0.0, total * jax.nn.softplus(logits))
        return _choices(total, value) + both


class _GeometricProbs(dist.GeometricProbs):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        p = _real(self.probs)
        ends = jnp.where(p < 1, 1 - p, 0.0)
        fails = jnp.log1p(-jnp.where(p < 1, p, 0.0))
        count = _real(value)
        failed = jnp.where(count == 0, 0.0, jnp.where(ends > 0, count * fails, -jnp.inf))
        return failed + _times_log(1.0, p, -jnp.inf)


class _CategoricalProbs(dist.CategoricalProbs):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        return _picked(self, value)


class _OrderedLogistic(dist.OrderedLogistic):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        return _picked(self, value)


def _picked(law: dist.CategoricalProbs, value: Any) -> jax.Array:
    logs = _times_log(1.0, _real(law.probs), -jnp.inf)
    shape = jnp.broadcast_shapes(jnp.shape(value), law.batch_shape)
    place = jnp.broadcast_to(jnp.asarray(value)[..., None], (*shape, 1))
    return jnp.take_along_axis(jnp.broadcast_to(logs, (*shape, logs.shape[-1])), place, -1)[..., 0]


class _MultinomialProbs(dist.MultinomialProbs):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        value = _real(value)
        parts = _times_log(value, _real(self.probs), -jnp.inf) - gammaln(value + 1)
        return gammaln(_real(self.total_count) + 1) + jnp.sum(parts, axis=-1)


class _Poisson(dist.Poisson):
    @validate_sample
    def log_prob(self, value: Any) -> jax.Array:
        if self.is_sparse:
            return super().log_prob(value)
        rate, value = _real(self.rate), _real(value)
        return _times_log(value, rate, -jnp.inf) - gammaln(value + 1) - rate


SAFE: dict[type, type] = {
    law.__base__: law
    for law in (
        _BernoulliProbs,
        _BernoulliLogits,
        _BinomialProbs,
        _BinomialLogits,
        _GeometricProbs,
        _CategoricalProbs,
        _OrderedLogistic,
        _MultinomialProbs,
        _Poisson,
    )
}
for _plain, _own in SAFE.items():
    _own.__name__ = _plain.__name__  # it is shown in messages


def safe(law: Distribution) -> Distribution:
    """The same law with log-densities that can be differentiated twice, its parts as well."""
    own = copy.copy(law)
    if type(law) in SAFE:
        own.__class__ = SAFE[type(law)]
        return own
    parts = {name: part for name, part in vars(law).items() if isinstance(part, Distribution)}
    safer = {name: safe(part) for name, part in parts.items()}
    changed = {name: part for name, part in safer.items() if part is not parts[name]}
    vars(own).update(changed)
    return own if changed else law


def impossible(law: Distribution, value: Any) -> Any:
    """Where a value has probability exactly 0 by a probability of 0 or 1; False if nowhere."""
    if isinstance(law, ExpandedDistribution):
        return impossible(law.base_dist, value)
    if isinstance(law, MaskedDistribution):
        return jnp.logical_and(law._mask, impossible(law.base_dist, value))
    if isinstance(law, Independent):
        found = impossible(law.base_dist, value)
        axes = tuple(range(-min(law.reinterpreted_batch_ndims, jnp.ndim(found)), 0))
        return jnp.any(found, axes) if axes else found
    if isinstance(law, dist.BernoulliProbs | dist.BinomialProbs):
        value, p = jnp.asarray(value), jnp.asarray(law.probs)
        total = law.total_count if isinstance(law, dist.BinomialProbs) else 1
        return ((p == 0) & (value > 0)) | ((p == 1) & (value < total))
    return False
