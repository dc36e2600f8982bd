"""A model with what is to come out, and its marginal likelihood by summing and integrating.

`marginal(case)` runs the model through NumPyro alone. Discrete latents are summed over all their
configurations. Gaussian latents are integrated by the second-order expansion at zero, which for a
quadratic log-joint is exact. Latents with one number a row are integrated by the trapezoid rule
on the unconstrained scale, row by row. What else there is needs a formula with the case.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.flatten_util import ravel_pytree
from jax.scipy.special import logsumexp
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer import init_to_feasible
from numpyro.infer.util import compute_log_probs

CASES: dict[str, "Case"] = {}


@dataclass(frozen=True)
class Case:
    """One model and its verdict."""

    source: str
    """Where NumPyro has a model of this kind: file, and function."""
    model: Callable
    data: tuple = ()
    at_mode: tuple[str, ...] = ()
    """Sample sites that are maximised under their priors, `map_sites`."""
    e_step: Any = "auto"
    verdict: str = "exact"
    """The kind of the log-likelihood; or that chains are bad, UNHEALTHY; or a refusal's pattern."""
    formula: Callable | None = None
    """log of the marginal likelihood, with priors at their modes, from the parameters."""
    same_as: Callable | None = None
    """Another way to write the model, which NumPyro's log-density can be asked of."""
    masked: float = 0.0
    """The log of the number of values of masked discrete latents, which NumPyro sums over."""
    rows: int | None = None
    """Axis of the rows, from the end, if there is one continuous latent in each; 0: one in all."""
    draws: int = 0
    """How many draws of the latents from their law to average over, where all else fails."""
    newton: int = 0
    """Steps of Newton's method to the mode of the latents, for Laplace's approximation."""
    window: tuple[float, float] = (-12.0, 12.0)
    """Between which unconstrained values of such a latent its mass lies."""
    start: dict | None = None
    options: dict = field(default_factory=dict)
    """More options of `EM`."""
    quick: bool = False

    @property
    def refused(self) -> bool:
        return self.verdict not in ("exact", "quadrature", "estimate", "laplace", "UNHEALTHY")


def case(source: str, *data: Any, at_mode: str = "", **options: Any) -> Callable:
    """Register the decorated model, under its own name."""

    def register(model: Callable) -> Callable:
        name = model.__name__
        assert name not in CASES, name
        CASES[name] = Case(source, model, data, tuple(at_mode.split()), **options)
        return model

    return register


def marginal(case: Case, params: dict) -> tuple[Callable, np.ndarray, Callable]:
    """The function of unconstrained parameters, them as a vector, and back to their sites."""
    written, data = case.same_as or case.model, jax.tree.map(jnp.asarray, case.data)
    program = handlers.substitute(handlers.seed(written, 0), params)
    if case.formula is not None:  # what cannot be drawn needs values, too
        program = handlers.substitute(program, substitute_fn=init_to_feasible())
    trace = handlers.trace(program).get_trace(*data)
    supports = {name: _support(trace[name]) for name in params}
    maps = {name: biject_to(supports[name]) for name in params}
    free = {name: jax.tree.map(maps[name].inv, params[name]) for name in params}
    x, unravel = ravel_pytree(jax.tree.map(jnp.asarray, free))

    def to_params(x: jax.Array) -> dict:
        return {name: jax.tree.map(maps[name], value) for name, value in unravel(x).items()}

    if case.formula is not None:
        return lambda x: case.formula(to_params(x), *case.data), x, to_params
    latents = [
        name
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"] and name not in params
        if not isinstance(site["fn"], dist.Delta)
    ]
    discrete = [name for name in latents if trace[name]["fn"].support.is_discrete]
    continuous = [name for name in latents if name not in discrete]
    shapes = {name: jnp.shape(trace[name]["value"]) for name in latents}

    def terms(values: dict, params: dict) -> list[jax.Array]:
        run = handlers.seed(written, 0)
        given = {**values, **params}
        return [*compute_log_probs(run, data, {}, given, sum_log_prob=False)[0].values()]

    def joint(values: dict, params: dict) -> jax.Array:
        return sum(jnp.sum(term) for term in terms(values, params))

    if case.draws:
        return _by_draws(case, written, data, params, latents, to_params), x, to_params
    if case.rows is not None:
        (name,) = continuous
        by_row = _by_row(case, trace[name], shapes[name], lambda v, p: terms({name: v}, p))
        return lambda x: by_row(to_params(x)), x, to_params
    tables = _configurations(trace, discrete, shapes)

    def given_discrete(values: dict, params: dict) -> jax.Array:
        if not continuous:
            return joint(values, params)
        u, back = ravel_pytree({name: jnp.zeros(shapes[name]) for name in continuous})
        function = lambda u: joint({**values, **back(u)}, params)  # noqa: E731
        if case.newton:
            step = lambda u: u - jnp.linalg.solve(jax.hessian(function)(u), jax.grad(function)(u))  # noqa: E731
            u = jax.lax.fori_loop(0, case.newton, lambda _, u: step(u), u)
        value, slope = jax.value_and_grad(function)(u)
        precision = -jax.hessian(function)(u)
        _, logdet = jnp.linalg.slogdet(precision)
        peak = 0.5 * slope @ jnp.linalg.solve(precision, slope)
        return value + peak + 0.5 * len(u) * jnp.log(2 * jnp.pi) - 0.5 * logdet

    def total(x: jax.Array) -> jax.Array:
        params = to_params(x)
        if not discrete:
            return given_discrete({}, params)
        each = jax.lax.map(lambda v: given_discrete(v, params), tables, batch_size=512)
        return logsumexp(each) - case.masked

    return total, x, to_params


