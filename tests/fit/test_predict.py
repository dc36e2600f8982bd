"""Predictions, against predictive laws in closed form; coverage of their intervals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy import stats
from small_models import POSITIVE

from ppl_em import EM, Constraint, ModelError, load
from ppl_em.e_step import NUTS, MeanField

RNG = np.random.default_rng(SEED)
GROUP = np.repeat(np.arange(8), 6)
X = RNG.normal(size=48)
Y = 1 + 0.5 * X + RNG.normal(0.0, 1.5, 8)[GROUP] + RNG.normal(size=48)
COUNT = 4000


def fit(model, *args, **kwargs):
    options = {k: kwargs.pop(k) for k in ("e_step", "map_sites", "fixed") if k in kwargs}
    em = EM(model, **options)
    return em.run(jax.random.key(SEED), *args, progress_bar=False, **kwargs)


def drawn(result, *args, seed=SEED, **kwargs):
    """Draws of `y`, (draw, rows)."""
    tree = result.predict(jax.random.key(seed), *args, **kwargs)
    values = tree["posterior_predictive"]["y"]
    return values.values.reshape(-1, *values.shape[2:])


def check_moments(draws, mean, sd):
    """Within five Monte Carlo errors of a law that is normal, or nearly."""
    count = len(draws)
    assert np.max(np.abs(draws.mean(0) - mean) / sd) < 5 / np.sqrt(count)
    assert np.max(np.abs(draws.std(0) / sd - 1)) < 5 / np.sqrt(2 * count)


def effects(x, group, y=None, n=8):
    """A random intercept."""
    a, b = numpyro.param("a", 0.0), numpyro.param("b", 0.0)
    s = numpyro.param("s", 1.0, constraint=POSITIVE)
    t = numpyro.param("t", 1.0, constraint=POSITIVE)
    with numpyro.plate("groups", n):
        u = numpyro.sample("u", dist.Normal(0.0, t))
    with numpyro.plate("rows", len(x)):
        mean = numpyro.deterministic("mean", a + b * x + u[group])
        numpyro.sample("y", dist.Normal(mean, s), obs=y)


@pytest.fixture(scope="module")
def fitted():
    return fit(effects, X, GROUP, Y)


NEW_X, NEW_GROUP = np.array([0.0, 2.0, -1.0]), np.array([0, 3, 7])


def given_params(params):
    """Means and standard deviations of new rows of the same groups, and of new groups."""
    p = {k: float(v) for k, v in params.items()}
    residual = np.bincount(GROUP, Y - p["a"] - p["b"] * X)
    precision = 1 / p["t"] ** 2 + 6 / p["s"] ** 2
    line = p["a"] + p["b"] * NEW_X
    same = line + (residual / p["s"] ** 2 / precision)[NEW_GROUP]
    return (same, np.sqrt(1 / precision + p["s"] ** 2)), (line, np.hypot(p["t"], p["s"]))


@pytest.mark.parametrize("groups", ["same", "new"])
def test_at_the_estimates(fitted, groups):
    draws = drawn(fitted, NEW_X, NEW_GROUP, groups=groups, uncertainty=False, num_samples=COUNT)
    check_moments(draws, *given_params(fitted.params)[groups == "new"])


@pytest.mark.parametrize("groups", ["same", "new"])
def test_with_uncertain_parameters(fitted, groups):
    """Moments averaged over an independent sample of parameters, normal on the scale of x."""
    p = fitted.params
    names = sorted(p)
    jacobian = np.array([1.0 if k in "ab" else float(p[k]) for k in names])  # of exp
    cov = fitted.covariance().sel(parameter=names, parameter_=names).values
    center = [float(p[k]) if k in "ab" else np.log(float(p[k])) for k in names]
    xs = RNG.multivariate_normal(center, cov / jacobian / jacobian[:, None], 20_000)
    moments = []
    for x in xs:
        values = dict(zip(names, x, strict=True))
        values |= {k: np.exp(values[k]) for k in "st"}
        mean, sd = given_params(values)[groups == "new"]
        moments.append((mean, mean**2 + sd**2))
    first, second = np.mean(moments, axis=0)
    draws = drawn(fitted, NEW_X, NEW_GROUP, groups=groups, num_samples=COUNT)
    assert np.all(np.sqrt(second - first**2) > 1.005 * given_params(p)[groups == "new"][1])
    sd = np.sqrt(second - first**2)
    assert np.max(np.abs(draws.mean(0) - first) / sd) < 5 / np.sqrt(COUNT)
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.08)  # of a law with longer tails


def test_groups_and_dimensions(fitted):
    tree = fitted.predict(jax.random.key(SEED), X, GROUP, num_samples=40)
    group = tree["posterior_predictive"]
    assert list(tree.children) == ["posterior_predictive"] and set(group.data_vars) == {"y", "mean"}
    assert group["y"].dims == ("chain", "draw", "rows") and group["y"].shape == (4, 10, 48)
    assert drawn(fitted, num_samples=7).shape == (7, 48)  # the arguments of the fit
    assert np.array_equal(drawn(fitted, num_samples=7), drawn(fitted, X, GROUP, Y, num_samples=7))


@pytest.mark.slow
def test_what_is_held_stays():
    result = fit(effects, X, GROUP, Y, fixed={"b": 0.5})
    tree = result.predict(jax.random.key(SEED), np.array([0.0, 1.0]), np.zeros(2, int))
    mean = tree["posterior_predictive"]["mean"].values
    np.testing.assert_allclose(mean[..., 1] - mean[..., 0], 0.5, rtol=1e-9)


@pytest.mark.slow
def test_constraints_hold_for_every_draw():
    """Two means of two rows each, which are in order by less than their errors."""

    def model(y):
        a, b = numpyro.param("a", 0.0), numpyro.param("b", 1.0)
        mean = numpyro.deterministic("mean", jnp.stack([a, a, b, b]))
        with numpyro.plate("rows", 4):
            numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    order = Constraint(lambda p: p["b"] - p["a"], lower=0.0)
    em = EM(model, constraints={"order": order})
    result = em.run(jax.random.key(SEED), np.array([0.1, -0.1, 0.4, 0.2]), progress_bar=False)
    mean = result.predict(jax.random.key(SEED))["posterior_predictive"]["mean"].values
    assert np.min(mean[..., 2] - mean[..., 0]) >= 0 and np.std(mean[..., 0]) > 0.3


def test_a_variance_at_zero_stays():
    level = np.bincount(GROUP, Y) / 6
    result = fit(effects, X, GROUP, Y - 0.97 * level[GROUP])
    assert result.boundary
    tree = result.predict(jax.random.key(SEED), np.zeros(8), np.arange(8))
    mean = tree["posterior_predictive"]["mean"].values
    assert np.max(np.ptp(mean, axis=-1)) < 1e-3 < np.std(mean[..., 0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "e_step",
    [
        "laplace",
        pytest.param("quadrature", marks=pytest.mark.long),
        pytest.param(NUTS(), id="nuts", marks=pytest.mark.long),
        pytest.param(MeanField(), id="mean_field", marks=pytest.mark.long),
    ],
)
def test_after_other_e_steps(e_step):
    result = fit(effects, X, GROUP, Y, e_step=e_step)
    draws = drawn(result, NEW_X, NEW_GROUP, uncertainty=False, num_samples=COUNT)
    mean, sd = given_params(result.params)[0]
    assert np.max(np.abs(draws.mean(0) - mean)) < 0.1
    np.testing.assert_allclose(draws.std(0), sd, rtol=0.08)
    wide = drawn(result, NEW_X, NEW_GROUP)
    assert np.max(np.abs(wide.mean(0) - mean)) < 0.25
    assert np.all(wide.std(0) > 0.95 * sd)


@pytest.mark.long
def test_chains_of_a_sampler_follow_the_parameters():
    """Counts whose effects NUTS draws, for each value of the parameters by a few transitions."""

    def model(y):
        m = numpyro.param("m", 0.0)
        t = numpyro.param("t", 1.0, constraint=POSITIVE)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Normal(m, t))
            numpyro.sample("y", dist.Normal(z, 0.7), obs=y)

    y = np.array([-2.0, -1.0, 0.5, 1.0, 3.0, 0.0])
    exact, sampled = (fit(model, y, e_step=e_step) for e_step in ("exact", "nuts"))
    one, other = (drawn(r, num_samples=1000) for r in (exact, sampled))
    assert np.max(np.abs(one.mean(0) - other.mean(0)) / one.std(0)) < 0.25
    np.testing.assert_allclose(one.std(0), other.std(0), rtol=0.2)


def chain(y, length=None):
    move = numpyro.param(
        "move", jnp.array([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex
    )
    m = numpyro.param("m", jnp.array([-1.0, 1.0]))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(move[z]))
        numpyro.sample("y", dist.Normal(m[z], 1.0), obs=y)
        return z, None

    scan(step, 0, y, length=length)


@pytest.mark.slow
def test_discrete_states_go_on_beyond_the_end():
    """Smoothed states for the steps with data, then a forecast from the filtered last one."""
    states = (np.arange(60) // 10) % 2
    result = fit(chain, np.array([-1.5, 1.5])[states] + RNG.normal(size=60))
    move, m = np.asarray(result.params["move"]), np.asarray(result.params["m"])
    probs = list(result.posterior.probs()["z"])
    for _ in range(5):
        probs.append(probs[-1] @ move)
    mean = np.array(probs) @ m
    sd = np.sqrt(np.array(probs) @ m**2 - mean**2 + 1)
    draws = drawn(result, None, length=65, uncertainty=False, num_samples=COUNT)
    assert draws.shape == (COUNT, 65)
    check_moments(draws, mean, sd)
    with pytest.raises(ModelError, match=r"^Site 'z': the latents have shape \(60,\) .* \(40,\)"):
        result.predict(jax.random.key(SEED), None, length=40)


def walk(y, length=None):
    """A local level, of continuous states."""
    q = numpyro.param("q", 0.5, constraint=POSITIVE)
    r = numpyro.param("r", 1.0, constraint=POSITIVE)

    def step(level, y):
        level = numpyro.sample("level", dist.Normal(level, q))
        numpyro.sample("y", dist.Normal(level, r), obs=y)
        return level, None

    scan(step, 0.0, y, length=length)


@pytest.mark.long
def test_continuous_states_go_on_beyond_the_end():
    result = fit(walk, np.cumsum(RNG.normal(0.0, 0.8, 50)) + RNG.normal(size=50))
    q, r = float(result.params["q"]), float(result.params["r"])
    level, sd = result.posterior.mean()["level"][-1], result.posterior.sd()["level"][-1]
    ahead = np.arange(1, 5)
    draws = drawn(result, None, length=54, uncertainty=False, num_samples=COUNT)[:, -4:]
    check_moments(draws, level, np.sqrt(sd**2 + ahead * q**2 + r**2))


@pytest.mark.slow
def test_steps_that_the_fit_did_not_have():
    """A chain written as a loop: later steps are sites of their own."""

    def model(y, length):
        q = numpyro.param("q", 0.5, constraint=POSITIVE)
        level = 0.0
        for t in range(length):
            level = numpyro.sample(f"level{t}", dist.Normal(level, q))
            numpyro.sample(f"y{t}", dist.Normal(level, 1.0), obs=None if y is None else y[t])

    y = np.array([0.5, 2.0, 3.0, 2.5, 4.0])
    result = fit(model, y, 5)
    options = {"uncertainty": False, "num_samples": COUNT}
    tree = result.predict(jax.random.key(SEED), None, 7, **options)["posterior_predictive"]
    assert {*tree.data_vars} == {*(f"y{t}" for t in range(7)), "level5", "level6"}
    last, sd = result.posterior.mean()["level4"], result.posterior.sd()["level4"]
    sd = np.sqrt(sd**2 + 2 * float(result.params["q"]) ** 2 + 1)
    check_moments(tree["y6"].values.reshape(-1, 1), last, sd)


@pytest.mark.slow
def test_components_of_rows_are_those_of_the_fit():
    """Each row of the fit again, from the component that it probably has; new rows from any."""

    def mixture(y):
        w = numpyro.param("w", jnp.array([0.4, 0.6]), constraint=constraints.simplex)
        m = numpyro.param("m", jnp.array([-1.0, 2.0]))
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(w))
            numpyro.sample("y", dist.Normal(m[z], 1.0), obs=y)

    y = np.concatenate([RNG.normal(-2, 1, 20), RNG.normal(2, 1, 30)])
    result = fit(mixture, y)
    w, m = np.asarray(result.params["w"]), np.asarray(result.params["m"])

    def moments(probs):
        return probs @ m, np.sqrt(probs @ m**2 - (probs @ m) ** 2 + 1)

    options = {"uncertainty": False, "num_samples": COUNT}
    check_moments(drawn(result, **options), *moments(result.posterior.probs()["z"]))
    check_moments(drawn(result, np.zeros(3), groups="new", **options), *moments(w))
    with pytest.raises(ModelError, match=r"^Site 'z': .* shape \(50,\) .* \(3,\)"):
        result.predict(jax.random.key(SEED), np.zeros(3))


def test_masked_outcomes_are_drawn_too():
    def model(y, seen):
        m = numpyro.param("m", 0.0)
        with numpyro.plate("rows", len(y)), handlers.mask(mask=seen):
            numpyro.sample("y", dist.Normal(m, 1.0), obs=y)

    result = fit(model, np.where(X > 0, X, np.nan), X > 0)
    mean = float(result.params["m"])
    check_moments(drawn(result, uncertainty=False, num_samples=COUNT), mean, 1.0)
    check_moments(drawn(result, num_samples=COUNT), mean, np.sqrt(1 + 1 / np.sum(X > 0)))


def by_row(x, y=None):
    m = numpyro.param("m", jnp.zeros(len(x)))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Normal(m, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


def flat(groups, y=None):
    a, b = numpyro.param("a", 0.1), numpyro.param("b", 0.1)
    with numpyro.plate("rows", len(groups)):
        numpyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


@pytest.mark.slow
def test_what_cannot_be_is_refused(fitted, tmp_path):
    key = jax.random.key(SEED)
    with pytest.raises(ModelError, match=r"^Site 'u': the latents have shape \(8,\) .* \(2,\)"):
        fitted.predict(key, X, GROUP, n=2)
    with pytest.raises(ModelError, match=r"^Option `groups`: found 'old'"):
        fitted.predict(key, groups="old")
    with pytest.raises(ModelError, match=r"^Option `num_samples`: found 0"):
        fitted.predict(key, num_samples=0)
    with pytest.raises(ModelError, match=r"^Argument `rng_key`: found float64"):
        fitted.predict(X, GROUP)
    fitted.save(tmp_path / "fit.nc")
    with pytest.raises(ModelError, match=r"^`result.predict`: this fit was loaded from a file"):
        load(tmp_path / "fit.nc").predict(key)
    rows = fit(by_row, X[:3], Y[:3])
    with pytest.raises(ModelError, match=r"^Site 'm': the parameter has shape \(3,\) .* \(4,\)"):
        rows.predict(key, X[:4], groups="new")
    named = fit(flat, X, Y)
    with pytest.raises(ModelError, match="its argument `groups` has the name of an option"):
        named.predict(key, y=None)
    assert drawn(named, X[:5], uncertainty=False, num_samples=8).shape == (8, 5)


@pytest.mark.long
def test_intervals_cover_what_they_say():
    """90 % intervals of new rows on 200 data sets, for the groups of the fit and for new ones."""
    group, shares = np.repeat(np.arange(20), 6), []
    for seed in range(200):
        rng = np.random.default_rng([SEED, seed])
        x, more = rng.normal(size=(2, 120))
        own, other = rng.normal(0.0, 0.8, (2, 20))

        def outcome(x, effect, rng=rng):
            return 1 + 0.5 * x + effect[group] + rng.normal(size=120)

        result = fit(effects, x, group, outcome(x, own), n=20)
        covered = []
        for groups, effect in (("same", own), ("new", other)):
            draws = drawn(result, more, group, seed=seed, groups=groups, num_samples=400, n=20)
            lower, upper = np.quantile(draws, [0.05, 0.95], axis=0)
            truth = outcome(more, effect)
            covered.append(np.mean((lower < truth) & (truth < upper)))
        shares.append(covered)
    same, new = np.mean(shares, axis=0)
    assert 0.87 < same < 0.93 and 0.87 < new < 0.93


def test_a_law_of_one_parameter_in_closed_form():
    """Predictions of a normal mean have the variance 1 + 1 / n."""

    def model(x, y=None):
        m = numpyro.param("m", 0.0)
        with numpyro.plate("rows", len(x)):
            numpyro.sample("y", dist.Normal(m, 1.0), obs=y)

    result = fit(model, X[:4], Y[:4])
    draws = drawn(result, np.zeros(2), num_samples=COUNT)
    check_moments(draws, Y[:4].mean(), np.sqrt(1.25))
    assert stats.kstest(draws[:, 0], stats.norm(Y[:4].mean(), np.sqrt(1.25)).cdf).pvalue > 1e-4
