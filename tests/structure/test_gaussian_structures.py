"""Chains and arrows of Gaussian latents, against one dense multivariate normal."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from conftest import SEED
from gaussian_models import CASES, Case, outside

from ppl_em import EM
from ppl_em import e_step as e_steps
from ppl_em.posterior import GaussianArrow, Product
from ppl_em.posterior.gaussian_chain import complement
from ppl_em.problem import Problem, build_problem
from ppl_em.result import LatentPosterior, Status
from ppl_em.structure import Arrow, Blocks, Chain
from ppl_em.util import Static


def table(quick: tuple[str, ...]) -> list:
    """Names for `parametrize`; those that are not quick are marked slow."""
    return [pytest.param(n, marks=[pytest.mark.long] * (n not in quick)) for n in CASES]


QUICK = ("outside",)


class Setting(NamedTuple):
    """A case as the library sees it, at two random values of the unconstrained parameters."""

    case: Case
    problem: Problem
    engine: Any
    here: jax.Array
    posterior: Product
    library: dict[str, np.ndarray]
    reference: dict[str, np.ndarray]


@cache
def resolved(name: str) -> tuple:
    case = CASES[name]
    keys = jax.random.split(jax.random.key(SEED), 2)
    problem, params = build_problem(keys[0], case.model, case.args, {})
    return problem, params, e_steps.Exact().resolve(keys[1], problem, params)


@cache
def setting(name: str) -> Setting:
    case = CASES[name]
    problem, params, engine = resolved(name)
    keys = jax.random.split(jax.random.key(SEED + 1), 3)
    x = problem.unconstrain(params)
    here, there = (x + 0.3 * jax.random.normal(key, x.shape) for key in keys[:2])
    direction = jax.random.normal(keys[2], x.shape)
    state = engine.init(keys[0], problem, params)

    @jax.jit
    def library(problem: Problem, here: jax.Array) -> tuple:
        def q_function(there: jax.Array, here: jax.Array) -> jax.Array:
            posterior = engine.step(problem, problem.constrain(here), state)[0]
            return posterior.expected_log_joint(problem, problem.constrain(there))

        def log_likelihood(x: jax.Array) -> jax.Array:
            return engine.log_likelihood(problem, problem.constrain(x), state)

        def gradient_of_q(x: jax.Array) -> jax.Array:
            return jax.grad(q_function)(x, x)

        posterior, _, info = engine.step(problem, problem.constrain(here), state)
        gradient, curvature = jax.jvp(jax.grad(log_likelihood), (here,), (direction,))
        fisher, oakes = jax.jvp(gradient_of_q, (here,), (direction,))
        return posterior, {
            "log_likelihood": info.objective,
            "gradient": gradient,
            "curvature": curvature,
            "fisher": fisher,
            "oakes": oakes,
            "q": posterior.expected_log_joint(problem, problem.constrain(there)),
        }

    @jax.jit
    def reference(problem: Problem, here: jax.Array) -> dict:
        def log_likelihood(x: jax.Array) -> jax.Array:
            mean, covariance = case.law(problem.constrain(x), *case.args[1:])
            return dist.MultivariateNormal(mean, covariance).log_prob(case.observed)

        def density(u: jax.Array, x: jax.Array) -> jax.Array:
            return problem.log_joint_unconstrained(problem.constrain(x), u)

        gradient, curvature = jax.jvp(jax.grad(log_likelihood), (here,), (direction,))
        zero = jnp.zeros(problem.num_latents)
        covariance = jnp.linalg.inv(-jax.hessian(density)(zero, here))
        mean = covariance @ jax.grad(density)(zero, here)
        hessian = jax.hessian(density)(mean, there)
        return {
            "log_likelihood": log_likelihood(here),
            "gradient": gradient,
            "curvature": curvature,
            "mean": mean,
            "covariance": covariance,
            "hessian": hessian,
            "q": density(mean, there) + 0.5 * jnp.sum(hessian * covariance),
        }

    posterior, found = library(problem, here)
    found, expected = jax.device_get((found, reference(problem, here)))
    return Setting(case, problem, engine, here, posterior, found, expected)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def shape(structure: Blocks | Chain | Arrow) -> tuple[int, ...]:
    if isinstance(structure, Arrow):
        return (*structure.local.value.shape, structure.num_shared)
    return structure.index.value.shape


@pytest.mark.parametrize("name", table((*QUICK, "incomplete")))
def test_the_structure_is_found(name):
    problem, _, engine = resolved(name)
    (part,) = engine.parts
    assert isinstance(part.structure, CASES[name].structure)
    assert shape(part.structure) == CASES[name].shape
    assert len(part.structure.colors) == problem.num_latents


@pytest.mark.parametrize("name", table(QUICK))
def test_log_likelihood_and_its_derivatives(name):
    s = setting(name)
    assert relative(s.library["log_likelihood"], s.reference["log_likelihood"]) < 1e-11
    assert relative(s.library["gradient"], s.reference["gradient"]) < 1e-10
    assert relative(s.library["curvature"], s.reference["curvature"]) < 1e-8


@pytest.mark.parametrize("name", table(QUICK))
def test_identities_of_q(name):
    """Fisher: the gradient of Q. Oakes: d11 Q + d12 Q. And Q at other parameters."""
    s = setting(name)
    assert relative(s.library["fisher"], s.reference["gradient"]) < 1e-8
    assert relative(s.library["oakes"], s.reference["curvature"]) < 1e-8
    assert relative(s.library["q"], s.reference["q"]) < 1e-10


@pytest.mark.parametrize("name", table(QUICK))
def test_points_have_the_moments_that_count(name):
    """Those of all pairs that the log-joint couples; `sd` is exact for the same reason."""
    s = setting(name)
    np.testing.assert_allclose(s.posterior.center, s.reference["mean"], rtol=1e-9, atol=1e-10)
    points = np.asarray(s.posterior.points())
    away = points - s.reference["mean"]
    coupled = np.abs(s.reference["hessian"]) > 1e-10
    found, expected = away.T @ away / len(away), s.reference["covariance"]
    np.testing.assert_allclose(found[coupled], expected[coupled], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(points.mean(axis=0), s.reference["mean"], rtol=1e-9, atol=1e-10)
    params = s.problem.constrain(s.here)
    latents = LatentPosterior(s.problem, params, s.posterior, jax.random.key(SEED))
    exact = s.problem.ravel({k: jnp.asarray(v) for k, v in latents.sd().items()})
    np.testing.assert_allclose(exact, np.sqrt(np.diag(expected)), rtol=1e-9)


@pytest.mark.parametrize("name", table(QUICK))
def test_draws_have_the_posterior_law(name, rng_key):
    """Means, and the variances of random sums, within five Monte Carlo errors."""
    s = setting(name)
    count = 4000
    draws = s.posterior.sample(s.problem, s.problem.constrain(s.here), rng_key, count)
    flat = np.asarray(jax.vmap(s.problem.ravel)(draws))
    mean, covariance = s.reference["mean"], s.reference["covariance"]
    error = np.sqrt(np.diag(covariance) / count)
    assert np.all(np.abs(flat.mean(axis=0) - mean) < 5 * error)
    directions = np.random.default_rng(SEED).normal(size=(len(mean), 10))
    expected = np.einsum("in,ij,jn->n", directions, covariance, directions)
    found = np.mean(((flat - mean) @ directions) ** 2, axis=0)
    assert np.all(np.abs(found / expected - 1) < 5 * np.sqrt(2 / count))


def test_cost_is_linear_in_time():
    """The number of Hessian products, and of points, is that of one step."""
    short = resolved("outside")[2].parts[0].structure
    y = np.random.default_rng(SEED).normal(size=64)
    problem, params = build_problem(jax.random.key(0), outside, (y,), {})
    long = e_steps.Exact().resolve(jax.random.key(1), problem, params).parts[0].structure
    assert shape(short) == (1, 13, 1) and shape(long) == (1, 65, 1)
    assert short.num_colors == long.num_colors == 3
    assert long.cost == pytest.approx(5 * short.cost)


@pytest.mark.parametrize("structure", [Blocks, Chain, Arrow])
def test_pieces_of_a_matrix(structure):
    """Products with the colors determine a matrix of the right pattern, with pads and all."""
    rng = np.random.default_rng(SEED)
    order = rng.permutation(22)
    index = np.full(24, -1)
    index[[*range(2), *range(3, 22), 23]] = order
    pattern = {
        Blocks: Blocks(Static(order.reshape(11, 2))),
        Chain: Chain(Static(index.reshape(2, 4, 3))),
        Arrow: Arrow(Static(order[:18].reshape(6, 3)), Static(order[18:])),
    }[structure]
    allowed = np.zeros((22, 22), bool)
    for _ in range(400):
        screen = pattern.screen(rng)
        allowed |= screen.support[:, None] & screen.allowed
    allowed |= allowed.T
    if structure is Arrow:
        allowed[np.ix_(order[18:], order[18:])] = True
    matrix = rng.normal(size=(22, 22)) * allowed
    matrix += matrix.T
    colors = pattern.colors == np.arange(pattern.num_colors)[:, None]
    pieces = pattern.unpack(jnp.asarray(colors @ matrix))
    vector = rng.normal(size=22)
    np.testing.assert_allclose(pattern.multiply(pieces, jnp.asarray(vector)), matrix @ vector)


def test_shared_coordinates_that_do_not_meet_go_by_one_color(rng_key):
    """Crossed effects: a border with few entries takes few products, and the same law comes out."""
    rng = np.random.default_rng(SEED)
    groups, size, shared = 60, 2, 40
    total = size * groups + shared
    order = rng.permutation(total)
    matrix = np.zeros((total, total))
    for g in range(groups):
        own = np.arange(size * g, size * (g + 1))
        met = size * groups + rng.choice(shared, size=2, replace=False)
        matrix[np.ix_(own, own)] = 0.3
        matrix[np.ix_(own, met)] = rng.normal(size=(size, 2))
        matrix[np.ix_(met, own)] = matrix[np.ix_(own, met)].T
    matrix[np.arange(total), np.arange(total)] = 1 + np.abs(matrix).sum(1)
    back = np.argsort(order)
    matrix = matrix[np.ix_(back, back)]
    whole = Arrow(
        Static(order[: size * groups].reshape(groups, size)), Static(order[size * groups :])
    )

    def products(arrow: Arrow) -> np.ndarray:
        return (arrow.colors == np.arange(arrow.num_colors)[:, None]) @ matrix

    thin = whole.thinned(products(whole) != 0)
    assert whole.num_colors == size + shared
    assert thin.num_colors < size + shared / 2
    for mine, full in zip(thin.unpack(products(thin)), whole.unpack(products(whole)), strict=True):
        np.testing.assert_array_equal(mine, full)
    gradient, u = rng.normal(size=(2, total))
    law = GaussianArrow.around(thin, thin.unpack(products(thin)), jnp.asarray(u), gradient)
    other = GaussianArrow.around(whole, whole.unpack(products(whole)), jnp.asarray(u), gradient)
    mean = u + np.linalg.solve(matrix, gradient)
    np.testing.assert_allclose(law.mean, mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(other.mean, mean, rtol=1e-10, atol=1e-10)
    exact = scipy.stats.multivariate_normal(mean, np.linalg.inv(matrix)).logpdf(u)
    np.testing.assert_allclose(law.log_density(jnp.asarray(u)), exact, rtol=1e-10)
    columns = np.asarray(law.columns())
    near = np.abs(matrix) > 0
    np.testing.assert_allclose(
        (columns.T @ columns)[near], np.linalg.inv(matrix)[near], rtol=1e-8, atol=1e-12
    )
    draws = np.asarray(law.draw(rng_key, 4000)) - mean
    z = draws @ np.linalg.cholesky(matrix)
    np.testing.assert_allclose(z.var(0), 1, atol=6 * np.sqrt(2 / 4000))


def test_complement_and_its_derivative(rng_key):
    rows, change = jax.random.normal(rng_key, (2, 5, 3, 6))

    def gram(rows: jax.Array) -> tuple:
        other = complement(rows)
        return other @ jnp.swapaxes(rows, -1, -2), other @ jnp.swapaxes(other, -1, -2)

    (crossed, own), (d_crossed, d_own) = jax.jvp(gram, (rows,), (change,))
    np.testing.assert_allclose(own, np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-13)
    for zero in (crossed, d_crossed, d_own):
        np.testing.assert_allclose(zero, 0, atol=1e-12)


def test_a_precision_that_is_not_positive_definite_is_not_finite():
    """Nothing is added to make it so: the run ends, and says why."""

    def model(y):
        tilt = numpyro.param("tilt", 1.0)
        x = numpyro.sample("x", dist.GaussianRandomWalk(1.0, num_steps=len(y)))
        numpyro.factor("bent", 2.0 * tilt * jnp.sum(x**2))
        with numpyro.plate("times", len(y)):
            numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    result = EM(model, e_step="exact").run(jax.random.key(SEED), np.zeros(12), progress_bar=False)
    assert result.status is Status.NON_FINITE
