"""Constraints on functions of the parameters, against the exact marginal without the library."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SEED
from numpyro.distributions import constraints
from scipy.optimize import NonlinearConstraint, minimize
from small_models import CASES

from ppl_em import EM, Constraint, EMResult, ModelError, load, m_step
from ppl_em.cli.report import as_json

INTERCEPT = CASES["intercept"]
NAMES = ("mu", "sigma", "tau")
KEY = jax.random.key(SEED)
INSIDE = {"sigma": 0.4, "tau": 0.5}


def fit(*given, e_step="exact", start=None, case=INTERCEPT, **options) -> EMResult:
    option = given[0] if len(given) == 1 and isinstance(given[0], dict) else list(given)
    em = EM(case.model, e_step, constraints=option, **options)
    return em.run(KEY, *case.args, progress_bar=False, init_params=start)


@jax.jit
def marginal(natural: jax.Array) -> jax.Array:
    """The log-likelihood at mu, sigma, tau from the multivariate normal density."""
    return INTERCEPT.log_likelihood(dict(zip(NAMES, natural, strict=True)))


SLOPE = jax.jit(jax.grad(marginal))


def by_scipy(fn, lower, upper) -> tuple[np.ndarray, float]:
    """The constrained maximum on the natural scale, and its derivative in the bound."""
    condition = NonlinearConstraint(fn, lower, upper, jac=jax.jacobian(fn))
    found = minimize(
        lambda v: -float(marginal(v)),
        np.array([0.9, 0.5, 0.5]),
        jac=lambda v: -np.asarray(SLOPE(v)),
        method="SLSQP",
        bounds=[(None, None), (1e-3, None), (1e-3, None)],
        constraints=[condition],
        options={"ftol": 1e-15, "maxiter": 500},
    )
    slope, normal = np.asarray(SLOPE(found.x)), np.asarray(jax.jacobian(fn)(found.x))
    assert np.linalg.norm(np.cross(slope, normal)) < 1e-5 * np.linalg.norm(slope)
    return found.x, float(slope @ normal / (normal @ normal))


def values(result: EMResult) -> np.ndarray:
    return np.array([float(result.params[name]) for name in NAMES])


def errors(result: EMResult) -> np.ndarray:
    found = result.standard_errors()
    return np.array([float(found[name]) for name in NAMES])


@pytest.fixture(scope="module")
def free() -> EMResult:
    return fit()


@pytest.mark.parametrize(
    "option",
    [
        pytest.param({"sigma": constraints.interval(0.01, 3.0)}, id="bijection"),
        pytest.param({"box": Constraint("sigma", lower=0.01, upper=3.0)}, id="box"),
        pytest.param(
            {"box": Constraint("sigma", lower=0.01, upper=3.0, barrier=True)}, id="barrier"
        ),
        pytest.param(
            [Constraint(lambda p: p["sigma"] + p["tau"], upper=5.0)],
            id="function",
            marks=pytest.mark.long,
        ),
    ],
)
def test_one_interior_answer(option, free):
    result = EM(INTERCEPT.model, constraints=option).run(KEY, *INTERCEPT.args, progress_bar=False)
    assert result.converged and not result.active_constraints
    assert np.max(np.abs(values(result) - values(free)) / errors(free)) < 1e-5
    np.testing.assert_allclose(errors(result), errors(free), rtol=1e-5)


def circle(p):
    return p["sigma"] ** 2 + p["tau"] ** 2


@pytest.fixture(scope="module")
def on_circle() -> EMResult:
    return fit({"total": Constraint(circle, upper=0.6)}, start=INSIDE)


def test_an_active_constraint_agrees_with_scipy(on_circle):
    expected, multiplier = by_scipy(lambda v: v[1] ** 2 + v[2] ** 2, -np.inf, 0.6)
    np.testing.assert_allclose(values(on_circle), expected, atol=2e-6)
    assert abs(on_circle.log_likelihood.value - float(marginal(expected))) < 1e-10
    (active,) = on_circle.active_constraints
    assert (active.name, active.side, active.bound) == ("total", "upper", 0.6)
    assert abs(active.value - 0.6) < 1e-9
    np.testing.assert_allclose(active.multiplier, multiplier, rtol=1e-5)
    assert on_circle.converged and np.min(on_circle.history["change"]) > -1e-10
    traced = zip(on_circle.history["sigma"], on_circle.history["tau"], strict=True)
    assert all(s**2 + t**2 <= 0.6 * (1 + 1e-8) for s, t in traced)


@pytest.mark.long
def test_the_multiplier_is_the_price_of_the_bound(on_circle):
    wider = fit({"total": Constraint(circle, upper=0.602)}, start=INSIDE)
    narrower = fit({"total": Constraint(circle, upper=0.598)}, start=INSIDE)
    gain = (wider.log_likelihood.value - narrower.log_likelihood.value) / 0.004
    # A central difference of this width errs by its square, 4e-6 times a third derivative.
    np.testing.assert_allclose(on_circle.active_constraints[0].multiplier, gain, rtol=1e-3)


def test_standard_errors_along_the_constraint(on_circle):
    """Those of the likelihood with sigma written as a function of tau."""
    at = values(on_circle)

    def along(v):
        return marginal(jnp.array([v[0], jnp.sqrt(0.6 - v[1] ** 2), v[1]]))

    covariance = np.linalg.inv(-np.asarray(jax.hessian(along)(at[[0, 2]])))
    with pytest.warns(UserWarning, match="total is active: .*one-sided"):
        found = errors(on_circle)
    slope = at[2] / at[1]  # |d sigma / d tau|
    expected = np.sqrt([covariance[0, 0], slope**2 * covariance[1, 1], covariance[1, 1]])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("barrier", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_active_box(barrier):
    """At its bound a parameter has no standard error; the multiplier is the score there."""
    result = fit({"cap": Constraint("sigma", upper=0.5, barrier=barrier)}, start=INSIDE)
    assert result.converged
    at = values(result)
    np.testing.assert_allclose(at[1], 0.5, rtol=1e-12)
    slope = np.asarray(SLOPE(at))
    np.testing.assert_allclose(slope[[0, 2]], 0.0, atol=1e-5)
    (active,) = result.active_constraints
    np.testing.assert_allclose(active.multiplier, slope[1], rtol=1e-6)
    with pytest.warns(UserWarning, match="cap is active"):
        found = errors(result)
    rest = np.ix_([0, 2], [0, 2])
    inner = np.linalg.inv(-np.asarray(jax.hessian(marginal)(at))[rest])
    np.testing.assert_allclose(found[[0, 2]], np.sqrt(np.diag(inner)), rtol=1e-5)
    assert np.isnan(found[1])


@pytest.mark.slow
def test_an_equation(free):
    """One common scale: the restricted maximum, its multiplier of either sign."""
    result = fit(Constraint(lambda p: p["sigma"] / p["tau"], lower=1.0, upper=1.0))
    expected, multiplier = by_scipy(lambda v: v[1] / v[2], 1.0, 1.0)
    np.testing.assert_allclose(values(result), expected, atol=2e-6)
    (active,) = result.active_constraints
    assert active.side == "equal"
    np.testing.assert_allclose(active.multiplier, multiplier, rtol=1e-4)
    assert multiplier > 0  # the free maximum has a larger ratio
    assert free.log_likelihood.value > result.log_likelihood.value


@pytest.mark.slow
def test_probability_vectors_stay_feasible():
    """The closed form for probability vectors must not leave the constraints."""
    case = CASES["mixture"]
    start = {"probs": jnp.array([0.5, 0.3, 0.2])}
    model = EM(
        case.model,
        fixed={"mu": jnp.array([-1.0, 0.5, 2.0]), "sd": jnp.ones(3)},
        constraints={"half": Constraint(lambda p: p["probs"][0], lower=0.45)},
    )
    result = model.run(KEY, *case.args, progress_bar=False, init_params=start)
    assert result.converged and np.min(result.history["change"]) > -1e-12
    assert np.all(result.history["probs"][:, 0] >= 0.45 - 1e-9)
    (active,) = result.active_constraints
    probs = np.asarray(result.params["probs"])

    def likelihood(p):
        return case.log_likelihood({**result.params, "probs": p})

    slope = np.asarray(jax.grad(likelihood)(probs))
    np.testing.assert_allclose(slope[1], slope[2], atol=1e-5)  # the others share what is left
    np.testing.assert_allclose(active.multiplier, slope[1] - slope[0], rtol=1e-4)
    for name in ("mu", "sd"):
        np.testing.assert_array_equal(result.params[name], model.fixed[name])


def test_starts(caplog):
    with caplog.at_level(logging.WARNING, logger="ppl_em"):
        moved = fit({"total": Constraint(circle, upper=0.6)}, max_steps=1)
    assert "The start violates the constraint 'total'; it was moved" in caplog.text
    assert circle({k: v[0] for k, v in moved.history.items() if k in NAMES}) <= 0.6 * (1 + 1e-8)
    with pytest.raises(ModelError, match="Constraint 'cannot be': the start violates it"):
        fit({"cannot be": Constraint(circle, upper=-1.0)})


REFUSED = {
    "newton": ("Newton does not take constraints on functions .*'c'.*SLSQP.*barrier", {}, "newton"),
    "bounds": ("BFGS does not take bounds .*'c'.*L-BFGS-B", {"fn": "sigma"}, m_step.Scipy("BFGS")),
    "shape": (r"Constraint 'c': its value has shape \(\), a bound", {"upper": [1.0, 2.0]}, "auto"),
    "order": ("Constraint 'c': a lower bound is above", {"lower": 7.0}, "auto"),
    "none": ("Constraint 'c': it has no bounds", {"upper": None}, "auto"),
    "site": ("`constraints` names it, but .*Valid names: mu, sigma, tau", {"fn": "sgma"}, "auto"),
    "fails": ("Constraint 'c': its function fails.*KeyError", {"fn": lambda p: p["no"]}, "auto"),
    "inside": ("no inside for a barrier", {"lower": 6.0, "barrier": True}, "auto"),
    "what": (r"Option `Constraint\(fn=...\)`: found 3", {"fn": 3}, "auto"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name):
    message, changes, chosen = REFUSED[name]
    with pytest.raises(ModelError, match=message) as raised:
        fit({"c": Constraint(**{"fn": circle, "upper": 6.0, **changes})}, m_step=chosen)
    assert "\n" not in str(raised.value)


def test_reported_and_stored(on_circle, tmp_path):
    on_circle.save(tmp_path / "fit.nc")
    assert load(tmp_path / "fit.nc").active_constraints == on_circle.active_constraints
    (found,) = as_json(on_circle)["active_constraints"]
    assert found["name"] == "total" and found["side"] == "upper"


@pytest.mark.slow
def test_monte_carlo_holds_constraints(on_circle):
    result = fit({"total": Constraint(circle, upper=0.6)}, e_step="nuts", start=INSIDE)
    assert result.converged
    assert abs(circle(result.params) - 0.6) < 1e-8
    with pytest.warns(UserWarning, match="total is active"):
        away = np.abs(values(result) - values(on_circle)) / errors(on_circle)
    assert away.max() < 0.1
    (active,) = result.active_constraints
    np.testing.assert_allclose(
        active.multiplier, on_circle.active_constraints[0].multiplier, rtol=0.05
    )
