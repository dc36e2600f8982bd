"""Importance-sampling diagnostics and likelihoods against known answers."""

import numpy as np
import pytest
from conftest import SEED
from scipy import stats

from ppl_em import LogLikelihood
from ppl_em.evidence import pareto_khat


@pytest.mark.parametrize("scale", [1.2, 1.5, 3.0])
def test_khat_of_a_narrow_normal_proposal(scale):
    """Target Normal(0, scale), proposal Normal(0, 1): weights have tail index 1 - 1 / scale^2."""
    z = np.random.default_rng(SEED).standard_normal(100_000)
    log_ratios = stats.norm.logpdf(z, scale=scale) - stats.norm.logpdf(z)
    # The tail is Pareto only in the limit: 900 points of it carry an error of about 0.1.
    assert abs(pareto_khat(log_ratios) - (1 - 1 / scale**2)) < 0.15


@pytest.mark.parametrize("seed", range(20))
def test_khat_of_bounded_weights_is_negative(seed):
    """A Student-t proposal for a normal target has weights with an upper bound."""
    z = np.random.default_rng(SEED + seed).standard_t(7, 4000)
    assert pareto_khat(stats.norm.logpdf(z) - stats.t.logpdf(z, 7)) < 0


@pytest.mark.parametrize("one_in", [20, 60, 100, 160, 250, 500])
def test_khat_of_bounded_weights_that_end_in_a_bump(one_in):
    """Nearly equal weights, and few of them up to a fifth larger: nothing is heavy there."""
    for seed in range(10):
        rng = np.random.default_rng(SEED + seed)
        flat = 0.842 - 0.25 * rng.standard_normal(4000) ** 2 / 10
        weights = np.where(rng.random(4000) < 1 / one_in, rng.uniform(0.85, 1.0, 4000), flat)
        assert pareto_khat(np.log(weights)) < 0.7


@pytest.mark.parametrize("size", [1e4, 1e6, 1e8])
def test_khat_of_few_draws_that_outweigh_all_others(size):
    """However badly the Pareto law fits, that is not called usable."""
    for seed in range(10):
        rng = np.random.default_rng(SEED + seed)
        weights = rng.uniform(0.8, 1.0, 4000)
        weights[:3] *= size
        assert pareto_khat(np.log(weights)) > 0.7


def test_a_bad_khat_is_said_in_words():
    assert "neither the value nor its error" in str(LogLikelihood(-1.0, "estimate", 0.1, 0.9))
    assert "far from the posterior" in str(LogLikelihood(-1.0, "lower_bound", 0.1, 0.9))
    assert "trusted" not in str(LogLikelihood(-1.0, "estimate", 0.1, 0.3))
    assert str(LogLikelihood(-1.0, "exact")) == "-1.000000 (exact)"
