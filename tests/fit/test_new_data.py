"""Fits evaluated on other data, against closed forms and sums written with NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED, load_model
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy import stats
from small_models import POSITIVE

from ppl_em import EM, Constraint, Direct, ModelError, load
from ppl_em.e_step import NUTS, MeanField, Quadrature
from ppl_em.e_step.base import _expectation

RNG = np.random.default_rng(SEED)
GROUP = np.repeat(np.arange(8), 6)
X = RNG.normal(size=48)
Y = 1 + 0.5 * X + RNG.normal(0.0, 1.5, 8)[GROUP] + RNG.normal(size=48)
NEW = {"x": RNG.normal(size=10), "group": np.repeat([0, 1], 5), "y": RNG.normal(size=10), "n": 2}


def fit(model, *args, **kwargs):
    options = {k: kwargs.pop(k) for k in ("e_step", "map_sites", "num_restarts") if k in kwargs}
    em = EM(model, **options)
    return em.run(jax.random.key(SEED), *args, progress_bar=False, **kwargs)


def effects(x, group, y=None, n=8, mask=True):
    """A random intercept."""
    a, b = numpyro.param("a", 0.0), numpyro.param("b", 0.0)
    s = numpyro.param("s", 1.0, constraint=POSITIVE)
    t = numpyro.param("t", 1.0, constraint=POSITIVE)
    with numpyro.plate("groups", n):
        u = numpyro.sample("u", dist.Normal(0.0, t))
    with numpyro.plate("rows", len(x)), handlers.mask(mask=mask):
        numpyro.sample("y", dist.Normal(a + b * x + u[group], s), obs=y)


def by_group(params, x, group, y):
    """Log-densities of the groups of `effects`, multivariate normal."""
    p = {name: float(value) for name, value in params.items()}
    found = []
    for k in np.unique(group):
        own = group == k
        cov = p["s"] ** 2 * np.eye(own.sum()) + p["t"] ** 2
        mean = p["a"] + p["b"] * x[own]
        found.append(stats.multivariate_normal(mean, cov).logpdf(y[own]))
    return np.array(found)


def expected(params):
    return by_group(params, NEW["x"], NEW["group"], NEW["y"])


@pytest.fixture(scope="module")
def fitted():
    return fit(effects, X, GROUP, Y)


def test_other_rows_and_groups(fitted):
    new = fitted.at(**NEW)
    assert new.e_step == "exact" and new.log_likelihood.kind == "exact"
    np.testing.assert_allclose(new.log_likelihood.value, expected(fitted.params).sum(), rtol=1e-12)
    np.testing.assert_allclose(new.log_likelihoods["groups"], expected(fitted.params), rtol=1e-12)
    p = {k: float(v) for k, v in fitted.params.items()}
    residual = NEW["y"] - p["a"] - p["b"] * NEW["x"]
    shrunk = residual.reshape(2, 5).sum(1) / (5 + p["s"] ** 2 / p["t"] ** 2)
    np.testing.assert_allclose(new.posterior.mean()["u"], shrunk, rtol=1e-10)


def test_the_same_data_when_none_are_given(fitted):
    again = fitted.at()
    assert again.log_likelihood == fitted.log_likelihood
    np.testing.assert_allclose(
        again.log_likelihoods["groups"], by_group(fitted.params, X, GROUP, Y)
    )
    np.testing.assert_allclose(
        fitted.at(X, GROUP, Y).log_likelihood.value, again.log_likelihood.value
    )


def test_programs_are_shared_by_data_of_one_shape(fitted):
    fitted.at(**NEW)
    before = _expectation._cache_size()
    fitted.at(**{**NEW, "y": NEW["y"] + 1.0})
    assert _expectation._cache_size() == before


@pytest.mark.parametrize("e_step", ["laplace", "quadrature", MeanField()])
def test_by_another_e_step(fitted, e_step):
    """One Gaussian effect a group: all of these are exact."""
    new = fitted.at(e_step=e_step, **NEW)
    np.testing.assert_allclose(new.log_likelihood.value, expected(fitted.params).sum(), atol=1e-7)
    np.testing.assert_allclose(new.log_likelihoods["groups"], expected(fitted.params), atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "e_step",
    [
        pytest.param(NUTS(), id="nuts"),
        pytest.param(NUTS(schedule="saem"), id="saem", marks=pytest.mark.long),
        pytest.param(MeanField(correct="psis"), id="psis", marks=pytest.mark.long),
    ],
)
def test_by_draws(fitted, e_step):
    new = fitted.at(e_step=e_step, rng_key=jax.random.key(SEED), **NEW)
    found, error = new.log_likelihood.value, new.log_likelihood.mcse
    assert abs(found - expected(fitted.params).sum()) < 5 * error < 0.05
    np.testing.assert_allclose(new.log_likelihoods["groups"], expected(fitted.params), atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "em",
    [
        EM(effects, fixed={"s": 1.2}),
        EM(effects, constraints=[Constraint(lambda p: p["a"] + p["b"], upper=1.0)]),
        EM(effects, constraints={"a": constraints.interval(-3.0, 3.0)}),
        Direct(effects),
        EM(effects, num_restarts=2),
    ],
    ids=["fixed", "constraint", "narrower", "direct", "restarts"],
)
def test_after_other_fits(em):
    result = em.run(jax.random.key(SEED), X, GROUP, Y, progress_bar=False)
    found = result.at(**NEW).log_likelihood.value
    np.testing.assert_allclose(found, expected(result.params).sum(), rtol=1e-9)


def test_masked_rows_do_not_count(fitted):
    seen = np.arange(10) % 3 > 0
    found = fitted.at(**NEW, mask=seen).log_likelihoods["groups"]
    own = by_group(fitted.params, NEW["x"][seen], NEW["group"][seen], NEW["y"][seen])
    np.testing.assert_allclose(found, own, rtol=1e-12)


def test_at_a_boundary():
    """A variance of zero stays one on data that would have it otherwise."""
    level = np.bincount(GROUP, Y) / 6
    result = fit(effects, X, GROUP, Y - 0.97 * level[GROUP])
    assert result.boundary and float(result.params["t"]) == 0.0
    found = result.at(**NEW).log_likelihood.value
    np.testing.assert_allclose(found, expected(result.params).sum(), atol=1e-6)


@pytest.mark.slow
def test_priors_are_left_out():
    def model(y):
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(m, 2.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    result = fit(model, Y, map_sites=["m"])
    np.testing.assert_allclose(
        result.at(NEW["y"]).log_likelihood.value,
        stats.norm.logpdf(NEW["y"], float(result.params["m"]), np.sqrt(5.0)).sum(),
        rtol=1e-12,
    )


@pytest.mark.slow
def test_subsampled_plates_are_whole():
    def model(x, y):
        m = numpyro.param("m", 0.0)
        with numpyro.plate("rows", len(x), subsample_size=3):
            z = numpyro.sample("z", dist.Normal(m, 2.0))
            numpyro.sample("y", dist.Normal(z, 1.0), obs=numpyro.subsample(y, 0))

    result = fit(model, X, Y)
    own = stats.norm.logpdf(NEW["y"], float(result.params["m"]), np.sqrt(5.0))
    np.testing.assert_allclose(result.at(NEW["x"], NEW["y"]).log_likelihoods["rows"], own)


def mixture(y):
    w = numpyro.param("w", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
    m = numpyro.param("m", jnp.array([-1.0, 2.0]))
    s = numpyro.param("s", jnp.array([1.0, 1.5]), constraint=POSITIVE)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(w))
        numpyro.sample("y", dist.Normal(m[z], s[z]), obs=y)


@pytest.mark.slow
def test_scores_and_responsibilities_of_a_mixture():
    """What scikit-learn's `score_samples` and `predict_proba` are: log-densities and shares."""
    rows = np.concatenate([RNG.normal(-2, 0.7, 30), RNG.normal(3, 1, 50)])
    result = fit(mixture, rows)
    new = np.linspace(-4.0, 5.0, 13)
    w, m, s = (np.asarray(result.params[name]) for name in "wms")
    joint = np.log(w) + stats.norm.logpdf(new[:, None], m, s)
    score = np.logaddexp.reduce(joint, axis=1)
    found = result.at(new)
    np.testing.assert_allclose(found.log_likelihoods["rows"], score, atol=1e-12)
    probs = found.posterior.probs()["z"]
    np.testing.assert_allclose(probs, np.exp(joint - score[:, None]), atol=1e-12)
    assert np.array_equal(found.posterior.most_probable()["z"], joint.argmax(1))


