"""Reference answers on real data, computed by independent software (see tests/reference)."""

import json
from functools import cache

import jax
import numpy as np
import pytest
from conftest import ROOT, SEED, load_model, load_reference
from jax.flatten_util import ravel_pytree

from ppl_em import EM, EMResult
from ppl_em.cli import catalog
from ppl_em.posterior import LogLikelihood
from ppl_em.util import ModelError


def flat(tree: dict) -> np.ndarray:
    return np.asarray(ravel_pytree(tree)[0])


@cache
def fit(name: str, flag: str, seed: int = SEED, **options) -> tuple[EMResult, dict]:
    entry = catalog.find(name)
    result = EM(entry.model, e_step=flag, **options).run(
        jax.random.key(seed), progress_bar=False, **entry.load()
    )
    return result, entry.reference


def off_by(result: EMResult, reference: dict) -> np.ndarray:
    """Distance from the reference in standard errors, per scalar parameter."""
    gap = flat(result.params) - flat(reference["params"])
    return np.abs(gap) / flat(reference["standard_errors"])


# What `make test-long` adds are models of kinds that the quick ones show already.
EXACT = [
    "faithful",
    "linkage",
    "pump",
    "sleepstudy",
    "zero_inflated",
    pytest.param("earthquakes:stationary", marks=pytest.mark.long),
    "nile",
    "poisson_mixture",
    pytest.param("latent_class", marks=pytest.mark.long),
    pytest.param("airquality", marks=pytest.mark.slow),
    pytest.param("airquality:every_column", marks=pytest.mark.long),
    pytest.param("kidney", marks=pytest.mark.long),
]


@pytest.mark.parametrize("name", EXACT)
def test_exact_reaches_the_reference(name):
    result, reference = fit(name, "exact")
    assert result.converged
    assert result.log_likelihood.kind == "exact"
    assert abs(result.log_likelihood.value - reference["log_likelihood"]) < 1e-9 * (
        1 + abs(reference["log_likelihood"])
    )
    assert off_by(result, reference).max() < 1e-4
    np.testing.assert_allclose(
        flat(result.standard_errors()), flat(reference["standard_errors"]), rtol=1e-4
    )
    assert np.min(result.history["change"]) > -1e-9
    last = result.history["objective"][-1]
    assert abs(last - result.log_likelihood.value) < 1e-12 * (1 + abs(last))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("wine_factors:ppca", marks=pytest.mark.long),
        pytest.param("wine_factors", marks=pytest.mark.slow),
    ],
)
def test_factors_reach_what_is_identified(name):
    result, reference = fit(name, "exact")
    assert result.converged
    assert result.log_likelihood.value == pytest.approx(reference["log_likelihood"], abs=1e-9)
    for site, expected in reference["params"].items():
        np.testing.assert_allclose(result.params[site], expected, rtol=1e-5)
    # Loadings are free to rotate: they have no errors, and the run says so.
    with pytest.warns(UserWarning, match=r"flat along a direction .* loadings\[0,0\]"):
        errors = result.standard_errors()
    assert np.all(np.isnan(errors["loadings"]))
    count = len(next(iter(catalog.find(name).load().values())))
    loadings = np.asarray(result.params["loadings"])
    dim, num_factors = loadings.shape
    noise = result.params.get("uniqueness", result.params.get("sigma2"))
    variances = np.sum(loadings**2, axis=1) + noise
    np.testing.assert_allclose(errors["mu"], np.sqrt(variances / count), rtol=1e-6)
    if "sigma2" in errors:  # Tipping & Bishop (1999): a mean of d - q eigenvalues
        expected = noise * np.sqrt(2 / (count * (dim - num_factors)))
        np.testing.assert_allclose(errors["sigma2"], expected, rtol=1e-5)
    assert all(np.all(np.isfinite(errors[name])) for name in errors if name != "loadings")


