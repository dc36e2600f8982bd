"""Every E-step with every M-step keeps the two contracts. A new method is one more row."""

import pickle
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conditional_models import CASES as CONDITIONAL
from conftest import SEED
from conjugate_models import CONJUGATE
from numpyro.infer.autoguide import AutoMultivariateNormal
from skeleton_draws import SIR
from skeleton_grid import Grid
from skeleton_m_step import Uphill
from small_models import CASES
from test_skeletons import Y as FEW
from test_skeletons import model as single

from ppl_em import e_step as e_steps
from ppl_em import m_step as m_steps
from ppl_em.algorithms.maximization import maximization
from ppl_em.e_step import Strength, expectation
from ppl_em.posterior.log_likelihood import KINDS
from ppl_em.problem import Problem, build_problem

E_STEPS = {  # name: (model, configuration, the engine it resolves to)
    "enumeration": ("mixture", e_steps.Exact(), "Enumeration"),
    "gaussian": ("intercept", e_steps.Exact(), "Continuous"),
    "conjugate": ("counts", e_steps.Exact(), "Continuous"),
    "conditional": ("contaminated", e_steps.Exact(), "Conditional"),
    "laplace": ("intercept", e_steps.Laplace(), "Laplace"),
    "quadrature": ("intercept", e_steps.Quadrature(), "Quadrature"),
    "mean_field": ("intercept", e_steps.MeanField(num_particles=64), "MeanField"),
    "full_rank": (
        "intercept",
        e_steps.MeanField(AutoMultivariateNormal, num_particles=64),
        "MeanField",
    ),
    "corrected": ("intercept", e_steps.MeanField(correct="psis", num_draws=128), "Corrected"),
    "svi": (
        "intercept",
        e_steps.MeanField(mode="stochastic", num_particles=64, num_steps=20),
        "StochasticGuide",
    ),
    "nuts": ("intercept", e_steps.NUTS(2, num_samples=20, num_warmup=50), "NUTS"),
    "skeleton_grid": ("single", Grid(101), "Grid"),
    "skeleton_draws": ("intercept", SIR(2, num_samples=20, num_proposals=200), "SIR"),
}
M_STEPS = {
    "newton": m_steps.Newton(),
    "lbfgs": m_steps.LBFGS(),
    "gem": m_steps.Newton(max_steps=1),
    "gradient": m_steps.Gradient(),
    "scipy": m_steps.Scipy(),
    "slsqp": m_steps.Scipy("SLSQP"),
    "simplex": m_steps.Scipy("Nelder-Mead"),
    "skeleton": Uphill(0.1),
}
KINDS_OF_E_STEPS = ("enumeration", "gaussian", "laplace", "nuts")
PAIRS = [  # every E-step with the first M-steps, the others with one E-step of each kind
    pytest.param(e, m, marks=[pytest.mark.long] * (m != "newton" and e not in KINDS_OF_E_STEPS))
    for e in E_STEPS
    for m in M_STEPS
    if m in ("newton", "lbfgs", "gem") or e in KINDS_OF_E_STEPS
]
GENERALIZED = ("gem", "gradient", "skeleton")


class Setting(NamedTuple):
    problem: Problem
    params: dict
    x: jax.Array
    engine: Any
    state: Any
    posterior: Any
    next_state: Any
    info: Any


@cache
def problem_of(model: str) -> tuple[Problem, dict]:
    if model == "single":
        return build_problem(jax.random.key(SEED), single, (FEW,), {})
    case = {**CASES, **CONJUGATE, **CONDITIONAL}[model]
    return build_problem(jax.random.key(SEED), case.model, case.args, {})


@cache
def setting(name: str) -> Setting:
    model, configuration, _ = E_STEPS[name]
    problem, params = problem_of(model)
    keys = jax.random.split(jax.random.key(SEED + 1))
    engine = configuration.resolve(keys[0], problem, params)
    state = engine.init(keys[1], problem, params)
    x = problem.unconstrain(params)
    return Setting(problem, params, x, engine, state, *expectation(engine, problem, x, state))


def assert_equal_trees(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(_data(a), _data(b))


def _data(leaf: Any) -> np.ndarray:
    is_key = jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def shapes(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)), tree
    )


@pytest.mark.parametrize("name", E_STEPS)
def test_e_step_contract(name):
    s = setting(name)
    assert type(s.engine).__name__ == E_STEPS[name][2]
    assert s.engine.kind in KINDS and isinstance(s.engine.stochastic, bool)
    assert s.engine.strength in Strength and isinstance(s.engine.is_function, bool)
    assert s.engine.stochastic == s.posterior.by_draws
    assert s.info._fields and all(jnp.shape(value) == () for value in s.info)
    assert s.engine.stochastic or jnp.isfinite(s.info.objective)
    assert isinstance(s.engine.describe(s.info), str)
    assert shapes(s.next_state) == shapes(s.state), "a state that changes type compiles again"
    for tree in (s.state, s.posterior, s.info):
        leaves, structure = jax.tree.flatten(tree)
        assert all(isinstance(leaf, jax.Array) for leaf in leaves)
        assert_equal_trees(jax.tree.unflatten(structure, leaves), tree)


@pytest.mark.parametrize("name", E_STEPS)
def test_posterior_contract(name, rng_key):
    s = setting(name)
    draws = s.posterior.sample(s.problem, s.params, rng_key, 7)
    assert {k: v.shape for k, v in draws.items()} == {
        site.name: (7, *site.shape) for site in s.problem.spec.latents
    }
    q = s.posterior.expected_log_joint(s.problem, s.params)
    assert q.shape == () and jnp.isfinite(q)
    if name == "enumeration":  # the entropy of discrete latents is not negative
        assert q < s.info.objective


