"""Chains of order 2 and 3, `scan(..., history=2)`, and states that count after the scan."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.ops.indexing import Vindex
from scipy.special import logsumexp
from scipy.stats import norm

from ppl_em import EM, ModelError
from ppl_em.problem import build_problem

MOVE = np.random.default_rng(5).dirichlet(np.ones(2), (2, 2, 2))
"""From three states in turn, the oldest first, to the next."""
LEVEL = np.array([-1.0, 1.0])
Y = np.array([-1.2, 0.9, 1.1, -0.8, 1.3])


def _value(model, *args):
    problem, values = build_problem(jax.random.key(0), model, args, {})
    return float(problem.log_joint(problem.constrain(problem.unconstrain(values)), {}))


def _chain(order, count=0, seen_after=False):
    """A chain of this order, `count` of them in a plate, and an outcome of its last states."""

    def model(y, outcome):
        scale = numpyro.param("scale", 0.8)
        plate = numpyro.plate("chains", count) if count else contextlib.nullcontext()
        zero = jnp.zeros(count, int) if count else 0

        def step(carry, now):
            states, t = carry
            with plate:
                probs = Vindex(jnp.asarray(MOVE))[*(0,) * (3 - order), *states]
                state = numpyro.sample("state", dist.Categorical(probs))
                numpyro.sample("y", dist.Normal(scale * jnp.asarray(LEVEL)[state], 1.0), obs=now)
            return ((*states[1:], state), t + 1), None

        (states, _), _ = scan(step, ((zero,) * order, 0), y, history=order)
        if seen_after:
            mean = sum((k + 1.0) * state for k, state in enumerate(states))
            with plate:
                numpyro.sample("outcome", dist.Normal(mean, 1.0), obs=outcome)

    return model


def _paths(order, y, outcome, seen_after):
    """The log-density of every path, by brute force."""
    found = {}
    for path in itertools.product(range(2), repeat=len(y)):
        states = (*(0,) * order, *path)
        value = sum(norm.logpdf(y, 0.8 * LEVEL[list(path)]))
        for t in range(len(y)):
            value += np.log(MOVE[*(0,) * (3 - order), *states[t : t + order]][path[t]])
        if seen_after:
            value += norm.logpdf(outcome, sum((k + 1) * s for k, s in enumerate(states[-order:])))
        found[path] = value
    return found


@pytest.mark.parametrize("seen_after", [False, True])
@pytest.mark.parametrize(
    ("order", "length"),
    [(2, 5), *(pytest.param(*c, marks=pytest.mark.long) for c in ((1, 1), (1, 4), (2, 1), (3, 5)))],
)
def test_log_likelihood(order, length, seen_after):
    y = Y[:length]
    right = logsumexp([*_paths(order, y, 1.3, seen_after).values()])
    assert _value(_chain(order, 0, seen_after), y, 1.3) == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("order", [2, pytest.param(3, marks=pytest.mark.long)])
def test_chains_in_a_plate(order):
    y, outcome = np.stack([Y, Y[::-1]], axis=1), np.array([1.3, -0.2])
    right = sum(logsumexp([*_paths(order, y[:, i], outcome[i], True).values()]) for i in range(2))
    assert _value(_chain(order, 2, True), y, outcome) == pytest.approx(right, rel=1e-12)


@pytest.mark.long
def test_posterior():
    """Probabilities, draws and the most probable path, of a fit."""
    result = EM(
        _chain(2, 0, True),
        max_steps=1,
        constraints={"scale": dist.constraints.interval(0.799, 0.801)},
    )
    result = result.run(jax.random.key(0), Y, 1.3, progress_bar=False)
    scale = float(result.params["scale"])
    paths = {
        path: value
        + sum(norm.logpdf(Y, scale * LEVEL[list(path)]) - norm.logpdf(Y, 0.8 * LEVEL[list(path)]))
        for path, value in _paths(2, Y, 1.3, True).items()
    }
    weights = np.exp(np.array([*paths.values()]) - logsumexp([*paths.values()]))
    one = weights @ np.array([*paths])
    np.testing.assert_allclose(result.posterior.probs()["state"][:, 1], one, atol=1e-9)
    best = max(paths, key=paths.get)
    np.testing.assert_array_equal(result.posterior.most_probable()["state"], best)
    draws = result.posterior.sample(jax.random.key(1), 4000)["state"]
    assert np.max(np.abs(draws.mean(0) - one)) < 5 * 0.5 / np.sqrt(4000)
    both = weights @ np.array([path[0] * path[2] for path in paths])
    assert np.mean(draws[:, 0] * draws[:, 2]) == pytest.approx(both, abs=5 * 0.5 / np.sqrt(4000))


def test_memory_that_is_not_announced():
    def model(y):
        scale = numpyro.param("scale", 0.8)

        def step(carry, now):
            before, last = carry
            state = numpyro.sample("state", dist.Categorical(jnp.asarray(MOVE)[0, before, last]))
            numpyro.sample("y", dist.Normal(scale * state, 1.0), obs=now)
            return (last, state), None

        scan(step, (0, 0), y)

    with pytest.raises(ModelError, match=r"more than 1 step before.*history=2"):
        _value(model, Y)


def test_a_carry_with_axes_of_its_own():
    """A state as a row of indicators has an axis that would be taken for one of states."""

    def model(y):
        scale = numpyro.param("scale", 0.8)

        def step(carry, now):
            before, last = carry
            probs = before @ jnp.asarray(MOVE)[0, 0] * 0.5 + last @ jnp.asarray(MOVE)[1, 1] * 0.5
            state = numpyro.sample("state", dist.Categorical(probs))
            numpyro.sample("y", dist.Normal(scale * state, 1.0), obs=now)
            return (last, jax.nn.one_hot(state, 2)), None

        scan(step, (jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0])), y, history=2)

    with pytest.raises(ModelError, match=r"arrays with axes of their own"):
        _value(model, Y)


def test_an_earlier_state_is_refused_outside():
    def model(y):
        scale = numpyro.param("scale", 0.8)

        def step(last, now):
            state = numpyro.sample("state", dist.Categorical(jnp.asarray(MOVE)[0, 0, last]))
            numpyro.sample("y", dist.Normal(scale * state, 1.0), obs=now)
            return state, state

        _, states = scan(step, 0, y)
        numpyro.sample("outcome", dist.Normal(states[0], 1.0), obs=0.3)

    with pytest.raises(ModelError, match=r"Site 'outcome': it depends on the states 'state'"):
        _value(model, Y)
