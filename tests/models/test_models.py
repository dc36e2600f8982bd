"""The files in ``models/``: their common interface, and what single models promise."""

import importlib.util
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

from ppl_em.cli.columns import read_csv

TESTS = Path(__file__).resolve().parents[1]
NAMES = [
    "airquality",
    "crossed",
    "earthquakes",
    "eight_schools",
    "epil",
    "faithful",
    "kidney",
    "latent_class",
    "linkage",
    "local_level",
    "lsat",
    "nile",
    "nonlinear_growth",
    "poisson_mixture",
    "pump",
    "seeds",
    "sleepstudy",
    "theoph",
    "two_latents",
    "wine_factors",
    "wine_ordinal",
    "zero_inflated",
]


def load_model(name):
    """Import ``models/<name>.py`` from its path, as ``models/`` is not a package."""
    spec = importlib.util.spec_from_file_location(name, TESTS.parent / "models" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def module(name):
    return load_model(name)


def initial_trace(module, data):
    return handlers.trace(handlers.seed(module.model, jax.random.key(0))).get_trace(**data)


# --- the common interface ---


def test_load_gives_the_arguments_of_the_model(module):
    data = module.load()
    arguments = inspect.signature(module.model).parameters
    takes_all = any(a.kind is a.VAR_KEYWORD for a in arguments.values())
    assert takes_all or set(data) <= set(arguments)
    assert {k for k, a in arguments.items() if a.default is a.empty} - {"items", "columns"} <= set(
        data
    )
    assert all(isinstance(value, np.ndarray) for value in data.values())


def test_load_gives_the_columns_of_the_csv(module, name):
    path = TESTS.parent / "models" / "data" / f"{name}.csv"
    columns = read_csv(str(path), module.model)
    data = module.load()
    assert set(data) == set(columns)
    for column, values in columns.items():
        if values.dtype.kind in "iuf":
            np.testing.assert_array_equal(data[column], values)


def test_simulate_gives_what_load_gives(module):
    real = module.load()
    simulated = module.simulate(jax.random.key(1))
    assert list(simulated) == list(real)
    for key, values in simulated.items():
        assert isinstance(values, np.ndarray)
        assert (values.shape, values.dtype) == (real[key].shape, real[key].dtype), key
        np.testing.assert_array_equal(np.isfinite(values), np.isfinite(real[key]))


def test_simulate_depends_on_the_key_alone(module):
    first, again, other = (module.simulate(jax.random.key(seed)) for seed in (1, 1, 2))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert not all(np.array_equal(first[key], other[key]) for key in first)


def test_simulated_data_enter_the_model(module):
    data = module.simulate(jax.random.key(3), params=module.REFERENCE["params"])
    sites = initial_trace(module, data)
    assert any(site["type"] == "sample" and site["is_observed"] for site in sites.values())


def test_log_joint_is_finite_at_the_initial_parameters(module, name):
    data = module.load()
    sites = initial_trace(module, data)
    start = {
        key: jnp.zeros_like(v) if (v := jnp.asarray(site["value"])).dtype.kind == "i" else v
        for key, site in sites.items()
        if site["type"] in ("param", "sample") and not site.get("is_observed", False)
    }

    def log_joint(start):
        return log_density(module.model, (), data, start)[0]

    # theoph takes its initial values from the data by NumPy, even where they are not needed.
    value = log_joint(start) if name == "theoph" else jax.jit(log_joint)(start)
    assert jnp.isfinite(value)


def test_initial_parameters_satisfy_their_constraints(module):
    for key, site in initial_trace(module, module.load()).items():
        if site["type"] == "param" and "constraint" in site["kwargs"]:
            assert jnp.all(site["kwargs"]["constraint"](site["value"])), key


def test_reference_has_the_parameters_of_the_model(module):
    sites = initial_trace(module, module.load())
    shapes = {key: jnp.shape(s["value"]) for key, s in sites.items() if s["type"] == "param"}
    for part in ("params", "standard_errors"):
        found = {key: np.shape(v) for key, v in module.REFERENCE[part].items()}
        assert found.items() <= shapes.items()
    assert module.REFERENCE["params"]
    assert module.REFERENCE["kind"] in ("exact", "estimate")
    assert module.REFERENCE["source"]


# --- the models given here are the ones the closed forms above belong to ---


def test_pump_log_joint_is_marginal_times_conjugate_posterior():
    module = load_model("pump")
    data, p = module.load(), module.REFERENCE["params"]
    theta = jax.random.gamma(jax.random.key(4), 1.0, data["t"].shape)
    joint, _ = log_density(module.model, (), data, {**p, "theta": theta})
    posterior = dist.Gamma(p["alpha"] + data["x"], p["beta"] + data["t"])
    evidence = joint - posterior.log_prob(theta).sum()
    assert float(evidence) == pytest.approx(module.REFERENCE["log_likelihood"], abs=1e-8)


def test_faithful_log_joint_sums_to_the_mixture_density():
    module = load_model("faithful")
    data, p = module.load(), jax.tree.map(jnp.asarray, module.REFERENCE["params"])
    rows = 7
    few = {key: values[:rows] for key, values in data.items()}
    labels = np.array(np.meshgrid(*[[0, 1]] * rows)).reshape(rows, -1).T

    def log_joint(component):
        return log_density(module.model, (), few, {**p, "component": component})[0]

    summed = jax.scipy.special.logsumexp(jax.jit(jax.vmap(log_joint))(jnp.asarray(labels)))
    y = np.column_stack(list(few.values()))
    laws = dist.MultivariateNormal(p["mean"], p["cov"])
    mixture = dist.MixtureSameFamily(dist.Categorical(p["weights"]), laws)
    assert float(summed) == pytest.approx(float(mixture.log_prob(y).sum()), abs=1e-8)


def test_sleepstudy_log_joint_is_marginal_times_gaussian_posterior():
    # The log joint is quadratic in b, so log p(y) = log p(y, b̂) + (36 log 2π - log det H) / 2 with
    # b̂ one Newton step away from anywhere and H the negative Hessian.
    module = load_model("sleepstudy")
    data, p = module.load(), module.REFERENCE["params"]

    @jax.jit
    def log_joint(flat):
        return log_density(module.model, (), data, {**p, "b": flat.reshape(18, 2)})[0]

    start = jnp.ones(36)
    precision = -jax.jit(jax.hessian(log_joint))(start)
    mode = start + jnp.linalg.solve(precision, jax.jit(jax.grad(log_joint))(start))
    half_log_det = jnp.linalg.slogdet(precision)[1] / 2
    evidence = log_joint(mode) + 18 * jnp.log(2 * jnp.pi) - half_log_det
    assert float(evidence) == pytest.approx(module.REFERENCE["log_likelihood"], abs=1e-8, rel=0)


# --- what single models promise ---


def test_sleepstudy_accepts_strings_and_any_row_order():
    module = load_model("sleepstudy")
    data, p = module.load(), module.REFERENCE["params"]
    b = jax.random.normal(jax.random.key(5), (18, 2))
    order = np.random.default_rng(0).permutation(180)
    shuffled = {key: values[order] for key, values in data.items()}
    shuffled["Subject"] = np.array([f"subject {s}" for s in shuffled["Subject"]])
    expected, _ = log_density(module.model, (), data, {**p, "b": b})
    value, _ = log_density(module.model, (), shuffled, {**p, "b": b})
    assert float(value) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"weights": np.array([0.8, 0.2])},
        {"mean": np.array([[2.0, 80.0], [4.5, 50.0]])},
        {"mean": np.array([[-1.0, 0.0], [-1.0, 90.0]])},
    ],
)
def test_faithful_starts_near_the_two_clusters(dtype, params):
    module = load_model("faithful")
    data = module.simulate(jax.random.key(6), params, size=500)

    @jax.jit
    def start(**data):
        sites = handlers.trace(handlers.seed(module.model, jax.random.key(0))).get_trace(**data)
        return {key: sites[key]["value"] for key in ("weights", "mean", "cov")}

    found = start(**{key: values.astype(dtype) for key, values in data.items()})
    truth = {**module.REFERENCE["params"], **params}
    np.testing.assert_allclose(found["weights"], truth["weights"], atol=0.06)
    sd = np.sqrt(np.diagonal(truth["cov"], axis1=1, axis2=2))
    assert np.all(np.abs(found["mean"] - truth["mean"]) < 0.3 * sd)
    assert np.all(np.linalg.eigvalsh(found["cov"]) > 0)
    assert all(value.dtype == dtype for value in found.values())


