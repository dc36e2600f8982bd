"""Jumps that gradients miss are found, and functions that only look like them are let through."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

from ppl_em import EM, ModelError
from ppl_em.problem import build_problem
from ppl_em.structure import find_components

Y = np.random.default_rng(0).normal(size=20)
GROUP = np.repeat(np.arange(5), 4)

JUMPS = {
    "where": lambda mu, z: jnp.where(z[GROUP] > 0.3, mu, 0.0),
    "floor": lambda mu, z: mu * jnp.floor(5 * z[GROUP]),
    "round beside a slope": lambda mu, z: mu * jnp.round(z[GROUP]) + z[GROUP],
    "digitize": lambda mu, z: mu * jnp.digitize(z[GROUP], jnp.array([-1.0, 0.0, 1.0])),
    "index": lambda mu, z: jnp.arange(3.0)[jnp.clip(z[GROUP].astype(int), 0, 2)] * mu,
    "argsort": lambda mu, z: mu * jnp.argsort(z)[GROUP],
    "stop_gradient": lambda mu, z: mu + jax.lax.stop_gradient(z)[GROUP],
    "straight through": lambda mu, z: mu + (z + jax.lax.stop_gradient(jnp.round(z) - z))[GROUP],
    "branch": lambda mu, z: jax.lax.cond(z[0] > 0, lambda: mu, lambda: 0 * mu) + 0 * Y,
    "far": lambda mu, z: jnp.where(z[GROUP] > 2.5, mu, 0.0),
}

SMOOTH = {
    "linear": lambda mu, z: mu + z[GROUP],
    "ramp": lambda mu, z: mu * jnp.where(z[GROUP] > 0, z[GROUP], 0.0),
    "clip": lambda mu, z: mu * jnp.clip(z, -1, 1)[GROUP],
    "sort": lambda mu, z: mu * jnp.sort(z)[GROUP],
    "mask by data": lambda mu, z: jnp.where(Y > 0, mu + z[GROUP], mu),
    "logsumexp": lambda mu, z: mu + jax.nn.logsumexp(jnp.stack([z[GROUP], 0 * Y]), axis=0),
}


def normal(mean):
    def model(y):
        mu = numpyro.param("mu", 0.3)
        with numpyro.plate("g", 5):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mean(mu, z), 1.0).to_event(1), obs=y)

    return model


def jumps(model, y=Y):
    return build_problem(jax.random.key(0), model, (y,), {})[0].spec.jumps


@pytest.mark.parametrize("name", JUMPS)
def test_found(name):
    assert [step.source for step in jumps(normal(JUMPS[name]))] == ["z"]


@pytest.mark.parametrize("name", SMOOTH)
def test_let_through(name):
    assert not jumps(normal(SMOOTH[name]))


def test_clamps_and_supports_of_numpyro_are_let_through():
    def model(y):
        a = numpyro.param("a", 2.0, constraint=constraints.positive)
        cuts = numpyro.param(
            "cuts", jnp.array([-1.0, 0.0, 1.0]), constraint=dist.constraints.ordered_vector
        )
        with numpyro.plate("g", 5):
            p = numpyro.sample("p", dist.Beta(a, 2.0))
            r = numpyro.sample("r", dist.Gamma(a, 1.0))
            s = numpyro.sample("s", dist.HalfCauchy(a))
            z = numpyro.sample("z", dist.Normal(0.0, s))
        ell = numpyro.sample("ell", dist.LKJCholesky(2, a))
        numpyro.sample("k", dist.OrderedLogistic(z[GROUP], cuts).to_event(1), obs=np.arange(20) % 4)
        numpyro.sample("m", dist.Binomial(9, p[GROUP]).to_event(1), obs=np.arange(20) % 10)
        numpyro.sample("e", dist.Exponential(r[GROUP]).to_event(1), obs=np.abs(y))
        law = dist.MultivariateNormal(jnp.zeros(2), scale_tril=ell)
        numpyro.sample("y", law.expand([10]).to_event(1), obs=y.reshape(10, 2))

    assert not jumps(model)


def test_an_end_of_the_support_of_data_is_found():
    def model(y):
        a = numpyro.param("a", 2.0, constraint=constraints.positive)
        z = numpyro.sample("z", dist.Gamma(a, 1.0))
        numpyro.sample("y", dist.Uniform(0.0, z).expand([20]).to_event(1), obs=y)

    assert [step.source for step in jumps(model, np.abs(Y) / 4)] == ["z"]


def changepoint(y):
    level = numpyro.param("level", jnp.array([0.0, 1.0]))
    when = numpyro.sample("when", dist.Uniform(0, 1))
    mean = jnp.where(jnp.arange(len(y)) < when * len(y), level[0], level[1])
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def test_a_latent_without_any_gradient_is_not_idle():
    problem = build_problem(jax.random.key(0), changepoint, (Y,), {})[0]
    assert problem.spec.idle is None
    assert problem.spec.jumps[0].operation == "lt"


@pytest.mark.parametrize("flag", ["exact", "laplace", "quadrature", "mean_field"])
def test_e_steps_that_go_by_gradients_refuse(flag):
    with pytest.raises(ModelError, match=r"Site 'when'.*`lt`.*changepoint.*nuts"):
        EM(changepoint, flag).run(jax.random.key(0), Y, progress_bar=False)


def test_a_latent_whose_coefficient_starts_at_zero_is_not_idle():
    def model(y):
        b = numpyro.param("b", 0.0)
        z = numpyro.sample("z", dist.Uniform(0, 1))
        numpyro.sample("y", dist.Normal(b * z, 1.0).expand([20]).to_event(1), obs=y)

    assert build_problem(jax.random.key(0), model, (Y,), {})[0].spec.idle is None


def test_what_a_jump_couples_is_not_integrated_apart():
    """The law of `x` depends on the sign of `z`, to which no derivative answers."""

    def model(y):
        loc = numpyro.param("loc", 1.0)
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        x = numpyro.sample("x", dist.Normal(jnp.where(z > 0, loc + 4.0, loc), 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    problem, values = build_problem(jax.random.key(0), model, (4.8,), {})
    points = np.random.default_rng(0).normal(size=(3, 2))
    labels = find_components(problem, problem.unconstrain(values), points, jax.random.key(1))
    np.testing.assert_array_equal(labels, 0)
