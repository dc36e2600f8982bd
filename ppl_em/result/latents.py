"""The latents given the data, as users ask for them: draws, means, probabilities."""

from dataclasses import dataclass, field
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from ppl_em.discrete import marginalization
from ppl_em.params import Params
from ppl_em.posterior import Posterior, WeightedDraws
from ppl_em.problem import Latents, Problem, on_request
from ppl_em.result.latents_table import Layout
from ppl_em.util import ModelError, as_key, check_option, compiled, whole

MEAN_SAMPLES = 2000
"""Draws behind means and probabilities that have no closed form."""

REAL = (constraints.real, constraints.real_vector)
"""Supports without bounds."""


@dataclass(frozen=True, eq=False)
class LatentPosterior:
    """p(z given y) at the fitted parameters, exact or approximate as the E-step was.

    `sample` draws all latents jointly, `mean` and `sd` summarise them site by site, `probs` and
    `most_probable` are for discrete sites.
    """

    problem: Problem = field(repr=False)
    params: Params = field(repr=False)
    inner: Posterior
    rng_key: jax.Array = field(repr=False)

    @on_request
    def sample(self, rng_key: jax.Array, num_samples: int) -> dict[str, jax.Array]:
        """Draw all latents jointly.

        Parameters
        ----------
        rng_key
            Random key.
        num_samples
            Number of draws n.

        Returns
        -------
        dict
            Site name to array of shape (n, *site_shape), continuous and discrete sites.
        """
        check_option("num_samples", num_samples, whole())
        key_continuous, key_discrete = jax.random.split(as_key(rng_key))
        draws = self.inner.sample(self.problem, self.params, key_continuous, num_samples)
        return self.with_discrete(key_discrete, draws, num_samples)

    @on_request
    def with_discrete(
        self, rng_key: jax.Array, draws: Latents, num_samples: int
    ) -> dict[str, jax.Array]:
        """Add draws of the discrete sites to draws (n, *site_shape) of the continuous ones."""
        if not self.problem.spec.discrete:
            return draws
        keys = jax.random.split(rng_key, num_samples)
        return {**draws, **_sample_discrete(self.problem, self.params, keys, draws)}

    @on_request
    def mean(self) -> dict[str, np.ndarray]:
        """Posterior means on the model's own scale, each of the site's shape.

        For continuous sites an average over stored or fresh draws unless the posterior is
        Gaussian, a mixture of Gaussians, gamma, beta or Dirichlet on that scale; for discrete sites
        the mean of the support under `probs`.
        """
        means = _as_arrays(self.inner.site_means(self.problem, self.params))
        if len(means) < len(self.problem.spec.latents):
            means = {k: np.asarray(jnp.mean(v, axis=0)) for k, v in self._draws().items()} | means
        if self.problem.spec.discrete:
            probs = self.probs()
            for site in self.problem.spec.discrete:
                means[site.name] = np.tensordot(probs[site.name], site.values.value, axes=1)
        return means

    @on_request
    def sd(self) -> dict[str, np.ndarray]:
        """Posterior standard deviations of the continuous sites, each of the site's shape.

        Exact for sites on the real line whose posterior is Gaussian (smoothed states, random
        effects) or a mixture of Gaussians, else over stored or fresh draws. After mean-field
        inference by linear response, as q itself knows no correlations: see `Factorized`; draws
        by `sample` are from q.
        """
        sds = _as_arrays(self.inner.site_sds(self.problem, self.params, self.rng_key))
        if len(sds) < len(self.problem.spec.latents):
            sds = {k: np.asarray(jnp.std(v, axis=0)) for k, v in self._draws().items()} | sds
        return sds

    @on_request
    def probs(self) -> dict[str, np.ndarray]:
        """Responsibilities: probabilities of every discrete site.

        Returns
        -------
        dict
            Site name to array of shape (*plates, size of the support).

        Raises
        ------
        ModelError
            If the model has no discrete latents.
        """
        if not self.problem.spec.discrete:
            raise ModelError(
                "`posterior.probs()`: the model has no discrete latents. Use `mean()` or "
                "`sample(...)`."
            )
        if not self.problem.spec.latents:
            return jax.device_get(_probs(self.problem, self.params, {}))
        known = self.inner.responsibilities()
        if known is not None:
            return jax.device_get(known)
        draws = self._draws(200)
        values = jax.vmap(lambda z: _probs(self.problem, self.params, z))(draws)
        return {name: np.asarray(jnp.mean(value, axis=0)) for name, value in values.items()}

    @on_request
    def most_probable(self) -> dict[str, np.ndarray]:
        """The jointly most probable values of all discrete sites (Viterbi's path in a `scan`).

        Returns
        -------
        dict
            Site name to array of the site's shape.

        Raises
        ------
        ModelError
            If the model has continuous latents too, or no discrete ones.
        """
        if self.problem.spec.latents or not self.problem.spec.discrete:
            raise ModelError(
                "`posterior.most_probable()`: it is for models whose latents are all discrete. Use "
                "`mean()` or `sample(...)`."
            )
        return jax.device_get(_most_probable(self.problem, self.params))

    def layouts(self) -> dict[str, Layout]:
        """Axes, labels and kind of every site."""
        spec = self.problem.spec
        found = {}
        for one in spec.latents:
            real = one.support is not None and one.support.value in REAL
            found[one.name] = Layout(one.dims, _places(one.shape), real, None)
        for other in spec.discrete:
            values = other.values.value
            found[other.name] = Layout(other.dims, _places(other.shape), False, values)
        return found

    def _draws(self, num_samples: int = MEAN_SAMPLES) -> Latents:
        if self.inner.by_draws:
            num_samples = min(num_samples, cast(WeightedDraws, self.inner).weights.size)
        return self.inner.sample(self.problem, self.params, self.rng_key, num_samples)


def _places(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.arange(size) for size in shape)


def _as_arrays(values: Latents) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in values.items()}


@compiled
def _probs(problem: Problem, params: Params, latents: Latents) -> dict[str, jax.Array]:
    return marginalization.site_probs(problem.log_factors(params, latents))


@compiled
def _sample_discrete(
    problem: Problem, params: Params, keys: jax.Array, draws: Latents
) -> dict[str, jax.Array]:
    def draw(key: jax.Array, latents: Latents) -> dict[str, jax.Array]:
        return draw_discrete(problem, params, key, latents)

    return jax.vmap(draw)(keys, draws)


def draw_discrete(
    problem: Problem, params: Params, rng_key: jax.Array, latents: Latents
) -> dict[str, jax.Array]:
    """One joint draw of the discrete sites given the continuous `latents`; none if there are none.

    Traceable; each is of the site's shape.
    """
    if not problem.spec.discrete:
        return {}
    return _values(problem, marginalization.sample(problem.log_factors(params, latents), rng_key))


@compiled
def _most_probable(problem: Problem, params: Params) -> dict[str, jax.Array]:
    return _values(problem, marginalization.most_probable(problem.log_factors(params, {})))


def _values(problem: Problem, chosen: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Values of the discrete sites, each of the site's shape, from one-hot choices."""
    return {
        site.name: jnp.asarray(site.values.value)[jnp.argmax(chosen[site.name], -1)].reshape(
            site.shape
        )
        for site in problem.spec.discrete
    }
