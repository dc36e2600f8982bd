"""Exact E-steps for latents with gamma, inverse-gamma, beta and Dirichlet conditional laws."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from conjugate_models import CONJUGATE, Case, log_beta, positive
from jax.scipy.special import digamma

from ppl_em import e_step as e_steps
from ppl_em.e_step.exact.not_exact import NotExactError
from ppl_em.posterior import LogGamma, LogitBeta, Product
from ppl_em.problem import Problem, build_problem
from ppl_em.result import LatentPosterior
from ppl_em.util import Static


def table(cases: dict[str, Case]) -> list:
    """Names for `parametrize`; those whose kind others show already are marked long."""
    costly = {"mixed", "multinomial", "frailty", "imputed", "student", "waiting"}
    return [pytest.param(n, marks=[pytest.mark.long] * (n in costly)) for n in cases]


class Setting(NamedTuple):
    """A case as the library sees it, at random values of the unconstrained parameters."""

    case: Case
    problem: Problem
    engine: Any
    here: jax.Array
    posterior: Product
    library: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]


@cache
def setting(name: str) -> Setting:
    case = CONJUGATE[name]
    keys = jax.random.split(jax.random.key(SEED), 4)
    problem, params = build_problem(keys[0], case.model, case.args, {})
    engine = e_steps.Exact().resolve(keys[1], problem, params)
    x = problem.unconstrain(params)
    here = x + 0.4 * jax.random.normal(keys[2], x.shape)
    direction = jax.random.normal(keys[3], x.shape)
    start = engine.init(keys[3], problem, params)

    @jax.jit
    def library(here: jax.Array) -> tuple:
        _, state, first = engine.step(problem, problem.constrain(here), start)

        def q_function(there: jax.Array, here: jax.Array) -> jax.Array:
            posterior = engine.step(problem, problem.constrain(here), state)[0]
            return posterior.expected_log_joint(problem, problem.constrain(there))

        def log_likelihood(x: jax.Array) -> jax.Array:
            return engine.log_likelihood(problem, problem.constrain(x), state)

        def gradient_of_q(x: jax.Array) -> jax.Array:
            return jax.grad(q_function)(x, x)

        gradient, curvature = jax.jvp(jax.grad(log_likelihood), (here,), (direction,))
        fisher, oakes = jax.jvp(gradient_of_q, (here,), (direction,))
        complete = jax.jvp(lambda x: jax.grad(q_function)(x, here), (here,), (direction,))[1]
        posterior, _, info = engine.step(problem, problem.constrain(here), state)
        return posterior, {
            "from_the_start": first.objective,
            "log_likelihood": info.objective,
            "gradient": gradient,
            "curvature": curvature,
            "fisher": fisher,
            "oakes": oakes,
            "complete": complete,
            "direction": direction,
            "entropy": info.objective
            - posterior.expected_log_joint(problem, problem.constrain(here)),
            "by_density": -jnp.mean(jax.vmap(posterior.log_density)(posterior.points())),
        }

    @jax.jit
    def reference(here: jax.Array) -> dict:
        def log_likelihood(x: jax.Array) -> jax.Array:
            return case.log_likelihood(problem.constrain(x), *case.args)

        gradient, curvature = jax.jvp(jax.grad(log_likelihood), (here,), (direction,))
        value = log_likelihood(here)
        return {"log_likelihood": value, "gradient": gradient, "curvature": curvature}

    posterior, by_library = library(here)
    return Setting(
        case, problem, engine, here, posterior, *jax.device_get((by_library, reference(here)))
    )


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", ["counts", pytest.param("binomial", marks=pytest.mark.long)])
def test_louis(name):
    """The observed curvature is that of Q plus the variance of the complete-data score.

    The log-joint is a sum over coordinates here, so that variance is a sum of integrals over one
    coordinate each, which the trapezoidal rule gives to rounding.
    """
    s = setting(name)

    def log_joint(x: jax.Array, u: jax.Array) -> jax.Array:
        return s.problem.log_joint_unconstrained(s.problem.constrain(x), u)

    @jax.jit
    def score_variance(x: jax.Array, center: jax.Array) -> jax.Array:
        def of_coordinate(i: jax.Array) -> jax.Array:
            points = center[i] + jnp.arange(-40.0, 20.0, 0.02)
            us = jax.vmap(lambda value: center.at[i].set(value))(points)
            values, scores = jax.vmap(jax.value_and_grad(log_joint), (None, 0))(x, us)
            return jnp.cov(scores.T, aweights=jax.nn.softmax(values), ddof=0)

        return jnp.sum(jax.lax.map(of_coordinate, jnp.arange(center.size)), axis=0)

    missing = score_variance(s.here, s.posterior.center)
    found = s.library["complete"] + missing @ s.library["direction"]
    assert relative(found, s.reference["curvature"]) < 1e-8


@pytest.mark.parametrize("name", table(CONJUGATE))
def test_log_likelihood_and_its_derivatives(name):
    s = setting(name)
    for found in ("log_likelihood", "from_the_start"):
        assert relative(s.library[found], s.reference["log_likelihood"]) < 1e-11
    assert relative(s.library["gradient"], s.reference["gradient"]) < 1e-10
    assert relative(s.library["curvature"], s.reference["curvature"]) < 1e-8


@pytest.mark.parametrize("name", table(CONJUGATE))
def test_identities_of_q(name):
    """Fisher: the gradient of Q. Oakes: d11 Q + d12 Q. And log Z is Q plus the entropy."""
    s = setting(name)
    assert relative(s.library["fisher"], s.reference["gradient"]) < 1e-8
    assert relative(s.library["oakes"], s.reference["curvature"]) < 1e-8
    assert relative(s.library["entropy"], s.library["by_density"]) < 1e-9


@pytest.mark.parametrize("name", table({k: case for k, case in CONJUGATE.items() if case.means}))
def test_posterior_means(name, rng_key):
    """Means in closed form, which the library knows but for inverse-gamma laws; and by draws."""
    s = setting(name)
    params = s.problem.constrain(s.here)
    latents = LatentPosterior(s.problem, params, s.posterior, rng_key)
    draws, means = latents.sample(rng_key, 4000), latents.mean()
    for site, expected in s.case.means(params, *s.case.args).items():
        assert draws[site].shape == (4000, *np.shape(expected))
        error = np.std(draws[site], axis=0) / np.sqrt(4000)
        assert np.all(np.abs(np.mean(draws[site], axis=0) - expected) < 5 * error)
        if name != "scales":
            np.testing.assert_allclose(means[site], expected, rtol=1e-10)


SHAPES = np.array([0.1, 0.3, 1.0, 2.5, 30.0, 99.0, 101.0, 1e4, 1e8])


def test_gamma_points_and_density():
    rate = 3.0 * jnp.ones(len(SHAPES))
    law = LogGamma(jnp.asarray(SHAPES), rate, Static(np.ones(len(SHAPES))))
    points = law.points()
    np.testing.assert_allclose(jnp.exp(points).mean(0), SHAPES / rate, rtol=1e-13)
    expected = digamma(SHAPES) - jnp.log(rate)
    np.testing.assert_allclose(points.mean(0), expected, rtol=1e-13, atol=1e-14)
    assert np.all(points[0] > points[1])
    for a, u in zip(SHAPES, points[0], strict=True):
        found = LogGamma(jnp.array([a]), jnp.array([3.0]), Static(np.ones(1))).log_density(u)
        expected = dist.Gamma(a, 3.0).log_prob(jnp.exp(u)) + u
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14 * a * np.log(2 + a))
    slope = jax.grad(lambda a: jnp.sum(LogGamma(a, rate, law.sign).points() ** 2))(law.shape)
    assert np.all(np.isfinite(slope))


def test_beta_points_and_density():
    a, b = (jnp.asarray(v.ravel()) for v in np.meshgrid(SHAPES[1:], SHAPES[1:]))
    law = LogitBeta(a, b, Static(np.zeros(a.size)))
    points = law.points()
    log_z, log_rest = jax.nn.log_sigmoid(points), jax.nn.log_sigmoid(-points)
    lost = np.any(np.isnan(points), axis=0)  # 1 - z is lost to rounding
    assert np.all(np.log(a[lost] / b[lost]) > 10) and not lost.all()
    for found, shape in ((log_z, a), (log_rest, b)):
        expected = digamma(shape) - digamma(a + b)
        np.testing.assert_allclose(found.mean(0)[~lost], expected[~lost], rtol=1e-7, atol=1e-14)
    middle = law.center
    z = jax.nn.sigmoid(middle)
    peak = a * jnp.log(z) + b * jax.nn.log_sigmoid(-middle) - log_beta(a, b)
    np.testing.assert_allclose(law.log_density(middle), peak.sum(), rtol=1e-6)


@pytest.mark.parametrize("shape", [-0.5, 0.0, np.nan])
def test_improper_laws_are_not_numbers(shape):
    good, bad, sign = jnp.ones(1), jnp.full(1, shape), Static(np.ones(1))
    laws = [LogGamma(bad, good, sign), LogGamma(good, bad, sign)]
    laws += [LogitBeta(bad, good, sign), LogitBeta(good, bad, sign)]
    for law in laws:
        assert not jnp.isfinite(law.log_density(good)) and not jnp.any(jnp.isfinite(law.points()))


# --- models that must be refused


def lognormal_rows(y):
    """A gamma prior with a likelihood that is not conjugate."""
    a = positive("a", 2.0)
    with numpyro.plate("rows", len(y)):
        v = numpyro.sample("v", dist.Gamma(a, 1.0))
        numpyro.sample("y", dist.Normal(jnp.log(v), 1.0), obs=y)


def coupled(y):
    """Two gamma latents that share a Poisson mean."""
    a = positive("a", 2.0)
    v = numpyro.sample("v", dist.Gamma(a, 1.0))
    w = numpyro.sample("w", dist.Gamma(2.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Poisson(v + w), obs=jnp.round(jnp.abs(y)))


def coupled_weakly(y):
    """A product of two gamma latents: each one is conjugate given the other."""
    a = positive("a", 2.0)
    v = numpyro.sample("v", dist.Gamma(a, 1.0))
    w = numpyro.sample("w", dist.Gamma(2.0, 1.0))
    numpyro.factor("link", -1e-4 * v * w)


def normal_gamma(y):
    mu0 = numpyro.param("mu0", 0.0)
    v = numpyro.sample("v", dist.Gamma(2.0, 1.0))
    mean = numpyro.sample("mean", dist.Normal(mu0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1 / jnp.sqrt(v)), obs=y)


def bilinear(y):
    """Quadratic in the Gaussian latent, whose mean moves the shape of the gamma one."""
    mu0 = numpyro.param("mu0", 0.0)
    z = numpyro.sample("z", dist.Normal(mu0, 1.0))
    v = numpyro.sample("v", dist.Gamma(2.0, 1.0))
    numpyro.factor("link", 0.1 * z * jnp.log(v))


def logit_normal(y):
    a = positive("a", 2.0)
    with numpyro.plate("rows", len(y)):
        p = numpyro.sample("p", dist.Beta(a, 2.0))
        numpyro.sample("y", dist.Normal(p, 1.0), obs=y)


def simplex_rows(y):
    a = positive("a", 2.0)
    p = numpyro.sample("p", dist.Dirichlet(a * jnp.ones(3)))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(p[0] - p[1], 1.0), obs=y)


def improper(y):
    a = numpyro.param("a", 0.2)
    v = numpyro.sample("v", dist.Gamma(2.0, 1.0))
    numpyro.factor("tilt", (a - 3.0) * jnp.log(v))


def at_the_edge(y):
    a = positive("a", 0.01)
    p = numpyro.sample("p", dist.Beta(2.0, a))
    numpyro.sample("y", dist.Bernoulli(p), obs=jnp.array(1))


def curve(y):
    """Nonlinear mixed effects, lognormal latents, as for a drug's concentration."""
    mu = numpyro.param("mu", 0.5)
    sd = positive("sd", 0.5)
    with numpyro.plate("rows", len(y)):
        k = numpyro.sample("k", dist.LogNormal(mu, sd))
        numpyro.sample("y", dist.Normal(10 * jnp.exp(-k * 0.5), 1.0), obs=y)


