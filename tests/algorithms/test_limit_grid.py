"""Every kind of boundary with every algorithm and E-step: all say so, at the limit's value."""

from functools import partial

import boundary_models as models
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from boundary_models import GROUPS
from conftest import SEED
from limit_models import ALONG, COUNTS, DISPERSIONS, POISSON, SIDE, logistic, supremum
from numpyro.distributions import constraints
from scipy import stats

from ppl_em import EM, Direct
from ppl_em.result import Status

ALGORITHMS = {
    "em": EM,
    "auto": partial(EM, finish="auto"),
    "hybrid": partial(EM, finish="direct"),
    "squarem": partial(EM, acceleration="squarem"),
    "direct": Direct,
}

ROWS = models.rows(0.2)
EVENTS = np.tile([1.0, 2, 2, 3, 1, 2], (10, 1))
ZEROS = np.array([1.0, 2, 2, 3, 1, 2, 0, 4, 3, 2, 1, 2])
GROUP, X = np.repeat(np.arange(6), 4), np.tile(np.arange(4) - 1.5, 6)
NOISE = np.random.default_rng(3).normal(size=30)
LINES = 1 + 0.5 * X + NOISE[:6][GROUP] * (1 - 0.5 * X) + 0.5 * NOISE[6:]
ONE_SIDED = np.where(np.arange(60) % 2, 1.0, np.tile([1.0, 0, 0, 0, 1, 0], 10))


def no_dispersion(groups):
    """Counts that vary less than Poisson's, with random effects."""
    k = numpyro.param("k", 2.0, constraint=constraints.positive)
    sd = numpyro.param("sd", 0.5, constraint=constraints.positive)
    with numpyro.plate("groups", 12):
        u = numpyro.sample("u", dist.Normal(0, sd))
    with numpyro.plate("rows", len(groups)):
        rate = jnp.exp(numpyro.param("mu", 1.0) + u[groups])
        numpyro.sample("y", dist.NegativeBinomial2(rate, k), obs=COUNTS)


def treated(y, rows):
    """Every second row is treated, and a success; groups of twelve."""
    b = numpyro.param("b", jnp.zeros(2))
    sd = numpyro.param("sd", 0.8, constraint=constraints.positive)
    with numpyro.plate("groups", 5):
        u = numpyro.sample("u", dist.Normal(0, sd))
    with numpyro.plate("rows", len(rows)):
        eta = b[0] + b[1] * (rows % 2) + u[rows // 12]
        numpyro.sample("y", dist.Bernoulli(logits=eta), obs=y[rows])


def untreated_alone(e_step):
    """Where treated rows say nothing any more: the others' likelihood, with no group effects."""
    del e_step
    y = ONE_SIDED[::2]
    return stats.bernoulli(y.mean()).logpmf(y).sum()


CASES = {
    "variance": (
        models.intercepts, ROWS, "exact", {"tau"},
        lambda e_step: models.maximum(ROWS, [np.eye(7)[GROUPS]])[0],
    ),
    "variance_of_counts": (
        models.counts, {"y": EVENTS}, ("laplace", "quadrature"), {"tau"},
        lambda e_step: stats.poisson(EVENTS.mean()).logpmf(EVENTS).sum(),
    ),
    "probability": (
        models.inflated, {"y": ZEROS}, "exact", {"zero"},
        lambda e_step: stats.poisson(ZEROS.mean()).logpmf(ZEROS).sum(),
    ),
    "correlation": (models.lines, {"x": X, "group": GROUP, "y": LINES}, "exact", {"corr"}, None),
    "dispersion": (
        lambda: DISPERSIONS["negative_binomial"].model(), {}, "exact", {"k"}, lambda e_step: POISSON
    ),
    "dispersion_of_latents": (
        lambda: DISPERSIONS["gamma_latents"].model(), {}, "exact", {"k"}, lambda e_step: POISSON
    ),
    "dispersion_and_variance": (
        no_dispersion, {"groups": np.repeat(np.arange(12), 5)}, ("laplace", "quadrature"),
        {"k", "sd"}, lambda e_step: POISSON,
    ),
    "separation": (
        logistic(ALONG * [1e3, 1e3, 1e-3], SIDE), {}, "exact", {"b[0]", "b[1]"},
        lambda e_step: supremum(ALONG, SIDE),
    ),
    "separation_and_variance": (
        treated, {"y": ONE_SIDED, "rows": np.arange(60)}, ("laplace", "quadrature"),
        {"b[1]", "sd"}, untreated_alone,
    ),
}  # fmt: skip
"""Model, its arguments, E-steps, what is at a bound, and the log-likelihood there."""

QUICK = {("separation", "exact", "squarem"), ("dispersion", "exact", "direct")}


def grid():
    for name, (*_, e_steps, _, _) in CASES.items():
        for e_step in (e_steps,) if isinstance(e_steps, str) else e_steps:
            for algorithm in ALGORITHMS:
                member = (name, e_step, algorithm)
                marks = () if member in QUICK else (pytest.mark.long,)
                yield pytest.param(*member, id="-".join(member), marks=marks)


@pytest.mark.parametrize(("name", "e_step", "algorithm"), list(grid()))
def test_a_boundary_is_found(name, e_step, algorithm):
    model, data, _, labels, value = CASES[name]
    em = ALGORITHMS[algorithm](model, e_step=e_step)
    result = em.run(jax.random.key(SEED), progress_bar=False, **data)
    assert result.status is Status.BOUNDARY and set(result.boundary) == labels
    assert result.num_steps <= 150
    if value is not None:
        assert result.log_likelihood.value == pytest.approx(value(e_step), abs=1e-6)
    else:  # a correlation: one effect by group, that is a line in x
        found = result.params
        slope = float(np.sign(found["corr"])) * found["s1"] * X
        design = np.eye(6)[GROUP] * (found["s0"] + slope)[:, None]
        best, _ = models.marginal({"x": X, "y": LINES}, [(design, 1.0)], float(found["sigma"]))
        assert abs(found["corr"]) == 1
        assert result.log_likelihood.value == pytest.approx(best, abs=1e-6)