def _support(site: dict) -> Any:
    if site["type"] == "param":
        return site["kwargs"].get("constraint", constraints.real)
    return site["fn"].support


def _configurations(trace: dict, names: list[str], shapes: dict) -> dict:
    """All joint values of the discrete sites, each with the configurations in front."""
    choices, owners = [], []
    for name in names:
        support = trace[name]["fn"].support
        law = trace[name]["fn"]
        while hasattr(law, "base_dist"):
            law = law.base_dist
        values = np.unique(np.asarray(law.enumerate_support(expand=False)))
        assert support.is_discrete
        size = int(np.prod(shapes[name], dtype=int))
        choices += [values] * size
        owners += [name] * size
    if not choices:
        return {}
    table = np.array([*itertools.product(*choices)])
    columns = np.array(owners)
    shape = {name: (len(table), *shapes[name]) for name in names}
    return {n: jnp.asarray(table[:, columns == n].reshape(shape[n]).astype(int)) for n in names}


def _by_row(case: Case, site: dict, shape: tuple, terms: Callable) -> Callable:
    """The sum over rows of log of the integral over each row's number."""
    nodes = jnp.linspace(*case.window, 3001)
    transform = biject_to(site["fn"].support)
    axis = case.rows
    assert axis is not None

    def total(params: dict) -> jax.Array:
        def at(node: jax.Array) -> tuple[jax.Array, jax.Array]:
            u = jnp.full(shape, node)
            z = transform(u)
            rest = jnp.zeros(())
            rows = jnp.zeros(shape[axis] if axis else 1)
            for term in terms(z, params):
                if not axis:
                    rows += jnp.sum(term)
                elif term.ndim >= -axis and term.shape[axis] == shape[axis]:
                    moved = jnp.moveaxis(term, axis, -1)
                    rows += jnp.sum(moved.reshape(-1, shape[axis]), axis=0)
                else:
                    rest += jnp.sum(term)
            jacobian = transform.log_abs_det_jacobian(u, z)
            return rows + jnp.reshape(jacobian, -1), rest

        rows, rest = jax.lax.map(at, nodes, batch_size=500)
        return jnp.sum(logsumexp(rows, axis=0) + jnp.log(nodes[1] - nodes[0])) + rest[0]

    return total


def _by_draws(
    case: Case, model: Callable, data: tuple, params: dict, latents: list[str], back: Callable
) -> Callable:
    """log of the mean of the density of all that is not drawn, with the same draws everywhere.

    Its attribute `error` is a function, too: the Monte Carlo error.
    """

    def density(key: jax.Array, params: dict) -> jax.Array:
        run = handlers.substitute(handlers.seed(model, key), params)
        sites = handlers.trace(run).get_trace(*data)
        kept = [s for n, s in sites.items() if s["type"] == "sample" and n not in latents]
        return sum(jnp.sum(_log_density(site)) for site in kept)

    def each(x: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.key(1), case.draws)
        return jax.lax.map(lambda key: density(key, back(x)), keys, batch_size=5000)

    def total(x: jax.Array) -> jax.Array:
        return logsumexp(each(x)) - jnp.log(case.draws)

    def error(x: jax.Array) -> jax.Array:
        logs = each(x)
        return jnp.exp(0.5 * logsumexp(2 * logs) - logsumexp(logs))

    total.error = error
    return total


def _log_density(site: dict) -> jax.Array:
    return site["fn"].log_prob(site["value"], *filter(None, [site["intermediates"]]))


def at_maximum(case: Case, params: dict) -> tuple[float, float, float]:
    """The marginal log-density, its own error, and how many standard errors off the maximum is.

    Second derivatives are differences of gradients, as not all models have them.
    """
    function, x, _ = marginal(case, params)
    value, slope = jax.device_get(jax.jit(jax.value_and_grad(function))(x))
    gradient = jax.jit(jax.grad(function))
    width = 1e-5 * np.maximum(1.0, np.abs(x))
    columns = [
        np.subtract(gradient(x + h * e), gradient(x - h * e)) / (2 * h)
        for h, e in zip(width, np.eye(len(x)), strict=True)
    ]
    information = -0.5 * (np.array(columns) + np.array(columns).T)
    assert np.linalg.eigvalsh(information).min() > 0, information
    covariance = np.linalg.inv(information)
    steps = np.abs(covariance @ slope) / np.sqrt(np.diag(covariance))
    error = float(jax.jit(function.error)(x)) if hasattr(function, "error") else 0.0
    return float(value), error, float(np.max(steps, initial=0.0))
