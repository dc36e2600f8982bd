"""Several models of the same data: noise columns last, a true covariate found."""

import grouped_models as models
import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from ppl_em import EM, ModelError, compare_models


def fitted(model, data, **options):
    return EM(model, **options).run(jax.random.key(0), **data, progress_bar=False)


def with_noise(seed, columns=25, **options):
    data = models.rows(seed, **options)
    noise = np.random.default_rng(10_000 + seed).normal(size=(len(data["y"]), columns))
    return data, data | {"x": np.column_stack([data["x"], noise])}


@pytest.fixture(scope="module")
def fits():
    data, noisy = with_noise(1, 8, number=25, size=8)
    return {
        "noise": fitted(models.gaussian, noisy),
        "true": fitted(models.gaussian, data),
        "no effect": fitted(models.gaussian, data | {"x": data["x"][:, :1]}),
        "no groups": fitted(models.line, data),
    }


@pytest.mark.slow
def test_the_table(fits):
    table = compare_models(fits)
    assert table.index[0] == "true" and table.attrs["notes"] == []
    assert table.loc["true", ["delta_elpd", "delta_aic", "delta_bic"]].tolist() == [0, 0, 0]
    assert table["num_params"].to_dict() == {"noise": 12, "true": 4, "no effect": 3, "no groups": 3}
    for name, fit in fits.items():
        assert table.loc[name, "aic"] == fit.aic and table.loc[name, "bic"] == fit.bic
        own = fit.leave_one_out().elpd
        if name != "no groups":  # there rows are groups, and subjects are left out together here
            assert table.loc[name, "elpd"] == pytest.approx(own, abs=1e-9)
        else:
            assert abs(table.loc[name, "elpd"] - own) > 1e-3


@pytest.mark.slow
def test_groups_left_out_are_predicted_by_fits_to_the_others(fits):
    """Against refits without each group, their parameters drawn from their own law."""
    fit, data = fits["true"], models.rows(1, number=25, size=8)
    found = fit.leave_one_out(jax.random.key(3))
    assert np.max(found.khat) < 0.7
    cells = fit.parts.inquiry("").by_group.groups.cells["y"]
    for group in (0, 7):
        kept = cells != group
        rest = data | {name: data[name][kept] for name in ("x", "group", "y")}
        rest["group"] = np.unique(rest["group"], return_inverse=True)[1]
        other = fitted(models.gaussian, rest | {"number": 24})
        inquiry = other.parts.inquiry("")
        noise = np.random.default_rng(0).multivariate_normal(
            np.asarray(other.parts.x), inquiry.covariance_x, size=400
        )
        values = fit.parts.inquiry("").by_group(noise)[:, group]
        expected = logsumexp(values) - np.log(len(values))
        assert abs(found.pointwise[group] - expected) < 0.15  # of two normal laws, not the same


@pytest.mark.slow
def test_refusals(fits):
    data = models.rows(1, number=25, size=8)
    other = fitted(models.line, data | {"y": data["y"] * 2})
    with pytest.raises(ModelError, match="different data"):
        compare_models({"a": fits["true"], "b": other})
    with pytest.raises(ModelError, match="no fits"):
        compare_models({})


@pytest.mark.long
def test_noise_last_and_effects_found(optimized):
    noise, effects = 0, 0
    for seed in range(100):
        data, noisy = with_noise(seed, number=25, size=8)
        table = compare_models(
            {
                "noise": fitted(models.gaussian, noisy),
                "true": fitted(models.gaussian, data),
                "without": fitted(models.gaussian, data | {"x": data["x"][:, :1]}),
            }
        )
        noise += table.loc["true", "elpd"] > table.loc["noise", "elpd"]
        effects += table.loc["true", "elpd"] > table.loc["without", "elpd"]
    assert noise >= 95 and effects >= 95