@pytest.mark.parametrize(
    "name",
    [
        "earthquakes",
        pytest.param("earthquakes:three_states", marks=pytest.mark.long),
        pytest.param("earthquakes:three_states_stationary", marks=pytest.mark.long),
    ],
)
def test_chains_with_probabilities_at_their_boundary(name):
    """Parameters at 0 or 1 have no standard errors and are named; the others have theirs."""
    result, reference = fit(name, "exact")
    assert result.converged
    assert abs(result.log_likelihood.value - reference["log_likelihood"]) < 1e-9 * 350
    with pytest.warns(UserWarning, match="at its boundary 0"):
        errors = result.standard_errors()
    for site, expected in reference["params"].items():
        np.testing.assert_allclose(result.params[site], expected, atol=1e-5, rtol=1e-5)
        inside = (expected > 1e-9) & (np.abs(expected - 1) > 1e-9)
        assert np.all(np.isfinite(errors[site]) == inside)
    for site, expected in reference["standard_errors"].items():
        np.testing.assert_allclose(errors[site], expected, rtol=1e-4)


def test_slow_em_ends_in_newton_steps():
    """Plain EM needs more than 2000 steps here (its rate is 0.9957)."""
    result, _ = fit("poisson_mixture", "exact")
    assert result.num_steps < 50
    phases = result.history["phase"]
    assert phases[0] == "em" and phases[-1] == "newton"
    assert np.all(np.diff(result.history["objective"]) > -1e-9)


def test_nonlinear_latents_are_refused_by_exact():
    with pytest.raises(ModelError, match=r"Site 'log_(ka|cl)': .* not .*quadratic"):
        fit("theoph", "exact")


def test_linkage_digits():
    result, _ = fit("linkage", "exact")
    assert abs(float(result.params["pi"]) - 0.6268214978710) < 1.5e-6 * 0.0515
    assert abs(float(result.standard_errors()["pi"]) - 0.0514673) < 1e-7
    # Dempster, Laird & Rubin (1977), table 1, from 0.5.
    printed = [0.608247423, 0.624321051, 0.626488879, 0.626777323]
    np.testing.assert_allclose(result.history["pi"][:4], printed, atol=2e-9)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("seeds", marks=pytest.mark.slow),
        pytest.param("pump", marks=pytest.mark.long),
    ],
)
def test_monte_carlo_within_its_errors(name, optimized):
    """At least 9 of 10 seeds within 0.1 standard error, and within 15 % on standard errors."""
    near, likelihood, spread = 0, 0, 0
    for seed in range(SEED, SEED + 10):
        result, reference = fit(name, "nuts", seed)
        assert result.converged
        near += off_by(result, reference).max() < 0.1
        value, kind, mcse, khat = result.log_likelihood
        assert kind == "estimate" and mcse > 0 and khat < 0.7
        likelihood += abs(value - reference["log_likelihood"]) < 4 * mcse
        ratio = flat(result.standard_errors()) / flat(reference["standard_errors"])
        spread += np.max(np.abs(ratio - 1)) < 0.15
    assert (near >= 9, likelihood >= 9, spread >= 9) == (True, True, True)


QUADRATURE = [
    "seeds",
    pytest.param("pump", marks=pytest.mark.slow),
    *[
        pytest.param(name, marks=pytest.mark.long)
        for name in (
            "epil",
            "kidney",
            "kidney:lognormal",
            "lsat",
            "lsat:two_parameter",
            "sleepstudy",
        )
    ],
    *[
        pytest.param(name, marks=pytest.mark.long)
        for name in ("theoph", "wine_ordinal", "wine_ordinal:probit")
    ],
]


@pytest.mark.parametrize("name", QUADRATURE)
def test_quadrature_reaches_the_reference(name):
    result, reference = fit(name, "quadrature")
    assert result.converged
    assert result.log_likelihood.kind == "quadrature"
    assert abs(result.log_likelihood.value - reference["log_likelihood"]) < 1e-6
    assert off_by(result, reference).max() < 1e-4
    np.testing.assert_allclose(
        flat(result.standard_errors()), flat(reference["standard_errors"]), rtol=1e-4
    )


LAPLACE = {  # our parameters in flat order, by the names of other programs
    "seeds": "alpha0 alpha1 alpha2 alpha12 sd_re",
    "epil": "intercept lbase trt_progabide lage V4 lbase_x_trt sd_re",
    "kidney:lognormal": "age lambda rho sex sigma2",
    "wine_ordinal": "contact_yes c12 c23 c34 c45 sd_judge temp_warm",
    "wine_ordinal:probit": "contact_yes c12 c23 c34 c45 sd_judge temp_warm",
}