def test_simulate_follows_the_parameters_and_the_design():
    key = jax.random.key(7)
    pump = load_model("pump").simulate(key, {"alpha": 400.0, "beta": 100.0}, t=np.full(2000, 5.0))
    assert pump["x"].mean() == pytest.approx(20.0, abs=5 * np.sqrt(21.0 / 2000))
    n = np.full(4000, 50)
    params = {"alpha": np.array([0.5, 0, 0, 0]), "sd": 1e-6}
    seeds = load_model("seeds").simulate(key, params, n=n, x1=0 * n, x2=0 * n)
    assert (seeds["r"] / 50).mean() == pytest.approx(1 / (1 + np.exp(-0.5)), abs=0.006)
    linkage = load_model("linkage").simulate(key, {"pi": 0.2}, total=100_000)
    np.testing.assert_allclose(linkage["count"] / 1e5, [0.55, 0.2, 0.2, 0.05], atol=0.008)
    days, subject = np.tile(np.arange(4), 500), np.repeat(np.arange(500), 4)
    truth = {"beta0": 10.0, "beta1": 2.0, "sd_intercept": 1.0, "sd_slope": 0.5, "sigma": 0.1}
    sleep = load_model("sleepstudy").simulate(key, truth, Days=days, Subject=subject)
    lines = np.polyfit(np.arange(4), sleep["Reaction"].reshape(500, 4).T, 1)
    np.testing.assert_allclose(lines.mean(1), [2.0, 10.0], atol=0.25)
    np.testing.assert_allclose(lines.std(1), [0.5, 1.0], rtol=0.2)
