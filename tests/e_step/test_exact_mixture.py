"""Continuous latents that are Gaussian given discrete ones: exact, or refused."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conditional_models import CASES, REGRESSIONS, UNIT, Case
from conftest import SEED
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import log_density

from ppl_em import EM, ModelError
from ppl_em import e_step as e_steps
from ppl_em.e_step import expectation
from ppl_em.problem import Problem, build_problem
from ppl_em.result import LatentPosterior

QUICK = ("regressions",)


def names(kind: str | None = None) -> list:
    """Cases that have a `kind` of check, for `parametrize`; most are slow."""
    every = [name for name, case in CASES.items() if kind is None or getattr(case, kind)]
    return [pytest.param(n, marks=[pytest.mark.long] * (n not in QUICK)) for n in every]


class Setting(NamedTuple):
    """A case as the library sees it, at two random values of the unconstrained parameters."""

    case: Case
    problem: Problem
    engine: Any
    here: jax.Array
    there: jax.Array
    posterior: Any
    library: dict[str, np.ndarray]


@cache
def setting(name: str) -> Setting:
    case = CASES[name]
    keys = jax.random.split(jax.random.key(SEED), 5)
    problem, params = build_problem(keys[0], case.model, case.args, {})
    engine = e_steps.Exact().resolve(keys[1], problem, params)
    x = problem.unconstrain(params)
    here, there = (x + 0.4 * jax.random.normal(key, x.shape) for key in keys[2:4])
    state = engine.init(keys[4], problem, params)

    @jax.jit
    def library(here: jax.Array, there: jax.Array) -> tuple:
        posterior, _, info = engine.step(problem, problem.constrain(here), state)

        def q_function(x: jax.Array) -> jax.Array:
            return posterior.expected_log_joint(problem, problem.constrain(x))

        def log_likelihood(x: jax.Array) -> jax.Array:
            return engine.log_likelihood(problem, problem.constrain(x), state)

        value, gradient = jax.value_and_grad(log_likelihood)(here)
        return posterior, {
            "objective": info.objective,
            "log_likelihood": value,
            "gradient": gradient,
            "q": q_function(there),
            "q_gradient": jax.grad(q_function)(here),
        }

    posterior, found = library(here, there)
    return Setting(case, problem, engine, here, there, posterior, jax.device_get(found))


@cache
def summed(name: str) -> dict[str, Any]:
    """Configuration by configuration of the discrete sites, with dense Gaussian integrals."""
    s = setting(name)
    configurations = s.case.configurations

    def log_joint(u: jax.Array, x: jax.Array, configuration: dict) -> jax.Array:
        values = {**s.problem.constrain(x), **s.problem.unravel(u), **configuration}
        program = handlers.substitute(s.case.model, data=values)
        return log_density(program, s.case.args, {}, {})[0]

    def gaussian(x: jax.Array, configuration: dict) -> tuple:
        zero = jnp.zeros(s.problem.num_latents)
        gradient = jax.grad(log_joint)(zero, x, configuration)
        precision = -jax.hessian(log_joint)(zero, x, configuration)
        mean = jnp.linalg.solve(precision, gradient)
        value = log_joint(zero, x, configuration) + 0.5 * gradient @ mean
        _, log_det = jnp.linalg.slogdet(precision / (2 * jnp.pi))
        return value - 0.5 * log_det, mean, jnp.linalg.inv(precision)

    def log_likelihood(x: jax.Array) -> jax.Array:
        return jax.nn.logsumexp(jax.vmap(lambda c: gaussian(x, c)[0])(configurations))

    def expected(x: jax.Array, law: tuple, configuration: dict) -> jax.Array:
        _, mean, covariance = law
        curvature = jax.hessian(log_joint)(mean, x, configuration)
        return log_joint(mean, x, configuration) + 0.5 * jnp.sum(curvature * covariance)

    @jax.jit
    def reference(here: jax.Array, there: jax.Array) -> dict:
        laws = jax.vmap(lambda c: gaussian(here, c))(configurations)
        weights = jax.nn.softmax(laws[0])
        terms = jax.vmap(lambda law, c: expected(there, law, c))(laws, configurations)
        mean = weights @ laws[1]
        away = laws[1] - mean
        second = laws[2] + away[:, :, None] * away[:, None, :]
        return {
            "log_likelihood": log_likelihood(here),
            "gradient": jax.grad(log_likelihood)(here),
            "q": jnp.sum(jnp.where(weights > 0, weights * terms, 0.0)),
            "weights": weights,
            "mean": mean,
            "covariance": jnp.tensordot(weights, second, axes=1),
        }

    return jax.device_get(reference(s.here, s.there))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", names())
def test_layout_and_fisher(name):
    """As many states as there should be, and the gradient of Q is that of the likelihood."""
    s = setting(name)
    assert type(s.engine).__name__ == "Conditional"
    assert s.engine.layout.states.num_states == s.case.num_states
    assert s.library["objective"] == pytest.approx(s.library["log_likelihood"], rel=1e-13)
    assert relative(s.library["q_gradient"], s.library["gradient"]) < 1e-8


@pytest.mark.parametrize("name", names("law"))
def test_likelihood_is_a_mixture_of_normals(name):
    s = setting(name)

    @jax.jit
    def law(x: jax.Array) -> tuple:
        def value(x: jax.Array) -> jax.Array:
            return s.case.law(s.problem.constrain(x), *s.case.args)

        return jax.value_and_grad(value)(x)

    value, gradient = law(s.here)
    np.testing.assert_allclose(s.library["log_likelihood"], value, rtol=1e-12)
    assert relative(s.library["gradient"], gradient) < 1e-10


@pytest.mark.long
@pytest.mark.parametrize("name", ["regressions", "factor_analysers", "missing", "positive"])
def test_hessian(name):
    """Standard errors come from second derivatives of the likelihood."""
    s = setting(name)

    def by_library(x: jax.Array) -> jax.Array:
        return s.engine.log_likelihood(s.problem, s.problem.constrain(x), s.posterior.center)

    def by_law(x: jax.Array) -> jax.Array:
        return s.case.law(s.problem.constrain(x), *s.case.args)

    found, expected = (jax.jit(jax.hessian(f))(s.here) for f in (by_library, by_law))
    assert relative(found, expected) < 1e-9


@pytest.mark.parametrize("name", names("sites"))
def test_sum_over_all_configurations(name):
    """Likelihood and its gradient, Q elsewhere, moments and responsibilities."""
    s, r = setting(name), summed(name)
    np.testing.assert_allclose(s.library["log_likelihood"], r["log_likelihood"], rtol=1e-11)
    np.testing.assert_allclose(s.library["q"], r["q"], rtol=1e-11)
    assert relative(s.library["gradient"], r["gradient"]) < 1e-10
    latents = LatentPosterior(
        s.problem, s.problem.constrain(s.here), s.posterior, jax.random.key(0)
    )
    means, sds, probs = latents.mean(), latents.sd(), latents.probs()
    expected = s.problem.unravel(r["mean"]), s.problem.unravel(np.sqrt(np.diag(r["covariance"])))
    for site in s.problem.spec.latents:
        np.testing.assert_allclose(means[site.name], expected[0][site.name], atol=1e-11)
        np.testing.assert_allclose(sds[site.name], expected[1][site.name], rtol=1e-10)
    for site, (shape, size) in s.case.sites.items():
        indicator = s.case.configurations[site][..., None] == np.arange(size)
        found = np.tensordot(r["weights"], indicator, axes=1)
        assert probs[site].shape == (*shape, size)
        np.testing.assert_allclose(probs[site], found, atol=1e-12)
        np.testing.assert_allclose(means[site], found @ np.arange(size), atol=1e-11)


@pytest.mark.parametrize(
    "name", ["contaminated", pytest.param("row_outliers", marks=pytest.mark.long)]
)
def test_draws(name, rng_key):
    """Moments of continuous draws, frequencies of discrete ones, and what both have in common."""
    s, r, count = setting(name), summed(name), 4000
    latents = LatentPosterior(s.problem, s.problem.constrain(s.here), s.posterior, rng_key)
    draws, probs = latents.sample(rng_key, count), latents.probs()
    (site,) = s.case.sites
    z = np.asarray(draws["z"])
    assert np.all(np.abs(z.mean(0) - r["mean"]) < 4.5 * z.std(0) / np.sqrt(count))
    spread = np.diag(r["covariance"])
    square = (z - r["mean"]) ** 2
    assert np.all(np.abs(square.mean(0) - spread) < 4.5 * square.std(0) / np.sqrt(count))
    chosen = np.asarray(draws[site])
    error = np.sqrt(probs[site][..., 1] * probs[site][..., 0] / count)
    assert np.all(np.abs(chosen.mean(0) - probs[site][..., 1]) < 4.5 * error)
    if s.case.num_states == 2:  # both together: E[s z] = Pr(s = 1) E[z given s = 1]
        expected = s.posterior.weights[1] * s.posterior.means[1, :, 0]
        product = chosen * z
        assert np.all(np.abs(product.mean(0) - expected) < 4.5 * product.std(0) / np.sqrt(count))


def too_many(y):
    """A class for every row of long data: 2^rows states in one block."""
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(y)):
        k = numpyro.sample("k", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(mu[k] + z, 1.0), obs=y)


def not_quadratic(y):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("groups", len(y)):
        k = numpyro.sample("k", dist.Bernoulli(0.4))
        z = numpyro.sample("z", dist.Normal(mu[k], 1.0))
        numpyro.sample("y", dist.Poisson(jnp.exp(z)), obs=jnp.ones(len(y)))


def quadratic_in_one_state(y):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("groups", len(y)):
        k = numpyro.sample("k", dist.Categorical(jnp.array([1.0 - 1e-9, 1e-9])))
        z = numpyro.sample("z", dist.Normal(mu[k], 1.0))
        numpyro.sample("y", dist.Normal(jnp.where(k == 0, z, z**2), 1.0), obs=y)


def coupled(y):
    """The law of a sum over the plate."""
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("groups", len(y)):
        k = numpyro.sample("k", dist.Bernoulli(0.4))
        z = numpyro.sample("z", dist.Normal(mu[k], 1.0))
    numpyro.sample("total", dist.Normal(jnp.sum(z), 1.0), obs=y[0])


def switching(y):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))

    def step(level, row):
        k = numpyro.sample("k", dist.Bernoulli(0.4))
        level = numpyro.sample("level", dist.Normal(level + mu[k], 1.0))
        numpyro.sample("y", dist.Normal(level, 1.0), obs=row)
        return level, None

    scan(step, 0.0, y)


REFUSED = {  # id: (site, words, model, number of data)
    "too_many": ("k", r"1,024 joint states; at most 64.*max_states", too_many, 10),
    "far_too_many": ("k", r"about 10\^90 joint states", too_many, 300),
    "not_quadratic": ("z", "given the discrete latents.*not quadratic", not_quadratic, 4),
    "one_state": ("z", "given the discrete latents.*not quadratic", quadratic_in_one_state, 4),
    "coupled": ("z", "not independent from cell to cell", coupled, 4),
    "switching": ("k", "`scan`.*every path of states", switching, 5),
}


COSTLY = ("one_state", "coupled")


@pytest.mark.parametrize(
    "case", [pytest.param(n, marks=[pytest.mark.long] * (n in COSTLY)) for n in REFUSED]
)
def test_refusals(case, rng_key):
    site, words, model, count = REFUSED[case]
    y = np.linspace(-1.0, 1.0, count)
    problem, params = build_problem(rng_key, model, (y,), {})
    with pytest.raises(ModelError, match=f"Site '{site}': .*{words}.*'nuts'"):
        e_steps.Exact().resolve(rng_key, problem, params)


@pytest.mark.long
def test_the_bound_on_states_can_be_raised(rng_key):
    y = np.linspace(-1.0, 1.0, 7)
    problem, params = build_problem(rng_key, too_many, (y,), {})
    engine = e_steps.Exact(max_states=128).resolve(rng_key, problem, params)
    assert engine.layout.states.num_states == 128


@pytest.mark.long
def test_apart_from_each_other(rng_key):
    """A continuous latent that the discrete ones do not touch needs no joint state."""

    def model(y, w):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        tau = numpyro.param("tau", 1.0, constraint=dist.constraints.positive)
        z = numpyro.sample("z", dist.Normal(0.0, tau))
        numpyro.sample("w", dist.Normal(z, 1.0), obs=w)
        with numpyro.plate("rows", len(y)):
            k = numpyro.sample("k", dist.Bernoulli(0.4))
            numpyro.sample("y", dist.Normal(mu[k], 1.0), obs=y)

    y, w = np.linspace(-1.0, 1.0, 100), 0.7
    problem, params = build_problem(rng_key, model, (y, w), {})
    engine = e_steps.Exact().resolve(rng_key, problem, params)
    x, start = problem.unconstrain(params), engine.init(rng_key, problem, params)
    posterior, _, info = expectation(engine, problem, x, start)
    terms = dist.Normal(jnp.array([-1.0, 1.0]), 1.0).log_prob(y[:, None]) + np.log([0.6, 0.4])
    expected = jnp.sum(jax.nn.logsumexp(terms, 1)) + dist.Normal(0.0, np.sqrt(2.0)).log_prob(w)
    np.testing.assert_allclose(info.objective, expected, rtol=1e-12)
    np.testing.assert_allclose(posterior.probs["k"], jax.nn.softmax(terms, 1), rtol=1e-10)


@pytest.mark.long
def test_fit(rng_key):
    """EM climbs to the maximum of the hand-written likelihood, with its standard errors."""
    rng = np.random.default_rng(SEED)
    t = rng.normal(size=(5, 30))
    c = rng.random(30) < 0.4
    y = np.where(c, -1.0 + t, 1.0 - t) + 0.8 * rng.normal(size=30) + 0.5 * rng.normal(size=t.shape)
    result = EM(REGRESSIONS.model, e_step="exact").run(rng_key, y, t, progress_bar=False)
    assert result.converged and result.e_step == "exact" and result.log_likelihood.kind == "exact"
    assert np.all(np.diff(result.history["objective"]) > -1e-9)
    x, unravel = ravel_pytree(result.params)
    scale = np.sqrt(
        np.diag(np.linalg.inv(-jax.hessian(lambda x: REGRESSIONS.law(unravel(x), y, t))(x)))
    )
    score = jax.grad(lambda x: REGRESSIONS.law(unravel(x), y, t))(x)
    assert np.all(np.abs(score * scale) < 1e-2)
    errors = ravel_pytree(result.standard_errors())[0]
    np.testing.assert_allclose(errors, scale, rtol=1e-3)
    assert np.mean((result.posterior.probs()["c"][:, 1] > 0.5) == c) > 0.9
    assert UNIT(result.params["share"])
