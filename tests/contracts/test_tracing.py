"""The model is traced a fixed number of times, however many steps a run takes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from small_models import POSITIVE

import ppl_em.algorithms.deterministic
import ppl_em.algorithms.maximization
import ppl_em.algorithms.monte_carlo
import ppl_em.algorithms.sampler
from ppl_em import EM, Stopping
from ppl_em.e_step import NUTS, Exact, MeanField
from ppl_em.problem import build_problem

NOISE = np.random.default_rng(40).normal(size=(2, 30))
Y, OTHER = 1.05 * NOISE / NOISE.std(axis=1, keepdims=True)  # little signal: EM is slow

E_STEPS = {
    "exact": Exact(),
    "mean_field": MeanField(num_particles=32),
    "nuts": NUTS(2, num_samples=20, num_warmup=30),
}
SLOW = [pytest.param(name, marks=[pytest.mark.slow] * (name != "exact")) for name in E_STEPS]


class Counted:
    """A slowly converging model that counts how often it is called.

    Models of another `noise` share no programs with it.
    """

    def __init__(self, noise=1.0):
        self.calls, self.noise = 0, noise

    def __call__(self, y):
        self.calls += 1
        sd = numpyro.param("sd", 2.0, constraint=POSITIVE)
        with numpyro.plate("groups", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, sd))
            numpyro.sample("y", dist.Normal(z, self.noise), obs=y)


def run(model, name, y=Y, max_steps=50, key=None, **options):
    em = EM(model, E_STEPS[name], stopping=Stopping(gap=0.0), max_steps=max_steps, **options)
    return em.run(jax.random.key(SEED) if key is None else key, y, progress_bar=False)


@pytest.fixture(scope="module")
def models():
    """One model for each E-step, so that the tests share what is compiled."""
    return {name: Counted() for name in E_STEPS}


@pytest.fixture
def never_settled(monkeypatch):
    """Monte Carlo runs go on as long as `max_steps` lets them."""
    monkeypatch.setattr(ppl_em.algorithms.monte_carlo, "has_settled", lambda *args: False)


@pytest.mark.usefixtures("never_settled")
@pytest.mark.parametrize("name", SLOW)
def test_traces_do_not_grow_with_steps(name, models, monkeypatch):
    model, counts = models[name], []

    def count_calls(place, function):
        original = getattr(place, function)

        def counted(*args):
            out = original(*args)
            counts.append(model.calls)
            return out

        monkeypatch.setattr(place, function, counted)

    count_calls(ppl_em.algorithms.deterministic, "maximization")
    count_calls(ppl_em.algorithms.sampler.Sampler, "em_step")
    program = ppl_em.algorithms.maximization.traced_maximization
    if name == "nuts":
        program = ppl_em.algorithms.sampler._em_step
    compiled = program._cache_size()
    long = run(model, name)
    assert long.num_steps == 50 and len(counts) == 51
    assert set(counts) == {counts[0]}, "the model was traced again after the first step"
    more = program._cache_size() - compiled
    assert more <= 1, "the M-step was compiled more than once"

    fresh = Counted(0.99)
    assert run(fresh, name, max_steps=5).num_steps == 5
    assert fresh.calls == model.calls


@pytest.mark.slow
def test_monte_carlo_compiles_three_programs():
    """Whatever its length. Small ones handle keys and parameters: the model is in none of them."""
    compiled = []

    def listen(event, duration, fun_name="", **kwargs):
        if event.endswith("backend_compile_duration"):
            compiled.append(fun_name.removeprefix("jit(").removesuffix(")"))

    model = Counted(0.98)
    build_problem(jax.random.key(SEED), model, (Y,), {})
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        em = EM(model, E_STEPS["nuts"], max_steps=50)
        result = em.run(jax.random.key(SEED), Y, progress_bar=False)
        assert result.history["phase"][-1] == "polish"
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    large = ["_look", "_em_step", "evaluate"]
    small = ["_constrain", "_unconstrain", "_start_flags", "_threefry_split", "unstack"]
    small += ["_about"]
    assert [name for name in compiled if name in large] == large
    assert [name for name in compiled if compiled.count(name) > 1] == []
    assert set(compiled) - {*large, *small} == set()


@pytest.mark.usefixtures("never_settled")
@pytest.mark.parametrize("name", SLOW)
def test_new_data_of_the_same_shape_reuse_everything(name, models):
    model = models[name]
    first = run(model, name, max_steps=5)
    before = model.calls
    second = run(model, name, OTHER, max_steps=5)
    traced = model.calls - before
    assert not np.isclose(first.params["sd"], second.params["sd"], rtol=1e-6)

    before = model.calls
    build_problem(jax.random.key(SEED), model, (OTHER,), {}, by_term=name == "nuts")
    assert traced == model.calls - before, "more than the host-side inspection"


@pytest.mark.usefixtures("never_settled")
@pytest.mark.parametrize("name", SLOW)
def test_runs_on_one_object_do_not_interfere(name, models):
    em = EM(models[name], E_STEPS[name], stopping=Stopping(gap=0.0), max_steps=5)
    key = jax.random.key(SEED)
    first = em.run(key, Y, progress_bar=False)
    kept = jax.device_get(first.params)
    other = em.run(key, OTHER, init_params={"sd": 0.5}, progress_bar=False)
    again = em.run(key, Y, progress_bar=False)
    old_style = em.run(jax.random.PRNGKey(SEED), Y, progress_bar=False)
    assert not np.array_equal(other.params["sd"], kept["sd"])
    for result in (first, again, old_style):
        np.testing.assert_array_equal(result.params["sd"], kept["sd"])
        assert result.log_likelihood == first.log_likelihood
        np.testing.assert_array_equal(result.history["sd"], first.history["sd"])


def test_concrete_arguments_are_closed_over(rng_key):
    """A model that computes with its arguments' values runs unchanged, on other data too."""

    def model(y, group):
        sd = numpyro.param("sd", 1.0, constraint=POSITIVE)
        levels, index = np.unique(group, return_inverse=True)
        with numpyro.plate("groups", len(levels)):
            z = numpyro.sample("z", dist.Normal(0.0, sd))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(z[index], 1.0), obs=y)

    group = np.repeat(["a", "b", "c"], 10)
    data = [y + np.repeat([-1.0, 0.5, 2.0], 10) for y in (Y, OTHER)]
    results = [EM(model).run(rng_key, y, group, progress_bar=False) for y in data]
    for result, y in zip(results, data, strict=True):
        z = y.reshape(3, 10).mean(axis=1)
        expected = np.sqrt(np.mean(z**2) - 0.1)  # the closed form for balanced groups
        np.testing.assert_allclose(result.params["sd"], expected, rtol=1e-5)


def test_the_density_follows_its_arguments(rng_key):
    """Data are arguments of the compiled program, not constants in it."""
    model = Counted()
    problem, params = build_problem(rng_key, model, (Y,), {})
    log_joint = jax.jit(lambda problem, z: problem.log_joint(params, {"z": z}))
    z = jnp.zeros(30)
    log_joint(problem, z)
    calls = model.calls
    other = log_joint(build_problem(rng_key, model, (OTHER,), {})[0], z)
    expected = dist.Normal(0.0, 1.0).log_prob(OTHER).sum() + dist.Normal(0.0, 2.0).log_prob(z).sum()
    np.testing.assert_allclose(other, expected, rtol=1e-12)
    assert log_joint._cache_size() == 1 and model.calls > calls
