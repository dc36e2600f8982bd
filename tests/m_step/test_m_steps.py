"""M-steps to the same maximum: generalized, on the host, without gradients, in closed form."""

import logging
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from conftest import SEED
from numpyro.distributions import constraints
from scipy.stats import nbinom
from small_models import CASES

from ppl_em import EM, ModelError
from ppl_em.cli import catalog
from ppl_em.m_step import LBFGS, ClosedForm, Gradient, Newton, Scipy

KEY = jax.random.key(SEED)
INTERCEPT = CASES["intercept"]
KINDS = {
    "newton": Newton(),
    "lbfgs": LBFGS(),
    "one_newton": Newton(max_steps=1),
    "one_lbfgs": LBFGS(max_steps=1),
    "gradient": Gradient(),
    "l-bfgs-b": Scipy(),
    "slsqp": Scipy("SLSQP"),
    "bfgs": Scipy("BFGS"),
    "simplex": Scipy("Nelder-Mead"),
}


def run(model, *args, **options):
    return EM(model, **options).run(KEY, *args, progress_bar=False)


LONG, SLOW = pytest.mark.long, pytest.mark.slow
ONE_STEP = {"newton": Newton(max_steps=1), "gradient": Gradient()}
REFERENCES = [
    pytest.param("linkage", "newton"),
    pytest.param("pump", "gradient"),
    pytest.param("faithful", "newton", marks=LONG),
    pytest.param("faithful", "gradient", marks=SLOW),
    pytest.param("linkage", "gradient", marks=LONG),
    pytest.param("pump", "newton", marks=LONG),
    *(
        pytest.param(name, kind, marks=LONG)
        for kind in ONE_STEP
        for name in (
            "sleepstudy",
            "zero_inflated",
            "nile",
            "poisson_mixture",
            "latent_class",
            "airquality",
            "kidney",
            "earthquakes:stationary",
        )
    ),
]


@pytest.mark.parametrize(("name", "kind"), REFERENCES)
def test_generalized_em_reaches_the_reference(name, kind):
    entry = catalog.find(name)
    em = EM(entry.model, "exact", ONE_STEP[kind], max_steps=3000)
    result = em.run(KEY, progress_bar=False, **entry.load())
    expected = entry.reference["log_likelihood"]
    assert result.converged
    assert abs(result.log_likelihood.value - expected) < 1e-9 * (1 + abs(expected))
    assert np.min(result.history["change"]) > -1e-12 * (1 + abs(expected))


@pytest.fixture(scope="module")
def full():
    return run(INTERCEPT.model, *INTERCEPT.args, fixed={"mu": 0.9})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("gradient", "slsqp", "simplex") else LONG)
        for name in KINDS
    ],
)
def test_one_maximum_and_fixed_parameters_stay(name, full):
    result = run(INTERCEPT.model, *INTERCEPT.args, m_step=KINDS[name], fixed={"mu": 0.9})
    assert result.converged and np.min(result.history["change"]) > -1e-12
    assert abs(result.log_likelihood.value - full.log_likelihood.value) < 1e-11
    assert np.asarray(result.params["mu"]) == np.asarray(0.9)
    assert np.all(result.history["mu"] == 0.9)


@pytest.mark.long
def test_any_optax_transformation(full):
    import optax

    result = run(
        INTERCEPT.model,
        *INTERCEPT.args,
        m_step=Gradient(optax.adam(0.1), num_steps=3),
        fixed={"mu": 0.9},
    )
    assert result.converged and np.min(result.history["change"]) > -1e-12
    assert abs(result.log_likelihood.value - full.log_likelihood.value) < 1e-9


LENGTH = 24
CHANGED = np.random.default_rng(5).normal(size=LENGTH) + 2.0 * (np.arange(LENGTH) >= 14)


def change_point(y):
    """The mean of the latents changes at `tau`, and the log-joint has no gradient in it."""
    tau = numpyro.param("tau", 6.0, constraint=constraints.interval(0.0, float(LENGTH)))
    mu = numpyro.param("mu", jnp.array([0.0, 1.0]))
    with numpyro.plate("times", LENGTH):
        late = jnp.arange(LENGTH) >= tau
        z = numpyro.sample("z", dist.Normal(jnp.where(late, mu[1], mu[0]), 0.8))
        numpyro.sample("y", dist.Normal(z, 0.6), obs=y)


@pytest.mark.long
def test_a_change_point_by_simplices():
    """Against every place of it: given that, each mean is a mean and the variance is 1."""
    result = run(change_point, CHANGED, m_step=Scipy("Nelder-Mead"))
    splits = [np.split(CHANGED, [k]) for k in range(1, LENGTH)]
    sums = [sum(np.sum((part - part.mean()) ** 2) for part in parts) for parts in splits]
    best = int(np.argmin(sums)) + 1
    assert result.converged and np.min(result.history["change"]) > -1e-11
    assert int(np.ceil(result.params["tau"])) == best
    means = [part.mean() for part in splits[best - 1]]
    np.testing.assert_allclose(result.params["mu"], means, atol=1e-6)
    expected = -0.5 * np.min(sums) - 0.5 * LENGTH * np.log(2 * np.pi)
    assert abs(result.log_likelihood.value - expected) < 1e-10
    with pytest.warns(UserWarning, match="no gradient in tau: no standard errors there"):
        errors = result.standard_errors()
    assert np.isnan(errors["tau"])
    sizes = np.array([best, LENGTH - best])
    np.testing.assert_allclose(errors["mu"], 1 / np.sqrt(sizes), rtol=1e-6)