def chain(y):
    move = numpyro.param(
        "move", jnp.array([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex
    )
    m = numpyro.param("m", jnp.array([-1.0, 1.0]))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(move[z]))
        numpyro.sample("y", dist.Normal(m[z], 1.0), obs=y)
        return z, None

    scan(step, 0, y)


@pytest.mark.slow
def test_score_and_path_of_a_hidden_markov_model():
    """What hmmlearn's `score`, `predict_proba` and `predict` are, in logarithms and by sums."""
    states = (np.arange(60) // 10) % 2
    result = fit(chain, np.array([-1.5, 1.5])[states] + RNG.normal(size=60))
    new = RNG.normal(0.0, 2.0, 11)
    move, m = np.log(np.asarray(result.params["move"])), np.asarray(result.params["m"])
    paths = (np.arange(2**11)[:, None] >> np.arange(11)) & 1
    before = np.concatenate([np.zeros((2**11, 1), int), paths[:, :-1]], axis=1)
    joint = (move[before, paths] + stats.norm.logpdf(new, m[paths], 1.0)).sum(1)
    total = np.logaddexp.reduce(joint)
    found = result.at(new)
    np.testing.assert_allclose(found.log_likelihood.value, total, rtol=1e-12)
    share = np.exp(joint - total) @ paths
    np.testing.assert_allclose(found.posterior.probs()["z"][:, 1], share, atol=1e-10)
    assert np.array_equal(found.posterior.most_probable()["z"], paths[joint.argmax()])
    assert found.log_likelihoods == {}


@pytest.mark.slow
def test_factor_scores_of_an_item_response_model():
    """Expected abilities (EAP), by Gauss-Hermite rules of 120 nodes."""
    lsat = load_model("lsat")
    data = lsat.load()
    result = fit(lsat.two_parameter, e_step="quadrature", **{k: v[::5] for k, v in data.items()})
    rows = np.array([[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 0, 1]])
    a, d = np.asarray(result.params["a"]), np.asarray(result.params["d"])
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    logits = d + a * nodes[:, None]
    joint = (rows[:, None] * logits - np.logaddexp(0, logits)).sum(-1)
    joint = joint + np.log(weights / weights.sum())
    score = np.logaddexp.reduce(joint, axis=1)
    ability = np.exp(joint - score[:, None]) @ nodes
    columns = {name: rows[:, i] for i, name in enumerate(data)}
    for e_step in (None, Quadrature(num_nodes=40)):
        new = result.at(e_step=e_step, **columns)
        (plate,), (site,) = new.log_likelihoods, new.posterior.mean()
        np.testing.assert_allclose(new.log_likelihoods[plate], score, atol=1e-8)
        np.testing.assert_allclose(new.posterior.mean()[site], ability, atol=1e-8)


@pytest.mark.slow
def test_subjects_of_sleepstudy():
    """BLUPs by their formula; `predict` of lme4 says 254.2, 351.9, 449.6 for subject 308."""
    sleep = load_model("sleepstudy")
    data = sleep.load()
    result = fit(sleep.model, **data)
    p = {k: float(v) for k, v in result.params.items()}
    cross = p["corr"] * p["sd_intercept"] * p["sd_slope"]
    psi = np.array([[p["sd_intercept"] ** 2, cross], [cross, p["sd_slope"] ** 2]])

    def law(days, reaction):
        design = np.stack([np.ones(len(days)), days], axis=1)
        mean = design @ [p["beta0"], p["beta1"]]
        cov = design @ psi @ design.T + p["sigma"] ** 2 * np.eye(len(days))
        blup = psi @ design.T @ np.linalg.solve(cov, reaction - mean)
        return blup, stats.multivariate_normal(mean, cov).logpdf(reaction)

    own = data["Subject"] == 308
    b, _ = law(data["Days"][own], data["Reaction"][own])
    np.testing.assert_allclose(result.posterior.mean()["b"][0], b, atol=1e-6)
    line = p["beta0"] + b[0] + (p["beta1"] + b[1]) * np.array([0, 5, 10])
    np.testing.assert_allclose(line, [254.2, 351.9, 449.6], atol=0.06)
    new = {
        "Days": np.array([0, 1, 2, 3, 0, 5]),
        "Subject": np.array([1, 1, 1, 1, 2, 2]),
        "Reaction": np.array([250.0, 260.0, 300.0, 280.0, 400.0, 500.0]),
    }
    found = result.at(**new)
    for i in range(2):
        own = new["Subject"] == i + 1
        b, value = law(new["Days"][own], new["Reaction"][own])
        np.testing.assert_allclose(found.posterior.mean()["b"][i], b, atol=1e-6)
        np.testing.assert_allclose(found.log_likelihoods["subjects"][i], value, rtol=1e-10)


def by_row(y=None, n=3):
    m = numpyro.param("m", jnp.zeros(n if y is None else len(y)))
    with numpyro.plate("rows", len(m)):
        z = numpyro.sample("z", dist.Normal(m, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def crossed(y, e_step=None):
    numpyro.sample("y", dist.Normal(numpyro.param("m", 0.0), 1.0), obs=y)


@pytest.mark.slow
def test_what_cannot_be_is_refused(fitted, tmp_path):
    rows = fit(by_row, Y[:3])
    with pytest.raises(ModelError, match=r"^Site 'm': the parameter has shape \(3,\) .* \(4,\)"):
        rows.at(Y[:4])
    with pytest.raises(ModelError, match=r"^Site 'y': .* no data in this call .*`predict`"):
        rows.at(None)
    with pytest.raises(ModelError, match=r"^Option `e_step`: found 'best'"):
        fitted.at(e_step="best", **NEW)
    with pytest.raises(ModelError, match=r"^Site 'y': 1 of its observed values are NaN"):
        fitted.at(**{**NEW, "y": np.append(NEW["y"][1:], np.nan)})
    fitted.save(tmp_path / "fit.nc")
    with pytest.raises(ModelError, match=r"^`result.at`: this fit was loaded from a file"):
        load(tmp_path / "fit.nc").at(**NEW)
    named = fit(crossed, Y)
    with pytest.raises(ModelError, match="its argument `e_step` has the name of an option of `at`"):
        named.at(Y)
    assert named.at(Y, None).log_likelihood == named.log_likelihood


@pytest.mark.slow
def test_an_e_step_that_does_not_apply_names_the_site():
    """The fit has one row a group; the new data tie all of them together."""

    def model(y, together=False):
        t = numpyro.param("t", 1.0, constraint=POSITIVE)
        with numpyro.plate("groups", len(y)):
            z = numpyro.sample("z", dist.Normal(0.0, t))
        rate = jnp.exp(jnp.sum(z) + z) if together else jnp.exp(z)
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Poisson(rate), obs=y)

    counts = np.array([0, 3, 1, 7, 2, 5])
    result = fit(model, counts, e_step="quadrature")
    with pytest.raises(ModelError, match=r"^Site 'z': the latents depend on one another"):
        result.at(counts, together=True)
    assert result.at(counts, e_step="laplace", together=True).log_likelihoods == {}