@pytest.mark.parametrize(
    "name",
    [
        "seeds",
        pytest.param("epil", marks=pytest.mark.slow),
        *[pytest.param(name, marks=pytest.mark.long) for name in list(LAPLACE)[2:]],
    ],
)
def test_laplace_reaches_other_laplace_programs(name):
    peer = load_reference("laplace_peers")[name]
    result, _ = fit(name, "laplace")
    assert result.converged
    assert result.log_likelihood.kind == "laplace"
    assert abs(result.log_likelihood.value - peer["loglik"]) < 1e-4
    expected = [peer["estimates"][key] for key in LAPLACE[name].split()]
    gap = np.abs(flat(result.params) - expected) / flat(result.standard_errors())
    # parfm and clmm stop up to 0.01 standard errors away, where the likelihood is the same.
    assert gap.max() < (1e-3 if "glmmTMB" in peer["peer"] else 0.02)


def test_mean_field_is_a_bound_and_says_so():
    result, reference = fit("pump", "mean_field")
    assert result.converged
    likelihood: LogLikelihood = result.log_likelihood
    assert likelihood.kind == "lower_bound"
    assert likelihood.value + 3 * likelihood.mcse < reference["log_likelihood"]
    assert np.isfinite(likelihood.pareto_khat)
    assert "lower bound" in str(result) and "k-hat" in str(result)
    distance = off_by(result, reference)
    assert 0.01 < distance.max() < 0.2  # close to the maximum, and visibly not there


RANDOM_EFFECTS = [
    "crossed",
    "epil",
    "kidney:lognormal",
    "lsat",
    "lsat:two_parameter",
    "wine_ordinal",
    "wine_ordinal:probit",
]


@pytest.mark.long
@pytest.mark.parametrize("name", RANDOM_EFFECTS)
def test_monte_carlo_on_random_effects(name, optimized):
    result, reference = fit(name, "nuts")
    assert result.converged
    assert off_by(result, reference).max() < 0.15
    value, kind, mcse, _ = result.log_likelihood
    assert kind == "estimate"
    assert abs(value - reference["log_likelihood"]) < 4 * mcse


SALAMANDER = ROOT.parent / "shared" / "reference" / "salamander.csv"


def salamander(flag: str) -> tuple[EMResult, dict, np.ndarray]:
    """A fit of the data, their reference file, and the flat estimates in its order."""
    rows = np.genfromtxt(SALAMANDER, delimiter=",", names=True, dtype=None, encoding="utf-8")
    reference = json.loads(SALAMANDER.with_suffix(".json").read_text())
    model = load_model("crossed").model
    columns = {name: rows[name] for name in ("Cross", "Female", "Male", "Mate")}
    result = EM(model, flag).run(jax.random.key(SEED), progress_bar=False, **columns)
    assert result.converged
    found = [*result.params["beta"], result.params["sd_female"], result.params["sd_male"]]
    return result, reference, np.array(found)


IF_PRESENT = pytest.mark.skipif(
    not SALAMANDER.exists(), reason="these data may not be copied into the project"
)


@pytest.mark.long
@IF_PRESENT
def test_salamander(optimized):
    """All three experiments; Laplace's approximation is 0.09 low in both standard deviations."""
    result, reference, found = salamander("nuts")
    exact = reference["reference"]
    distance = (found - [*exact["mle"].values()]) / [*exact["se"].values()]
    assert np.abs(distance).max() < 0.15
    assert abs(result.log_likelihood.value - exact["loglik"]) < 4 * result.log_likelihood.mcse


@pytest.mark.long
@IF_PRESENT
def test_salamander_by_laplace():
    """Crossed effects, as glmmTMB has them: 120 latents in six blocks that plates do not show."""
    result, reference, found = salamander("laplace")
    known = next(p for p in reference["peers"] if p["peer"].startswith("glmmTMB"))
    assert abs(result.log_likelihood.value - known["loglik"]) < 1e-4
    distance = (found - [*known["estimates"].values()]) / [*reference["reference"]["se"].values()]
    assert np.abs(distance).max() < 1e-3