ROWS = np.array([0.5, -1.2, 2.0, 0.7, 1.1])
REFUSED = {
    "lognormal_rows": (lognormal_rows, "'v'.*not quadratic.*gamma or inverse-gamma.*% *"),
    "coupled": (coupled, "'[vw]'.*independent of the other latents"),
    "coupled_weakly": (coupled_weakly, "'[vw]'.*independent of the other latents"),
    "normal_gamma": (normal_gamma, "'mean'.*not quadratic.*curvature changes"),
    "bilinear": (bilinear, "'v'.*independent of the other latents"),
    "logit_normal": (logit_normal, "'p'.*beta variable"),
    "simplex_rows": (simplex_rows, "'p'.*Dirichlet variable"),
    "improper": (improper, "'v'.*"),
    "at_the_edge": (at_the_edge, "'p'.*edge of its support"),
    "curve": (curve, "'k'.*not quadratic"),
}


REPEATED = ("coupled", "curve", "improper", "bilinear")  # the words of others, or next to them


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n in REPEATED)) for n in REFUSED]
)
def test_refusals(name, rng_key):
    model, words = REFUSED[name]
    problem, params = build_problem(rng_key, model, (ROWS,), {})
    with pytest.raises(NotExactError, match=rf"^Site {words}.*'nuts'"):
        e_steps.Exact().resolve(rng_key, problem, params)
