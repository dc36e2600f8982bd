"""Scans whose first step stands alone: `scan(step, None, data)`, or a start of another shape."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from ppl_em import EM, Direct, ModelError
from ppl_em.problem import build_problem

Y = np.array([-1.2, -0.8, 1.1, 0.9, 1.3, -1.0])
MOVE = np.array([[0.8, 0.2], [0.3, 0.7]])
START = np.array([0.6, 0.4])
LEVEL = np.array([-0.5, 0.7])


def _value(model, *args):
    problem, values = build_problem(jax.random.key(0), model, args, {})
    return float(problem.log_joint(problem.constrain(problem.unconstrain(values)), {}))


def _paths(length, first, move, emit):
    """The log of the sum over all paths of states, by brute force."""
    return logsumexp(
        [
            np.log(first[path[0]])
            + sum(np.log(move(t, path[t - 1])[path[t]]) for t in range(1, length))
            + sum(emit(t, path[t]) for t in range(length))
            for path in itertools.product(range(2), repeat=length)
        ]
    )


def _law(state):
    return dist.Categorical(START if state is None else jnp.asarray(MOVE)[state])


def _usual(y):
    level = numpyro.param("level", jnp.asarray(LEVEL))

    def step(state, now):
        state = numpyro.sample("state", _law(state))
        numpyro.sample("y", dist.Normal(level[state], 0.5), obs=now)
        return state, None

    scan(step, None, y)


@pytest.mark.parametrize("length", [1, 2, 6])
def test_first_state_drawn_in_the_step(length):
    y = Y[:length]
    found = _value(_usual, y)
    right = _paths(
        length, START, lambda t, i: MOVE[i], lambda t, k: norm.logpdf(y[t], LEVEL[k], 0.5)
    )
    assert abs(found - right) < 1e-12


def test_state_with_the_outcome_before_and_a_running_count():
    """What is handed on differs from step to step, and starts as None."""

    def model(y):
        level = numpyro.param("level", jnp.asarray(LEVEL))

        def step(carry, now):
            state, before, count = (None, 0.0, 0) if carry is None else carry
            state = numpyro.sample("state", _law(state))
            mean = level[state] + 0.3 * before + 0.1 * count
            numpyro.sample("y", dist.Normal(mean, 0.5), obs=now)
            return (state, now, count + 1), None

        scan(step, None, y)

    def emit(t, k):
        before = Y[t - 1] if t else 0.0
        return norm.logpdf(Y[t], LEVEL[k] + 0.3 * before + 0.1 * t, 0.5)

    right = _paths(6, START, lambda t, i: MOVE[i], emit)
    assert abs(_value(model, Y) - right) < 1e-12


def test_what_the_first_step_hands_on_may_be_another_constant():
    def model(y):
        level = numpyro.param("level", jnp.asarray(LEVEL))

        def step(carry, now):
            state, shift = (None, 0.0) if carry is None else carry
            state = numpyro.sample("state", _law(state))
            numpyro.sample("y", dist.Normal(level[state] + shift, 0.5), obs=now)
            return (state, jnp.asarray(2.0 if carry is None else 3.0)), None

        scan(step, None, y)

    shifts = [0.0, 2.0, 3.0, 3.0, 3.0, 3.0]
    emit = lambda t, k: norm.logpdf(Y[t], LEVEL[k] + shifts[t], 0.5)  # noqa: E731
    right = _paths(6, START, lambda t, i: MOVE[i], emit)
    assert abs(_value(model, Y) - right) < 1e-12


def test_plates_and_a_second_scan():
    """Three chains side by side, which start from nothing, then one that starts from a scalar."""
    y = np.stack([Y, Y[::-1], -Y], axis=1)

    def model(y):
        level = numpyro.param("level", jnp.asarray(LEVEL))

        def step(state, now):
            with numpyro.plate("chains", 3):
                state = numpyro.sample("state", _law(state))
                numpyro.sample("y", dist.Normal(level[state], 0.5), obs=now)
            return state, state

        def other(state, now):
            state = numpyro.sample("other", dist.Categorical(jnp.asarray(MOVE)[state]))
            numpyro.sample("w", dist.Normal(level[state], 0.7), obs=now)
            return state, None

        scan(step, None, y)
        scan(other, 1, y[:4, 0])

    def chain(column):
        emit = lambda t, k: norm.logpdf(y[t, column], LEVEL[k], 0.5)  # noqa: E731
        return _paths(6, START, lambda t, i: MOVE[i], emit)

    emit = lambda t, k: norm.logpdf(y[t, 0], LEVEL[k], 0.7)  # noqa: E731
    second = _paths(4, MOVE[1], lambda t, i: MOVE[i], emit)
    assert abs(_value(model, y) - sum(map(chain, range(3))) - second) < 1e-12


def test_fits_posterior_and_export():
    results = [a(_usual).run(jax.random.key(0), Y, progress_bar=False) for a in (EM, Direct)]
    level = np.asarray(results[0].params["level"])
    emit = lambda t, k: norm.logpdf(Y[t], level[k], 0.5)  # noqa: E731
    right = _paths(6, START, lambda t, i: MOVE[i], emit)
    assert results[0].converged and results[1].converged
    assert abs(results[0].log_likelihood.value - right) < 1e-9
    assert abs(results[1].log_likelihood.value - right) < 1e-7
    last = [
        _paths(6, START, lambda t, i: MOVE[i], lambda t, k: emit(t, k) - 1e9 * (t == 5 and k == 0)),
        right,
    ]
    assert abs(results[0].posterior.probs()["state"][5, 1] - np.exp(last[0] - last[1])) < 1e-9
    assert results[0].to_datatree()["posterior"]["state"].shape[-1] == 6


def test_continuous_state():
    """NumPyro does not run this one: a local level whose first state is drawn in the step."""

    def model(y):
        sd = numpyro.param("sd", 0.7, constraint=dist.constraints.positive)

        def step(state, now):
            mean, spread = (0.3, 2.0) if state is None else (state, sd)
            state = numpyro.sample("state", dist.Normal(mean, spread))
            numpyro.sample("y", dist.Normal(state, 0.5), obs=now)
            return state, None

        scan(step, None, y)

    result = EM(model, "exact").run(jax.random.key(0), Y, progress_bar=False)
    sd = float(result.params["sd"])
    steps = np.minimum.outer(np.arange(6), np.arange(6))
    right = multivariate_normal.logpdf(Y, 0.3 * np.ones(6), 4 + sd**2 * steps + 0.25 * np.eye(6))
    assert abs(result.log_likelihood.value - right) < 1e-9


def test_a_site_of_the_first_step_alone_is_refused():
    def model(y):
        level = numpyro.param("level", jnp.asarray(LEVEL))

        def step(state, now):
            name = "first" if state is None else "state"
            state = numpyro.sample(name, _law(state))
            numpyro.sample("y", dist.Normal(level[state], 0.5), obs=now)
            return state, None

        scan(step, None, y)

    with pytest.raises(ModelError, match="Site 'first': it is in the first step of its `scan`"):
        build_problem(jax.random.key(0), model, (Y,), {})


@pytest.mark.parametrize("where", ["plate", "second scan"])
def test_states_used_after_the_scan_are_refused_by_their_names(where):
    def model(y):
        level = numpyro.param("level", jnp.asarray(LEVEL))

        def step(state, _):
            state = numpyro.sample("state", _law(state))
            return state, state

        def other(before, inputs):
            now, state = inputs
            numpyro.sample("y", dist.Normal(level[state], 0.5), obs=now)
            return before, None

        _, states = scan(step, 0, None, length=len(y))
        if where == "plate":
            with numpyro.plate("time", len(y)):
                numpyro.sample("y", dist.Normal(level[states], 0.5), obs=y)
        else:
            scan(other, 0.0, (y, states))

    with pytest.raises(ModelError, match="Site 'y': it depends on the states 'state' of a `scan`"):
        build_problem(jax.random.key(0), model, (Y,), {})


def test_states_handed_out_and_not_used():
    def model(y):
        level = numpyro.param("level", jnp.asarray(LEVEL))

        def step(state, now):
            state = numpyro.sample("state", _law(state))
            numpyro.sample("y", dist.Normal(level[state], 0.5), obs=now)
            return state, state

        _, states = scan(step, 0, y)
        numpyro.deterministic("path", states)
        numpyro.sample("w", dist.Normal(level.sum(), 1.0), obs=y[0])

    emit = lambda t, k: norm.logpdf(Y[t], LEVEL[k], 0.5)  # noqa: E731
    right = _paths(6, MOVE[0], lambda t, i: MOVE[i], emit) + norm.logpdf(Y[0], LEVEL.sum())
    assert abs(_value(model, Y) - right) < 1e-12


def test_some_states_are_known_and_some_outcomes_masked():
    """By `obs_mask`, and by a mask over what is NaN."""
    known = np.array([True, False, False, True, False, False])
    states, y = np.array([0, 1, 1, 0, 1, 0]), np.where(np.arange(6) == 4, np.nan, Y)

    def model(y, states, known):
        level = numpyro.param("level", jnp.asarray(LEVEL))

        def step(state, inputs):
            now, given, is_known = inputs
            state = numpyro.sample("state", _law(state), obs=given, obs_mask=is_known)
            with numpyro.handlers.mask(mask=~jnp.isnan(now)):
                numpyro.sample("y", dist.Normal(level[state], 0.5), obs=jnp.nan_to_num(now))
            return state, None

        scan(step, None, (y, states, known))

    def emit(t, k):
        seen = 0.0 if np.isnan(y[t]) else norm.logpdf(y[t], LEVEL[k], 0.5)
        return seen - (1e9 if known[t] and k != states[t] else 0.0)

    right = _paths(6, START, lambda t, i: MOVE[i], emit)
    assert abs(_value(model, y, states, known) - right) < 1e-12
