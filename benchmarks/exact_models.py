"""The problems of `exact.py`: simulated data, a NumPyro model and equal starting values.

A problem is a model of one data array, a start for its parameters under the names that the peers
in `exact_peers.py` translate, and two sizes: one to time, one to run until nothing is to be gained.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

Start = dict[str, np.ndarray]


class Instance(NamedTuple):
    """A model, its arguments, where its parameters start, and names of those that stay there."""

    model: Callable
    args: tuple
    start: Start
    fixed: tuple[str, ...] = ()

    @property
    def data(self) -> np.ndarray:
        """The observations."""
        return np.asarray(self.args[0])


class Case(NamedTuple):
    """How to make an instance of a size, and three sizes.

    One is for timing, one for running to the optimum in at most `budget` iterations, by
    `make_optimum` if that is another function, and one to see quickly that all of it works.
    """

    make: Callable[[int], Instance]
    unit: str
    timed: int
    optimum: int
    quick: int
    budget: int
    make_optimum: Callable[[int], Instance] | None = None


def _start_of(start: Start, name: str, constraint: Any = constraints.real) -> jax.Array:
    return numpyro.param(name, jnp.asarray(start[name]), constraint=constraint)


# --- Gaussian mixture, full covariances


def mixture(size: int, dim: int = 8, components: int = 8) -> Instance:
    """`size` points in `dim` dimensions from `components` overlapping Gaussians."""
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.full(components, 5.0))
    loc = rng.normal(0.0, 1.2, (components, dim))
    root = np.eye(dim) + rng.normal(0.0, 0.3, (components, dim, dim))
    z = rng.choice(components, size, p=weights)
    y = np.empty((size, dim))
    for k in range(components):
        inside = z == k
        y[inside] = loc[k] + rng.normal(size=(inside.sum(), dim)) @ root[k].T
    start = {
        "weights": np.full(components, 1 / components),
        "loc": loc + rng.normal(0.0, 0.3, loc.shape),
        "scale_tril": np.tile(1.5 * np.eye(dim), (components, 1, 1)),
    }

    def model(y):
        weights = _start_of(start, "weights", constraints.simplex)
        loc = _start_of(start, "loc")
        scale_tril = _start_of(start, "scale_tril", constraints.lower_cholesky)
        with numpyro.plate("points", y.shape[0]):
            z = numpyro.sample("z", dist.Categorical(weights))
            law = dist.MultivariateNormal(loc[z], scale_tril=scale_tril[z])
            numpyro.sample("y", law, obs=y)

    return Instance(model, (jnp.asarray(y),), start)


# --- Hidden Markov model, independent Gaussians in every state


def hidden_markov(size: int, dim: int = 4, states: int = 8) -> Instance:
    """`size` time steps of a chain that stays in its state nine times out of ten."""
    rng = np.random.default_rng(2)
    gamma = 0.85 * np.eye(states) + 0.15 * rng.dirichlet(np.ones(states), states)
    loc = rng.normal(0.0, 2.0, (states, dim))
    scale = rng.uniform(0.6, 1.4, (states, dim))
    cumulative, draws = np.cumsum(gamma, axis=1), rng.random(size)
    z = np.zeros(size, int)
    for t in range(1, size):
        z[t] = min(np.searchsorted(cumulative[z[t - 1]], draws[t]), states - 1)
    y = loc[z] + scale[z] * rng.normal(size=(size, dim))
    start = {
        "delta": np.full(states, 1 / states),
        "gamma": 0.5 * np.eye(states) + 0.5 / states,
        "loc": loc + rng.normal(0.0, 0.3, loc.shape),
        "scale": np.full((states, dim), 1.3),
    }

    def model(y):
        delta = _start_of(start, "delta", constraints.simplex)
        gamma = _start_of(start, "gamma", constraints.simplex)
        loc = _start_of(start, "loc")
        scale = _start_of(start, "scale", constraints.positive)
        # The law of the first state is one more row, so that every step has the same table.
        table = jnp.concatenate([gamma, delta[None]])

        def step(previous, y):
            z = numpyro.sample("z", dist.Categorical(table[previous]))
            numpyro.sample("y", dist.Normal(loc[z], scale[z]).to_event(1), obs=y)
            return z, None

        scan(step, states, y)

    return Instance(model, (jnp.asarray(y),), start)


# --- Linear-Gaussian state space, all matrices dense


def state_space(size: int, dim: int = 8, states: int = 4, fixed: tuple = ()) -> Instance:
    """`size` time steps of four states, seen through `dim` correlated outputs."""
    rng = np.random.default_rng(3)
    rotation = np.linalg.qr(rng.normal(size=(states, states)))[0]
    A = rotation @ np.diag(np.linspace(-0.9, 0.9, states)) @ rotation.T
    C = rng.normal(0.0, 0.5, (dim, states))
    R = np.tril(rng.normal(0.0, 0.2, (dim, dim)), -1) + np.eye(dim)
    noise = rng.normal(size=(size, states))
    x = np.empty((size, states))
    x[0] = rng.normal(size=states)
    for t in range(1, size):
        x[t] = A @ x[t - 1] + noise[t]
    y = x @ C.T + rng.normal(size=(size, dim)) @ R.T
    start = {
        "A": 0.5 * np.eye(states),
        "C": C + rng.normal(0.0, 0.1, C.shape),
        "Q": np.eye(states) * (1.0 if "Q" in fixed else 0.8),
        "R": 1.3 * np.eye(dim),
    }

    def model(y):
        A, C = _start_of(start, "A"), _start_of(start, "C")
        Q = _start_of(start, "Q", constraints.lower_cholesky)
        R = _start_of(start, "R", constraints.lower_cholesky)

        def step(x, y):
            x = numpyro.sample("x", dist.MultivariateNormal(A @ x, scale_tril=Q))
            numpyro.sample("y", dist.MultivariateNormal(C @ x, scale_tril=R), obs=y)
            return x, None

        law = dist.MultivariateNormal(jnp.zeros(states), scale_tril=jnp.eye(states))
        first = numpyro.sample("first", law)
        numpyro.sample("y_first", dist.MultivariateNormal(C @ first, scale_tril=R), obs=y[0])
        scan(step, first, y[1:])

    return Instance(model, (jnp.asarray(y),), start, fixed)


def identified_state_space(size: int) -> Instance:
    """The same with known system noise.

    Else the states may be transformed linearly, which hardly changes the likelihood, and EM drifts
    along such directions for many thousand iterations.
    """
    return state_space(size, fixed=("Q",))


# --- Random intercepts and slopes


def random_slopes(size: int, repeats: int = 10) -> Instance:
    """`size` groups of `repeats` observations at the same times."""
    rng = np.random.default_rng(4)
    times = np.linspace(-1.0, 1.0, repeats)
    b = rng.normal(size=(size, 2)) @ np.array([[1.0, 0.0], [0.3, 0.6]]).T
    y = 1.0 + b[:, :1] + (0.5 + b[:, 1:]) * times + rng.normal(0.0, 0.8, (size, repeats))
    start = {"beta": np.zeros(2), "root": np.eye(2), "sigma": np.array(1.0)}

    def model(y):
        beta = _start_of(start, "beta")
        root = _start_of(start, "root", constraints.lower_cholesky)
        sigma = _start_of(start, "sigma", constraints.positive)
        with numpyro.plate("groups", y.shape[0]):
            b = numpyro.sample("b", dist.MultivariateNormal(jnp.zeros(2), scale_tril=root))
            effects = beta + b
            mean = effects[..., :1] + effects[..., 1:] * times
            numpyro.sample("y", dist.Normal(mean, sigma).to_event(1), obs=y)

    return Instance(model, (jnp.asarray(y),), start)


CASES = {
    "mixture": Case(mixture, "points", 1_000_000, 100_000, 5_000, 300),
    "hmm": Case(hidden_markov, "steps", 100_000, 10_000, 2_000, 300),
    "state_space": Case(state_space, "steps", 10_000, 1_000, 100, 2_000, identified_state_space),
    "slopes": Case(random_slopes, "groups", 100_000, 10_000, 1_000, 1_000),
}
