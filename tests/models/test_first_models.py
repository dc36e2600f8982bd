"""What a newcomer writes first, started at zeros and ones: default settings reach the maximum."""

import jax
import numpy as np
import pytest
from conftest import SEED
from first_models import EXAMPLES, Example
from numpy.polynomial.hermite import hermgauss
from scipy import optimize, special, stats

from ppl_em import EM, EMResult

MOST_STEPS = 60


def fit(example: Example) -> EMResult:
    return EM(example.model).run(jax.random.key(SEED), *example.data, progress_bar=False)


def check(result: EMResult, best: float, tolerance: float) -> None:
    assert result.converged and result.num_steps <= MOST_STEPS
    assert result.certificate.smallest_eigenvalue > 0
    assert result.certificate.promised_gain < 1e-6
    assert result.log_likelihood.value == pytest.approx(best, abs=tolerance)


QUICK = ("dyestuff", "made_up_dyestuff", "pastes")
GAUSSIAN = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
    for name, example in EXAMPLES.items()
    if example.law is not None
]


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.filterwarnings("ignore:`tau` is at its boundary")
def test_gaussian_models(name):
    """Against the density of the whole outcome, and the optimiser of another library."""
    example = EXAMPLES[name]
    result = fit(example)
    assert result.log_likelihood.kind == "exact"

    def value(params: dict) -> float:
        mean, covariance = example.law(params, *example.data)
        return stats.multivariate_normal(mean, covariance).logpdf(example.data[0])

    here = value(result.params)
    check(result, here, 1e-8 * abs(here))
    shapes = {k: np.asarray(v) for k, v in result.params.items()}
    free = [k for k in shapes if k != "corr"]

    def build(q: np.ndarray) -> dict:
        params, at = {}, 0
        for name in free:
            size = shapes[name].size
            part = q[at : at + size].reshape(shapes[name].shape)
            params[name] = part if name in ("mu", "beta") else np.exp(part)
            at += size
        if "corr" in shapes:
            r = np.tanh(q[-1])
            params["corr"] = np.array([[1.0, 0.0], [r, np.sqrt(1 - r**2)]])
        return params

    start = [np.ravel(shapes[k] if k in ("mu", "beta") else np.log(shapes[k] + 1e-3)) for k in free]
    start = np.concatenate([*start, [0.0] * ("corr" in shapes)])
    best = optimize.minimize(lambda q: -value(build(q + 0.1)), start - 0.1, method="BFGS")
    assert result.log_likelihood.value > -best.fun - 1e-6
    if example.known is not None:
        assert result.log_likelihood.value == pytest.approx(example.known, abs=1e-4)


@pytest.mark.slow
def test_herds():
    """Against 60 nodes of Gauss and Hermite, not adapted to anything."""
    example = EXAMPLES["herds"]
    cases, animals, period, herd = example.data
    result = fit(example)
    nodes, weights = hermgauss(60)

    def value(q: np.ndarray) -> float:
        effect = q[0] + np.where(period > 0, q[period], 0.0)
        logits = effect[:, None] + np.sqrt(2) * np.exp(q[4]) * nodes
        law = stats.binom(animals[:, None], special.expit(logits))
        by_herd = np.zeros((15, 60))
        np.add.at(by_herd, herd, law.logpmf(cases[:, None]))
        return special.logsumexp(by_herd + np.log(weights / np.sqrt(np.pi)), axis=1).sum()

    best = optimize.minimize(lambda q: -value(q), np.zeros(5), method="BFGS")
    check(result, -best.fun, 1e-5)
    estimates = np.append(result.params["beta"], np.log(result.params["tau"]))
    np.testing.assert_allclose(estimates, best.x, atol=2e-4)


@pytest.mark.slow
def test_latent_classes():
    """Equal classes are a saddle. Against the log-likelihood in the manual of poLCA."""
    check(fit(EXAMPLES["roles"]), EXAMPLES["roles"].known, 1e-4)
