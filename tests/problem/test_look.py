"""One compiled look at the log-joint: its numbers, and that no other program looks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.distributions import constraints

from ppl_em.e_step import Laplace
from ppl_em.problem import build_problem, density_and_gradients, look
from ppl_em.problem.terms import terms
from ppl_em.structure import find_blocks, owners

Y = np.array([0.3, -1.2, 2.0, 0.1, 0.7])


def positive(y):
    """Positive latents; those of the first rows touch nothing."""
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Gamma(2.0, 1 / sd))
        free = numpyro.sample("free", dist.HalfNormal(sd).mask(False))
        mean = jnp.sin(z) + jnp.where(jnp.arange(len(y)) < 3, 0.0, free)
        numpyro.sample("y", dist.Normal(mean, sd), obs=y)


def moving(y):
    """The support of one latent begins at another."""
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        low = numpyro.sample("low", dist.Normal(0.0, sd))
        z = numpyro.sample("z", dist.TruncatedNormal(0.0, 1.0, low=low))
        numpyro.sample("y", dist.Normal(z, sd), obs=y)


@jax.custom_vjp
def sine(z):
    return jnp.sin(z)


sine.defvjp(lambda z: (jnp.sin(z), z), lambda z, cotangent: (cotangent * jnp.cos(z),))


def backward_only(y):
    """Its terms have no derivatives in forward mode."""
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, sd))
        numpyro.sample("y", dist.Normal(sine(z), 1.0), obs=y)


@pytest.mark.long
@pytest.mark.parametrize("by_term", [False, True])
@pytest.mark.parametrize("model", [positive, moving])
def test_against_derivatives_one_by_one(model, by_term):
    problem, params = build_problem(jax.random.key(SEED), model, (Y,), {}, by_term=by_term)
    assert (problem.spec.idle is not None) == (model is positive)
    x, rng = problem.unconstrain(params), np.random.default_rng(SEED)
    points, directions = rng.normal(size=(2, 11, problem.num_latents))
    seen = look(problem, x, points, directions)
    np.testing.assert_array_equal(look(problem, x, points).products.shape, (11, 0))

    def whole(u):
        return problem.log_joint_unconstrained(problem.constrain(x), u)

    split = partial(terms, problem, problem.constrain(x))
    for k, (u, direction) in enumerate(zip(jnp.asarray(points), directions, strict=True)):
        value, (by_param, by_latent) = density_and_gradients(problem, x, u)
        np.testing.assert_allclose(seen.density[k], value)
        np.testing.assert_allclose(seen.by_param[k], by_param)
        np.testing.assert_allclose(seen.by_latent[k], by_latent, atol=1e-12)
        product = jax.hessian(whole)(u) @ direction
        np.testing.assert_allclose(seen.products[k], product, atol=1e-9)
        if by_term and model is positive:
            slopes = jax.jvp(split, (u,), (jnp.asarray(direction),))[1]
            np.testing.assert_allclose(seen.slopes[k], slopes, atol=1e-9)
        else:
            assert seen.slopes.shape == (11, 0)


@pytest.mark.parametrize("by_term", [False, True])
def test_everything_looks_by_one_program(by_term):
    compiled, y = [], Y[1:]  # of a length that no other test here has, so nothing is compiled

    def listen(event, duration, fun_name="", **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        problem, params = build_problem(jax.random.key(SEED), positive, (y,), {}, by_term=by_term)
        x = problem.unconstrain(params)
        blocks = find_blocks(problem, x, problem.start, jax.random.key(SEED))
        owner = owners(problem, x, np.asarray(problem.start), blocks.labels)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert blocks.num_blocks == len(y) and owner is not None
    programs = [name for name in compiled if "look" in name or "slopes" in name]
    assert len(programs) == (1 if by_term else 2)


def test_models_with_gradients_only():
    """Slopes by term are found all the same, see `util/by_reverse.py`."""
    problem, params = build_problem(jax.random.key(SEED), backward_only, (Y,), {}, by_term=True)
    assert problem.spec.term_slopes and problem.spec.gradients
    found = Laplace().resolve(jax.random.key(SEED), problem, params)
    assert found.structure.num_blocks == len(Y)
