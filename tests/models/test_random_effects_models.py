"""Models with random effects: the joint density, and the marginal likelihood by quadrature.

Everything on the right-hand sides is NumPy and SciPy. A model is given by the log joint density of
its rows and effects, which has to be that of the NumPyro program, and whose integral over the
effects has to be the reference log-likelihood.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest
from conftest import load_reference
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import special, stats

from ppl_em.cli import catalog
from ppl_em.cli.columns import read_csv


class Effects(NamedTuple):
    """One effect per group: its site, and log p(rows, effect) of all groups, (groups, nodes)."""

    site: str
    scale: float
    log_joint: Callable[[np.ndarray], np.ndarray]
    groups: int


def effects_of(site, scale, group, log_rows) -> Effects:
    """Add the Normal(0, scale²) law of the effects to the sums over the rows of each group."""
    names, number = np.unique(group, return_inverse=True)
    member = (number == np.arange(len(names))[:, None]).astype(float)

    def log_joint(effect):
        return stats.norm(0.0, scale).logpdf(effect) + member @ log_rows(effect[number])

    return Effects(site, scale, log_joint, len(names))


def epil(p, data) -> Effects:
    ones = np.ones(len(data["y"]))
    base, progabide = data["lbase"], data["trt"]
    x = np.stack([ones, base, progabide, data["lage"], data["V4"], base * progabide], axis=1)

    def log_rows(u):
        return stats.poisson(np.exp((x @ p["beta"])[:, None] + u)).logpmf(data["y"][:, None])

    return effects_of("u", p["sd"], data["subject"], log_rows)


def lsat(p, data) -> Effects:
    y = np.stack(list(data.values()), axis=1)
    slope = np.broadcast_to(p["a"], 5)

    def log_joint(theta):
        total = stats.norm.logpdf(theta)
        for item, d in enumerate(p["d"]):
            sign = 2 * y[:, item, None] - 1
            total = total + special.log_expit(sign * (d + slope[item] * theta))
        return total

    return Effects("theta", 1.0, log_joint, len(y))


def wine(law) -> Callable[..., Effects]:
    def effects(p, data) -> Effects:
        cut = np.concatenate([[-np.inf], p["cut"], [np.inf]])
        shift = p["temp_warm"] * data["temp"] + p["contact_yes"] * data["contact"]

        def log_rows(u):
            eta = shift[:, None] + u
            upper, lower = (cut[data["rating"] - k][:, None] - eta for k in (0, 1))
            left, right = law.cdf(upper) - law.cdf(lower), law.sf(lower) - law.sf(upper)
            return np.log(np.where(lower > 0, right, left))

        return effects_of("u", p["sd"], data["judge"], log_rows)

    return effects


def kidney(p, data) -> Effects:
    time, rho = data["time"], p["rho"]
    risk = p["lambda"] * np.exp(p["sex"] * data["sex"] + p["age"] * data["age"])
    hazard, cumulative = risk * rho * time ** (rho - 1), risk * time**rho

    def log_rows(b):
        seen = data["status"][:, None] * (np.log(hazard)[:, None] + b)
        return seen - cumulative[:, None] * np.exp(b)

    return effects_of("b", np.sqrt(p["sigma2"]), data["id"], log_rows)


MODELS = {
    "epil": epil,
    "lsat": lsat,
    "lsat:two_parameter": lsat,
    "wine_ordinal": wine(stats.logistic),
    "wine_ordinal:probit": wine(stats.norm),
    "kidney:lognormal": kidney,
}
FILES = {
    "lsat": "lsat_1pl",
    "lsat:two_parameter": "lsat_2pl",
    "wine_ordinal": "wine_ordinal_logit",
    "wine_ordinal:probit": "wine_ordinal_probit",
    "kidney:lognormal": "kidney_lognormal",
}


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


@pytest.fixture
def effects(name):
    entry = catalog.find(name)
    return MODELS[name](entry.reference["params"], entry.load())


def test_reference_agrees_with_the_facts(name):
    reference = catalog.find(name).reference
    facts = load_reference(FILES.get(name, name))["reference"]
    assert reference["log_likelihood"] == facts["loglik"]
    for part, facts_part in (("params", "mle"), ("standard_errors", "se")):
        values = np.concatenate([np.ravel(v) for v in reference[part].values()])
        np.testing.assert_array_equal(values, list(facts[facts_part].values()))


def test_log_joint(name, effects):
    entry = catalog.find(name)
    drawn = effects.scale * np.random.default_rng(3).standard_normal(effects.groups)
    values = {**entry.reference["params"], effects.site: drawn}
    computed, _ = log_density(entry.model, (), entry.load(), values)
    assert float(computed) == pytest.approx(effects.log_joint(drawn[:, None]).sum(), rel=1e-11)


def log_integrals(effects, nodes=60):
    """Gauss-Hermite quadrature about the mean and the spread of each effect given its rows.

    These come from the same rule, started at the law of the effects and repeated.
    """
    x, weight = np.polynomial.hermite.hermgauss(nodes)
    mean, spread = np.zeros((effects.groups, 1)), np.full((effects.groups, 1), effects.scale)
    for _ in range(8):
        effect = mean + np.sqrt(2) * spread * x
        terms = effects.log_joint(effect) + x**2 + np.log(np.sqrt(2) * spread * weight)
        total = special.logsumexp(terms, axis=1, keepdims=True)
        share = np.exp(terms - total)
        mean = np.sum(share * effect, axis=1, keepdims=True)
        spread = np.sqrt(np.sum(share * (effect - mean) ** 2, axis=1, keepdims=True))
    return total


def test_marginal_log_likelihood_at_the_reference(name, effects):
    expected = catalog.find(name).reference["log_likelihood"]
    assert log_integrals(effects).sum() == pytest.approx(expected, abs=1e-8, rel=0)


# --- crossed effects: the females by quadrature, the males by importance sampling ---


def crossed_log_likelihood(p, data, group, points):
    """Estimate log p(matings of one group) from quasi-random draws of the ten males.

    The proposal is multivariate t about the males' part of the joint mode. Given the males, the
    females are independent and integrated by the trapezoid rule.
    """
    rows = np.arange(60 * group, 60 * (group + 1))
    female, male = data["Female"][rows] - 1 - 10 * group, data["Male"][rows] - 1 - 10 * group
    base, sign = p["beta"][data["Cross"][rows]], 2 * data["Mate"][rows] - 1
    z = np.concatenate(
        [p["sd_female"] * np.eye(10)[female], p["sd_male"] * np.eye(10)[male]], axis=1
    )
    mode = np.zeros(20)  # of the standardized effects, by Newton's method
    for _ in range(20):
        prob = special.expit(base + z @ mode)
        precision = np.eye(20) + (z.T * (prob * (1 - prob))) @ z
        mode = mode + np.linalg.solve(precision, z.T @ ((sign + 1) / 2 - prob) - mode)
    factor = np.linalg.cholesky(np.linalg.inv(precision)[10:, 10:])

    uniform = stats.qmc.Sobol(11, rng=group).random(points)
    scale = np.sqrt(30 / stats.chi2(30).ppf(uniform[:, 10:]))
    t = stats.norm.ppf(uniform[:, :10]) * scale
    v = mode[10:] + t @ factor.T
    log_proposal = stats.multivariate_t(np.zeros(10), np.eye(10), 30).logpdf(t)
    log_proposal -= np.log(np.diag(factor)).sum()

    nodes = np.linspace(-7, 7, 31)
    law = stats.norm.pdf(nodes) * (nodes[1] - nodes[0])
    log_target = stats.norm.logpdf(v).sum(axis=1)
    for i in range(10):
        pairs = female == i
        eta = base[pairs] + p["sd_male"] * v[:, male[pairs]]
        eta = eta[:, :, None] + p["sd_female"] * nodes
        log_target += np.log(special.expit(sign[pairs, None] * eta).prod(axis=1) @ law)
    return special.logsumexp(log_target - log_proposal) - np.log(points)


def test_crossed_likelihood_at_the_reference():
    entry = catalog.find("crossed")
    p, data = entry.reference["params"], entry.load()
    found = sum(crossed_log_likelihood(p, data, group, 4096) for group in range(6))
    assert found == pytest.approx(entry.reference["log_likelihood"], abs=0.02, rel=0)


def test_crossed_log_joint():
    entry = catalog.find("crossed")
    p, data = entry.reference["params"], entry.load()
    u, v = np.random.default_rng(5).standard_normal((2, 60))
    eta = p["beta"][data["Cross"]] + u[data["Female"] - 1] + v[data["Male"] - 1]
    expected = special.log_expit((2 * data["Mate"] - 1) * eta).sum()
    expected += stats.norm(0, p["sd_female"]).logpdf(u).sum()
    expected += stats.norm(0, p["sd_male"]).logpdf(v).sum()
    computed, _ = log_density(entry.model, (), data, {**p, "u": u, "v": v})
    assert float(computed) == pytest.approx(expected, rel=1e-11)


def test_crossed_data_are_the_simulated_ones():
    module = catalog.find("crossed").module
    data = module.load()
    for name, values in module.simulate(jax.random.key(14)).items():
        np.testing.assert_array_equal(data[name], values)
    assert np.all(np.bincount(data["Cross"]) == 90)
    for sex in ("Female", "Male"):
        assert np.all(np.bincount(data[sex])[1:] == 6)


# --- texts in other data ---


TEXTS = {"epil": "trt", "wine_ordinal": "temp", "crossed": "Cross"}


def seeded_log_density(entry, data):
    """The log joint at effects that depend on a fixed key alone."""
    program = handlers.seed(entry.model, jax.random.key(0))
    return float(log_density(program, (), data, entry.reference["params"])[0])


@pytest.mark.parametrize(("model", "column"), TEXTS.items())
def test_texts_are_the_same_as_numbers(model, column):
    entry = catalog.find(model)
    columns = read_csv(str(entry.module.DATA), entry.model)
    assert columns[column].dtype.kind == "U"
    assert seeded_log_density(entry, columns) == seeded_log_density(entry, entry.load())


@pytest.mark.parametrize(("model", "column"), TEXTS.items())
def test_unknown_texts_are_named(model, column):
    entry = catalog.find(model)
    data = entry.load()
    data[column] = np.full(len(data[column]), "other")
    with pytest.raises(ValueError, match=f"column '{column}' has 'other'; valid are"):
        seeded_log_density(entry, data)
