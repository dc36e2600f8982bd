"""The marginal log-likelihood by group, against closed forms and nodes."""

import grouped_models as models
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from ppl_em import EM
from ppl_em.fit.after.by_group import _proposals, _sampled


def data_of(name):
    data = models.rows()
    if name == "logistic":
        data["y"] = (data["y"] > 0.8).astype(float)
    if name == "rates":
        data["y"] = np.random.default_rng(1).poisson(2.0, size=len(data["y"]))
    order = np.random.default_rng(2).permutation(len(data["y"]))  # groups need not be in order
    return data | {name: data[name][order] for name in ("x", "group", "y")}


CASES = [
    pytest.param("gaussian", "exact", 1e-10, marks=pytest.mark.slow),
    ("gaussian", "laplace", 1e-10),
    pytest.param("logistic", "quadrature", 1e-8, marks=pytest.mark.slow),
    ("mixture", "exact", 1e-10),
    pytest.param("rates", "exact", 1e-10, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "flag", "error"), CASES)
def test_values_and_scores(rng_key, name, flag, error):
    data = data_of(name)
    fit = EM(getattr(models, name), e_step=flag).run(rng_key, **data, progress_bar=False)
    by_hand = getattr(models, f"{name}_by_group")
    inquiry, problem = fit.parts.inquiry(""), fit.parts.problem
    groups = inquiry.by_group.groups
    alone = name == "mixture"
    assert groups.number == (len(data["y"]) if alone else data["number"])
    own = np.arange(len(data["y"])) if alone else data["group"]
    # Groups are numbered in some order; a cell says which is whose.
    order = np.array([groups.cells["y"][own == g][0] for g in range(groups.number)])
    assert all(len(set(groups.cells["y"][own == g])) == 1 for g in range(groups.number))
    x = np.asarray(fit.parts.x)
    for there in (x, x + 0.2):
        found = inquiry.by_group(there[None])[0]
        expected = by_hand(problem.constrain(jax.numpy.asarray(there)), data)
        np.testing.assert_allclose(found[order], expected, atol=error, rtol=error)
    assert abs(inquiry.by_group(x[None]).sum() - fit.log_likelihood.value) < 1e-8

    def value(x):
        return by_hand(problem.constrain(jax.numpy.asarray(x)), data)

    width = 1e-5
    slopes = [(value(x + width * e) - value(x - width * e)) / (2 * width) for e in np.eye(len(x))]
    np.testing.assert_allclose(inquiry.scores[order], np.array(slopes).T, atol=2e-6)


def test_draws_agree_within_their_noise(rng_key):
    data = data_of("gaussian")
    fit = EM(models.gaussian, e_step="exact").run(rng_key, **data, progress_bar=False)
    inquiry = fit.parts.inquiry("")
    groups, problem = inquiry.by_group.groups, fit.parts.problem
    draws = np.asarray(problem.ravel(fit.posterior.mean()))
    sd = np.asarray(problem.ravel(fit.posterior.sd()))
    noise = np.random.default_rng(0).normal(size=(2000, len(sd)))
    proposals = _proposals(draws + sd * noise, groups)
    points = np.repeat(np.asarray(fit.parts.x)[None], 64, axis=0)
    owner = jax.numpy.asarray(groups.owner)
    found = np.asarray(_sampled(groups.number, problem, points, 1, owner, proposals))[0]
    expected = inquiry.by_group(points[:1])[0]
    # Weights of a t proposal of a normal law scatter by about 0.2, over 1000 draws.
    np.testing.assert_allclose(found, expected, atol=5 * 0.25 / np.sqrt(1000))


@pytest.mark.slow
def test_chains_in_a_plate_are_groups(rng_key):
    def hidden(y):
        stay = numpyro.param("stay", 0.7, constraint=constraints.unit_interval)
        moves = jax.numpy.array([[stay, 1 - stay], [1 - stay, stay]])

        def step(state, y):
            with numpyro.plate("series", 3):
                state = numpyro.sample("state", dist.Categorical(moves[state]))
                numpyro.sample("y", dist.Normal(2.0 * state, 1.0), obs=y)
            return state, None

        scan(step, jax.numpy.zeros(3, int), y)

    y = np.random.default_rng(0).normal(np.arange(3.0), size=(6, 3))
    fit = EM(hidden).run(rng_key, y, progress_bar=False)
    stay = float(fit.params["stay"])
    expected = []
    for series in y.T:
        law, total = np.array([1.0, 0.0]), 0.0
        for value in series:
            law = law @ np.array([[stay, 1 - stay], [1 - stay, stay]])
            law = law * np.exp(-0.5 * (value - np.array([0.0, 2.0])) ** 2) / np.sqrt(2 * np.pi)
            total, law = total + np.log(law.sum()), law / law.sum()
        expected.append(total)
    inquiry = fit.parts.inquiry("")
    cells = inquiry.by_group.groups.cells["y"]
    assert cells.shape == (6, 3) and all(len(set(column)) == 1 for column in cells.T)
    found = inquiry.by_group(np.asarray(fit.parts.x)[None])[0]
    np.testing.assert_allclose(found[cells[0]], expected, rtol=1e-10)
    assert fit.num_groups == 3 and fit.num_obs == 18


@pytest.mark.slow
def test_masks_by_a_latent_and_factors(rng_key):
    """A zero-inflated model by a mask, and its data in a `numpyro.factor`."""

    def inflated(y):
        rate = numpyro.param("rate", 2.0, constraint=constraints.positive)
        share = numpyro.param("share", 0.3, constraint=constraints.unit_interval)
        with numpyro.plate("rows", len(y)):
            never = numpyro.sample("never", dist.Bernoulli(share))
            numpyro.factor("impossible", jax.numpy.where((never == 1) & (y > 0), -np.inf, 0.0))
            with numpyro.handlers.mask(mask=never == 0):
                numpyro.sample("y", dist.Poisson(rate), obs=y)

    y = np.array([0, 0, 3, 1, 0, 2, 4, 0, 1, 0])
    fit = EM(inflated).run(rng_key, y, progress_bar=False)
    assert fit.num_obs == fit.num_groups == 10
    rate, share = float(fit.params["rate"]), float(fit.params["share"])
    poisson = y * np.log(rate) - rate - np.log([1, 1, 6, 1, 1, 2, 24, 1, 1, 1])
    expected = np.log((1 - share) * np.exp(poisson) + share * (y == 0))
    inquiry = fit.parts.inquiry("")
    found = inquiry.by_group(np.asarray(fit.parts.x)[None])[0]
    np.testing.assert_allclose(found[inquiry.by_group.groups.cells["y"]], expected, rtol=1e-10)
