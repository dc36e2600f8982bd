"""Frequency weights by `numpyro.handlers.scale`: the same as repeated rows, groups or series."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy.special import logsumexp
from scipy.stats import norm

from ppl_em import EM, ModelError
from ppl_em.discrete import marginalization
from ppl_em.problem import build_problem

RNG = np.random.default_rng(0)
N = 30
ROWS = np.where(RNG.uniform(size=N) < 0.4, 3.0, 0.0) + RNG.normal(size=N)
COUNTS = RNG.integers(1, 4, N)
MOVE = np.array([[0.8, 0.2], [0.3, 0.7]])


def mixture(y, w):
    p = numpyro.param("p", 0.5, constraint=constraints.unit_interval)
    mu = numpyro.param("mu", jnp.array([0.0, 2.0]))
    with numpyro.plate("rows", len(y)), handlers.scale(scale=w):
        z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def built(model, *args):
    problem, params = build_problem(jax.random.key(0), model, args, {})
    return problem, params


def log_joint(model, *args):
    problem, params = built(model, *args)
    return float(problem.log_joint(params, problem.constrain_latents(params, problem.start)))


def test_weighted_rows_are_repeated_rows():
    fit = EM(mixture, "exact")
    weighted = fit.run(jax.random.key(0), ROWS, COUNTS * 1.0, progress_bar=False)
    ones = np.ones(COUNTS.sum())
    repeated = fit.run(jax.random.key(0), np.repeat(ROWS, COUNTS), ones, progress_bar=False)
    np.testing.assert_allclose(weighted.log_likelihood.value, repeated.log_likelihood.value)
    for name, sd in repeated.standard_errors().items():
        np.testing.assert_allclose(weighted.params[name], repeated.params[name], atol=1e-5)
        np.testing.assert_allclose(weighted.standard_errors()[name], sd, rtol=1e-4)
    first = np.cumsum(COUNTS) - COUNTS
    probs = weighted.posterior.probs()["z"]
    np.testing.assert_allclose(probs, repeated.posterior.probs()["z"][first], atol=1e-4)
    np.testing.assert_allclose(np.sum(probs, -1), 1.0)


def test_weights_that_are_no_counts():
    w = RNG.uniform(0.1, 2.0, N)
    each = logsumexp(norm.logpdf(ROWS[:, None], [0.0, 2.0]) + np.log(0.5), axis=1)
    np.testing.assert_allclose(log_joint(mixture, ROWS, w), w @ each)
    np.testing.assert_allclose(log_joint(mixture, ROWS, np.full(N, 0.5)), 0.5 * each.sum())


def groups(y, w):
    """A class above groups above members; a group counts `w` times."""
    top = numpyro.sample("top", dist.Bernoulli(0.3))
    mu = numpyro.param("mu", jnp.array([0.0, 2.0]))
    with numpyro.plate("groups", len(y), dim=-2), handlers.scale(scale=w):
        z = numpyro.sample("z", dist.Bernoulli(jnp.where(top == 1, 0.8, 0.4)))
        with numpyro.plate("members", y.shape[1], dim=-1):
            s = numpyro.sample("s", dist.Bernoulli(jnp.asarray(MOVE)[z, 1]))
            numpyro.sample("y", dist.Normal(mu[s], 1.0), obs=y)


@pytest.mark.long
def test_weighted_groups_are_repeated_groups_with_a_class_above():
    y, w = RNG.normal(size=(4, 3)), np.array([[1], [3], [2], [1]])
    weighted, params = built(groups, y, w * 1.0)
    repeated = built(groups, np.repeat(y, w[:, 0], axis=0), np.ones((w.sum(), 1)))[0]
    each, all_of_them = (
        jax.device_get(
            jax.jit(
                lambda problem: (
                    problem.log_joint(params, {}),
                    marginalization.site_probs(problem.log_factors(params, {})),
                )
            )(problem)
        )
        for problem in (weighted, repeated)
    )
    np.testing.assert_allclose(each[0], all_of_them[0])
    first = np.cumsum(w) - w[:, 0]
    for name in ("top", "z", "s"):
        expected = all_of_them[1][name]
        expected = expected if name == "top" else expected[first]
        np.testing.assert_allclose(each[1][name], expected, rtol=1e-8)
    one = jax.device_get(
        marginalization.sample(weighted.log_factors(params, {}), jax.random.key(1))
    )
    assert all(np.all((v == 0) | (v == 1)) and np.all(v.sum(-1) == 1) for v in one.values())


def series(y, w):
    mu = numpyro.param("mu", jnp.array([0.0, 2.0]))

    def step(before, y_t):
        with numpyro.plate("series", len(w)), handlers.scale(scale=w):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[before]))
            up = numpyro.sample("up", dist.Bernoulli(0.2))
            numpyro.sample("y", dist.Normal(mu[z] + up, 1.0), obs=y_t)
        return z, None

    scan(step, jnp.zeros(len(w), int), y.T)


def around(y, w):
    """The scale outside of the scan, the plate inside."""
    mu = numpyro.param("mu", jnp.array([0.0, 2.0]))

    def step(before, y_t):
        with numpyro.plate("series", len(w)):
            z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[before]))
            up = numpyro.sample("up", dist.Bernoulli(0.2))
            numpyro.sample("y", dist.Normal(mu[z] + up, 1.0), obs=y_t)
        return z, None

    with handlers.scale(scale=w):
        scan(step, jnp.zeros(len(w), int), y.T)


@pytest.mark.long
@pytest.mark.parametrize("model", [series, around])
def test_weighted_series_are_repeated_series(model):
    y, w = RNG.normal(size=(3, 4)), np.array([1, 3, 2])
    weighted, params = built(model, y, w * 1.0)
    repeated, _ = built(model, np.repeat(y, w, axis=0), np.ones(w.sum()))
    found, expected = (float(p.log_joint(params, {})) for p in (weighted, repeated))
    np.testing.assert_allclose(found, expected)
    probs = marginalization.site_probs(weighted.log_factors(params, {}))
    wanted = marginalization.site_probs(repeated.log_factors(params, {}))
    for name in ("z", "up"):
        np.testing.assert_allclose(probs[name], wanted[name][:, np.cumsum(w) - w], rtol=1e-8)
    best = marginalization.most_probable(weighted.log_factors(params, {}))["z"]
    again = marginalization.most_probable(repeated.log_factors(params, {}))["z"]
    np.testing.assert_array_equal(best, again[:, np.cumsum(w) - w])


def latent_alone(y, w):
    mu = numpyro.param("mu", jnp.array([0.0, 2.0]))
    with numpyro.plate("rows", len(y)):
        with handlers.scale(scale=w):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def latent_in_part(y, w):
    mu = numpyro.param("mu", jnp.array([0.0, 2.0]))
    with numpyro.plate("rows", len(y)), handlers.scale(scale=w):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        with handlers.scale(scale=0.5):
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def latent_below(y, w):
    mu = numpyro.param("mu", jnp.array([0.0, 2.0]))
    with numpyro.plate("rows", len(y)):
        with handlers.scale(scale=w):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
        s = numpyro.sample("s", dist.Bernoulli(jnp.asarray(MOVE)[z, 1]))
        with handlers.scale(scale=w):
            numpyro.sample("y", dist.Normal(mu[s], 1.0), obs=y)


def rows_of_a_group(y, w):
    mu = numpyro.param("mu", jnp.array([0.0, 2.0]))
    with handlers.scale(scale=2.0):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
    with numpyro.plate("rows", len(y)), handlers.scale(scale=w):
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


@pytest.mark.parametrize("model", [latent_alone, latent_in_part, latent_below, rows_of_a_group])
def test_a_scale_over_a_part_is_refused(model):
    with pytest.raises(
        ModelError, match=r"Site 'z': the `numpyro.handlers.scale` .*Put one `scale`"
    ):
        log_joint(model, ROWS, 1.0 + COUNTS)


def test_a_scale_over_some_steps_is_refused():
    def model(y, w):
        mu = numpyro.param("mu", jnp.array([0.0, 2.0]))

        def step(before, inputs):
            y_t, w_t = inputs
            with handlers.scale(scale=w_t):
                z = numpyro.sample("z", dist.Categorical(jnp.asarray(MOVE)[before]))
                numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y_t)
            return z, None

        scan(step, 0, (y, w))

    with pytest.raises(ModelError, match=r"Site 'z': the `numpyro.handlers.scale` .*along its"):
        log_joint(model, ROWS, 1.0 * COUNTS)
    same = log_joint(model, ROWS, np.full(N, 2.0)) / log_joint(model, ROWS, np.ones(N))
    np.testing.assert_allclose(same, 2.0)


def test_a_scale_on_the_observations_is_a_power_of_their_density():
    def model(y, w):
        mu = numpyro.param("mu", jnp.array([0.0, 2.0]))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            with handlers.scale(scale=w):
                numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    power = COUNTS[:, None] * norm.logpdf(ROWS[:, None], [0.0, 2.0])
    expected = logsumexp(power + np.log([0.6, 0.4]), axis=1).sum()
    np.testing.assert_allclose(log_joint(model, ROWS, 1.0 * COUNTS), expected)


def test_a_scale_over_a_continuous_latent_is_refused():
    def model(y, w):
        sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
        with numpyro.plate("rows", len(y)), handlers.scale(scale=w):
            a = numpyro.sample("a", dist.Normal(0.0, sd))
            numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    with pytest.raises(
        ModelError, match=r"Site 'a': a `numpyro.handlers.scale` .* Repeat the rows"
    ):
        log_joint(model, ROWS, 1.0 * COUNTS)
    assert np.isfinite(log_joint(model, ROWS, np.ones(N)))


def test_weights_beside_continuous_latents():
    """Rows count `w` times given an effect that all share: nuts and others see the right sum."""

    def model(y, w):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        mu = numpyro.param("mu", jnp.array([0.0, 2.0]))
        with numpyro.plate("rows", len(y)), handlers.scale(scale=w):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("y", dist.Normal(mu[z] + a, 1.0), obs=y)

    problem, params = built(model, ROWS, 1.0 * COUNTS)
    each = norm.logpdf(ROWS[:, None] - 0.3, [0.0, 2.0]) + np.log([0.6, 0.4])
    expected = COUNTS @ logsumexp(each, axis=1) + norm.logpdf(0.3)
    np.testing.assert_allclose(problem.log_joint(params, {"a": jnp.asarray(0.3)}), expected)
    with pytest.raises(ModelError, match=r"Site 'z': .*scale"):
        EM(model, "exact").run(jax.random.key(0), ROWS, 1.0 * COUNTS, progress_bar=False)