LAGGED = np.random.default_rng(6).poisson(np.where(np.arange(30) % 6 < 2, 9.0, 2.0))


def lag(y):
    """A period that is rounded to whole numbers, and counts with latent gamma rates."""
    period = numpyro.param("period", 4.4, constraint=constraints.interval(2.0, 10.0))
    high = numpyro.param("high", 2.0, constraint=constraints.positive)
    scale = jnp.where(jnp.arange(len(y)) % jnp.round(period) < 2, high, 1.0)
    with numpyro.plate("rows", len(y)):
        rate = numpyro.sample("rate", dist.Gamma(40.0, 20.0))
        numpyro.sample("y", dist.Poisson(rate * scale), obs=y)


def test_a_rounded_parameter_by_simplices():
    result = run(lag, LAGGED)  # the default finds out by itself
    period = int(np.round(result.params["period"]))

    heights = np.linspace(0.2, 9, 200)

    def marginal(period, high):
        """Of several heights (n,) at once, (n,): counts are negative binomial."""
        scale = np.where(np.arange(30)[:, None] % period < 2, high, 1.0)
        odds = 20.0 / (20.0 + scale)
        return np.sum(nbinom.logpmf(LAGGED[:, None], 40.0, odds), axis=0)

    grid = {k: np.max(marginal(k, heights)) for k in range(2, 11)}
    assert result.converged and period == max(grid, key=grid.get) == 6
    value = marginal(period, np.array([float(result.params["high"])]))[0]
    assert abs(result.log_likelihood.value - value) < 1e-9
    assert 0 <= value - grid[6] < 1e-2  # the grid is coarse


def test_what_needs_a_gradient_is_refused():
    with pytest.raises(ModelError, match=r"Newton .* without a gradient \('tau'\).*Nelder-Mead"):
        run(change_point, CHANGED, m_step="newton")
    with pytest.raises(ModelError, match=r"`Scipy\(method=...\)`: found 'simplex'. Valid"):
        Scipy("simplex")


@pytest.mark.slow
def test_monte_carlo_with_a_maximiser_on_the_host(full):
    for m_step in (Scipy(), Scipy("Nelder-Mead")):
        result = run(
            INTERCEPT.model, *INTERCEPT.args, e_step="nuts", m_step=m_step, fixed={"mu": 0.9}
        )
        assert result.converged
        for name, error in full.standard_errors().items():
            assert abs(result.params[name] - full.params[name]) <= 0.1 * error


def moments(expectation, params):
    """Mean and standard deviation of the intercepts."""
    mu = expectation(lambda latents: jnp.mean(latents["z"]))
    square = expectation(lambda latents: jnp.mean(latents["z"] ** 2))
    return {"mu": mu, "tau": jnp.sqrt(square - mu**2)}


def shares(expectation, params):
    """Means of a mixture's components."""
    probs = expectation.probs("k")
    y = CASES["mixture"].args[0]
    return {"mu": probs.T @ y / jnp.sum(probs, 0)}


@pytest.mark.parametrize(
    ("case", "function"),
    [("intercept", moments), pytest.param("mixture", shares, marks=SLOW)],
)
def test_closed_form_agrees(case, function):
    """Step by step, up to the tolerance of the numerical maximiser."""
    model, args = CASES[case].model, CASES[case].args
    fixed = {"sd": jnp.ones(3)} if case == "mixture" else None  # else its likelihood is unbounded
    mine, numerical = (
        run(model, *args, m_step=m_step, fixed=fixed, max_steps=6)
        for m_step in (ClosedForm(function), Newton())
    )
    for name in mine.params:
        np.testing.assert_allclose(mine.history[name], numerical.history[name], atol=1e-7)


def test_closed_form_that_lowers_q_is_not_used(caplog, full):
    wrong = ClosedForm(lambda expectation, params: {"tau": 30.0 * params["tau"]})
    with caplog.at_level(logging.WARNING, logger="ppl_em"), warnings.catch_warnings():
        result = run(INTERCEPT.model, *INTERCEPT.args, m_step=wrong, fixed={"mu": 0.9})
    assert "the values of ClosedForm lower Q by" in caplog.text
    assert abs(result.log_likelihood.value - full.log_likelihood.value) < 1e-11
    with pytest.raises(ModelError, match=r"ClosedForm has no expectations .*Laplace"):
        run(INTERCEPT.model, *INTERCEPT.args, e_step="laplace", m_step=ClosedForm(moments))