@pytest.mark.parametrize("name", E_STEPS)
def test_pickling(name):
    s = setting(name)
    for configuration in (E_STEPS[name][1], s.engine):
        again = pickle.loads(pickle.dumps(configuration))
        assert again == configuration and hash(again) == hash(configuration)
    posterior, info = pickle.loads(pickle.dumps((s.posterior, s.info)))
    assert_equal_trees((posterior, info), (s.posterior, s.info))


@pytest.mark.parametrize("name", M_STEPS)
def test_pickling_of_m_steps(name):
    again = pickle.loads(pickle.dumps(M_STEPS[name]))
    assert again == M_STEPS[name] and hash(again) == hash(M_STEPS[name])


@pytest.mark.parametrize(
    "name",
    [
        "enumeration",
        "gaussian",
        "conjugate",
        "conditional",
        "laplace",
        "quadrature",
        "mean_field",
        "full_rank",
        "corrected",
    ],
)
def test_vmap_over_parameters(name):
    """A batch of fits, as in restarts or a bootstrap: the same as one by one."""
    s = setting(name)
    batch = s.x + 0.1 * jnp.arange(2)[:, None]

    def objective(x: jax.Array) -> jax.Array:
        return s.engine.step(s.problem, s.problem.constrain(x), s.state)[2].objective

    found = jax.jit(jax.vmap(objective))(batch)
    expected = [expectation(s.engine, s.problem, x, s.state)[2].objective for x in batch]
    np.testing.assert_allclose(found, jnp.stack(expected), rtol=1e-9)


@pytest.mark.long
def test_vmap_over_keys():
    """Independent NUTS runs in one program."""
    s = setting("nuts")

    def run(key: jax.Array) -> jax.Array:
        state = s.engine.init(key, s.problem, s.params)
        return s.engine.step(s.problem, s.params, state)[0].draws

    draws = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(SEED), 2))
    assert draws.shape == (2, 2, 20, s.problem.num_latents)
    assert jnp.all(jnp.isfinite(draws)) and not jnp.allclose(draws[0], draws[1])


@pytest.mark.parametrize(("e_name", "m_name"), PAIRS)
def test_m_step_never_lowers_q(e_name, m_name):
    s, m_step = setting(e_name), M_STEPS[m_name]
    assert m_step.resolve(s.x.size) == m_step
    state = m_step.init(s.x)
    for key in jax.random.split(jax.random.key(SEED), 3):
        x = s.x + 0.7 * jax.random.normal(key, s.x.shape)
        out = maximization(m_step, s.problem, x, x, s.posterior, state)
        assert out.x.shape == x.shape and out.x.dtype == x.dtype
        assert jax.tree.structure(out.state) == jax.tree.structure(state)
        assert all(jnp.shape(value) == () for value in out.info)
        before, after = (_q(s.posterior, s.problem, point) for point in (x, out.x))
        rounding = 1e-13 * (1 + abs(before))
        assert after > before - rounding
        np.testing.assert_allclose([out.info.q_start, out.info.q_end], [before, after], rtol=1e-12)
        if m_name not in GENERALIZED:
            again = maximization(m_step, s.problem, out.x, x, s.posterior, out.state)
            assert again.info.q_end - after < 1e-6, "the first call did not maximise Q"


@jax.jit
def _q(posterior: Any, problem: Problem, x: jax.Array) -> jax.Array:
    return posterior.expected_log_joint(problem, problem.constrain(x))


OBJECTIVES = {
    "at_maximum": (lambda x: -jnp.sum(x**2), [0.0, 0.0]),
    "saddle": (lambda x: x[0] ** 2 - x[1] ** 2 - 0.1 * x[0] ** 4, [1e-3, 1.0]),
    "rosenbrock": (lambda x: -100 * (x[1] - x[0] ** 2) ** 2 - (1 - x[0]) ** 2, [-1.2, 1.0]),
    "edge_of_support": (lambda x: jnp.sum(jnp.log(x) - 50 * x), [3.0, 1e-3]),
    "cliff": (lambda x: jnp.where(x[0] > 1.0, -jnp.inf, x[0] - x[1] ** 2), [0.9, 1.0]),
    "flat": (lambda x: 0.0 * jnp.sum(x), [1.0, 2.0]),
    "badly_scaled": (lambda x: -1e8 * (x[0] - 1) ** 2 - 1e-4 * (x[1] - 1) ** 2, [0.0, 0.0]),
    "unbounded": (lambda x: jnp.sum(jnp.exp(x)), [0.0, 0.0]),
}


@pytest.mark.parametrize("m_name", M_STEPS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_m_step_on_hard_objectives(name, m_name):
    objective, start = OBJECTIVES[name]
    x = jnp.array(start)
    m_step = M_STEPS[m_name]
    if isinstance(m_step, m_steps.HostMStep):
        function = jax.jit(jax.value_and_grad(objective) if m_step.with_gradient else objective)
        found = m_step.search(function, np.asarray(x), m_step.init(x), m_steps.Region(None, None))
        new_x, _, info = found
    else:
        new_x, _, info = jax.jit(lambda x: m_step.step(objective, x, m_step.init(x)))(x)
    assert jnp.all(jnp.isfinite(new_x)), new_x
    assert objective(new_x) >= objective(x)
    assert info.q_end >= info.q_start
