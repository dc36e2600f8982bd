"""Models with rules for gradients only: the same fits as with all derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.experimental.ode import odeint
from numpyro.distributions import constraints
from scipy.optimize import minimize_scalar

from ppl_em import EM, Direct, ModelError
from ppl_em.problem import build_problem
from ppl_em.util import depth_of, with_all_derivatives


@jax.custom_vjp
def _by_rule(x):
    return jnp.tanh(x)


_by_rule.defvjp(lambda x: (_by_rule(x), x), lambda x, c: (c / jnp.cosh(x) ** 2,))


@jax.custom_vjp
def _by_callback(x):
    shape = jax.ShapeDtypeStruct(jnp.shape(x), x.dtype)
    return jax.pure_callback(np.tanh, shape, x, vmap_method="expand_dims")


def _callback_slope(x, c):
    shape = jax.ShapeDtypeStruct(jnp.shape(x), x.dtype)
    slope = jax.pure_callback(lambda x: 1 / np.cosh(x) ** 2, shape, x, vmap_method="expand_dims")
    return (c * slope,)


_by_callback.defvjp(lambda x: (_by_callback(x), x), _callback_slope)

RULES = {1: _by_callback, 3: _by_rule}
RELATIVE = {1: 1e-6, 3: 1e-11}


def _scalar(rule):
    return lambda at, data: jnp.sum(rule(at["a"]) * data) * jnp.exp(rule(at["b"])) + at["a"] @ data


def _vector(rule):
    return lambda at, data: {"u": rule(at["a"]) * at["b"] + data, "v": jnp.exp(rule(at["b"]))}


def _total(function, at, data):
    return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(at, data)))


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("shape", [_scalar, _vector])
def test_derivatives_of_all_kinds(depth, shape):
    at = {"a": jnp.array([0.3, -1.2, 0.7]), "b": jnp.asarray(0.4)}
    along = {"a": jnp.array([1.0, 0.2, -0.4]), "b": jnp.asarray(-0.6)}
    data = jnp.array([1.0, 2.0, -1.0])
    assert depth_of(lambda *args: _total(shape(RULES[depth]), *args), at, data) == depth
    ours = with_all_derivatives(shape(RULES[depth]), depth)
    plain = shape(jnp.tanh)

    def product(f, along):
        return jax.jvp(jax.grad(f), (at,), (along,))[1]

    def of_products(f, at):
        slopes = jax.jvp(jax.grad(f), (at,), (along,))[1]
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(slopes))

    def all_of(function):
        f = lambda at: _total(function, at, data)  # noqa: E731
        many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), along)
        return {
            "forward": jax.jvp(lambda at: function(at, data), (at,), (along,)),
            "gradient": jax.grad(f)(at),
            "hessian": jax.hessian(f)(at),
            "side by side": jax.vmap(lambda way: product(f, way))(many),
            "third": jax.grad(lambda at: of_products(f, at))(at),
        }

    found, right = jax.jit(lambda: all_of(ours))(), jax.jit(lambda: all_of(plain))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, RELATIVE[depth], 1e-6), found, right)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-13, 1e-13),
        found["gradient"],
        right["gradient"],
    )


def _saturating(y, rule):
    """Counts that level off with a latent of each group."""
    top = numpyro.param("top", 2.0)
    sd = numpyro.param("sd", 0.7, constraint=constraints.positive)
    with numpyro.plate("group", y.shape[1], dim=-1):
        b = numpyro.sample("b", dist.Normal(0.3, sd))
        with numpyro.plate("row", y.shape[0], dim=-2):
            numpyro.sample("y", dist.Poisson(jnp.exp(top * rule(b))), obs=y)


def _counts():
    rng = np.random.default_rng(5)
    return rng.poisson(np.exp(1.5 * np.tanh(0.3 + 0.8 * rng.normal(size=8))), (4, 8))


@pytest.mark.parametrize(
    ("flag", "depth"),
    [
        pytest.param("quadrature", 3, marks=pytest.mark.long),
        pytest.param("laplace", 3, marks=pytest.mark.slow),
        pytest.param("quadrature", 1, marks=pytest.mark.long),
        pytest.param("laplace", 1, marks=pytest.mark.long),
    ],
)
def test_fits_are_the_same(flag, depth):
    y = _counts()
    rules = (lambda x: RULES[depth](x), jnp.tanh)
    ours, plain = (
        EM(_saturating, flag).run(jax.random.key(0), y, rule, progress_bar=False) for rule in rules
    )
    assert ours.status == plain.status
    assert abs(ours.log_likelihood.value - plain.log_likelihood.value) < 1e-6
    for name in ("top", "sd"):
        se = plain.standard_errors()[name]
        assert abs(ours.params[name] - plain.params[name]) < 1e-3 * se
        assert abs(ours.standard_errors()[name] - se) < 1e-4 * se


@pytest.mark.parametrize("algorithm", [EM, Direct])
@pytest.mark.parametrize("depth", [1, 3])
def test_without_latents(algorithm, depth):
    """Its maximum and information by hand: y / n = tanh(a), with the delta method."""

    def model(y):
        a = numpyro.param("a", 0.2)
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(RULES[depth](a), 0.5), obs=y)

    y = np.array([0.2, 0.7, 0.5, 0.4])
    r = algorithm(model, "exact").run(jax.random.key(0), y, progress_bar=False)
    assert r.converged
    assert abs(float(r.params["a"]) - np.arctanh(y.mean())) < 1e-5
    assert abs(r.standard_errors()["a"] - 0.25 / (1 - y.mean() ** 2)) < 1e-6


def test_no_gradient_at_all_is_said():
    def model(y):
        a = numpyro.param("a", 0.2)
        shape = jax.ShapeDtypeStruct((), jnp.result_type(float))
        mean = jax.pure_callback(np.tanh, shape, a)
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    with pytest.raises(ModelError, match="no gradient"):
        build_problem(jax.random.key(0), model, (0.3,), {})


@pytest.mark.slow
def test_a_differential_equation():
    """Decay by `odeint`, against its solution exp(-k t) in closed form."""
    t = np.linspace(0, 3, 8)
    y = np.exp(-0.8 * t) + 0.1 * np.random.default_rng(0).normal(size=8)

    def model(t, y):
        s = numpyro.param("s", 0.3, constraint=constraints.positive)
        k = numpyro.param("k", 1.0, constraint=constraints.positive)
        z = odeint(lambda z, t: -k * z, jnp.array([1.0]), t)[:, 0]
        numpyro.sample("y", dist.Normal(z, s), obs=y)

    def rest(k):
        return np.sum((y - np.exp(-k * t)) ** 2)

    k = minimize_scalar(rest, bounds=(0.1, 3.0), method="bounded", options={"xatol": 1e-9}).x
    s = np.sqrt(rest(k) / 8)
    right = -8 * np.log(s * np.sqrt(2 * np.pi)) - 4
    slope, bend = -t * np.exp(-k * t), t**2 * np.exp(-k * t)
    curvature = np.sum(slope**2 - (y - np.exp(-k * t)) * bend) / s**2
    r = EM(model, "exact").run(jax.random.key(0), t, y, progress_bar=False)
    assert r.converged and abs(r.log_likelihood.value - right) < 1e-6
    assert abs(float(r.params["k"]) - k) < 1e-5 and abs(float(r.params["s"]) - s) < 1e-5
    assert abs(r.standard_errors()["k"] - curvature**-0.5) < 1e-5
