"""The models of the fuzz. One shape of data each, so that all scenarios share compiled programs."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

GROUPS = 6


def regression(x):
    """Intercept and slope."""
    beta = numpyro.param("beta", jnp.zeros(2))
    return beta[0] + beta[1] * x


def linear(x, group, y):
    """Random intercepts and slopes with a correlation."""
    mean = regression(x)
    sd = numpyro.param("sd", jnp.ones(2), constraint=constraints.positive)
    corr = numpyro.param("corr", 0.0, constraint=constraints.interval(-1.0, 1.0))
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", GROUPS):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    slope = corr * a + jnp.sqrt(1.0 - corr**2) * b
    mean = mean + sd[0] * a[group] + sd[1] * slope[group] * x
    numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def intercepts(x, group, y):
    """Random intercepts."""
    mean = regression(x)
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", GROUPS):
        a = numpyro.sample("a", dist.Normal(0.0, sd))
    numpyro.sample("y", dist.Normal(mean + a[group], sigma), obs=y)


def effect(x, group):
    """Linear predictor with random intercepts."""
    mean = regression(x)
    sd = numpyro.param("sd", 1.0, constraint=constraints.positive)
    with numpyro.plate("groups", GROUPS):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    return mean + sd * a[group]


def logistic(x, group, y):
    """Binary outcomes with random intercepts."""
    numpyro.sample("y", dist.Bernoulli(logits=effect(x, group)), obs=y)


def poisson(x, group, y):
    """Counts with random intercepts."""
    numpyro.sample("y", dist.Poisson(jnp.exp(effect(x, group))), obs=y)


def mixture(y):
    """Two normal components."""
    weights = numpyro.param("weights", jnp.ones(2) / 2, constraint=constraints.simplex)
    mean = numpyro.param("mean", jnp.array([-1.0, 1.0]))
    sd = numpyro.param("sd", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("rows", len(y)):
        k = numpyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(mean[k], sd[k]), obs=y)


def hmm(y):
    """Two hidden states with Poisson counts; the first state has even odds."""
    gamma = numpyro.param("gamma", jnp.ones((2, 2)) / 2, constraint=constraints.simplex)
    rate = numpyro.param("rate", jnp.array([1.0, 2.0]), constraint=constraints.positive)

    def step(carry, row):
        state, t = carry
        law = jnp.where(t == 0, jnp.ones(2) / 2, gamma[state])
        state = numpyro.sample("state", dist.Categorical(law), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Poisson(rate[state]), obs=row)
        return (state, t + 1), None

    scan(step, (0, 0), y)


def state_space(y):
    """A random walk observed with noise; its start is a parameter."""
    start = numpyro.param("start", 0.0)
    sd_level = numpyro.param("sd_level", 1.0, constraint=constraints.positive)
    sd_noise = numpyro.param("sd_noise", 1.0, constraint=constraints.positive)

    def step(level, row):
        level = numpyro.sample("level", dist.Normal(level, sd_level))
        numpyro.sample("y", dist.Normal(level, sd_noise), obs=row)
        return level, None

    scan(step, start, y)
