"""A fit in one line, in words and as a table of a notebook."""

import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from small_models import POSITIVE

from ppl_em import EM, EMResult

Y = np.random.default_rng(3).normal(size=(4, 100)) * 2.0


def wide(y):
    """A hundred means, and a site whose name is no HTML."""
    mean = numpyro.param("mean", jnp.zeros(y.shape[1]))
    sd = numpyro.param("sd <b>", 1.0, constraint=POSITIVE)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Normal(mean, sd).to_event(1))
        numpyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)


@pytest.fixture(scope="module")
def fit() -> EMResult:
    return EM(wide, "exact").run(jax.random.key(0), Y, progress_bar=False)


def test_repr_is_one_line(fit):
    assert repr(fit) == (
        f"<EMResult: CONVERGED, log-likelihood {fit.log_likelihood}, 101 parameters, "
        f"{fit.num_steps} steps>"
    )


def test_html_is_a_table_of_what_the_summary_holds(fit):
    page = ET.fromstring(fit._repr_html_())
    (table,) = page.iter("table")
    rows = [[cell.text for cell in row] for row in table.iter("tr")]
    assert rows[0] == ["parameter", "estimate", "se", "lower", "upper"]
    assert len(rows) == 62 and rows[31] == ["... 41 more ..."]
    summary = fit.summary().drop(columns="mcse")
    for label, *cells in (rows[1], rows[61]):
        np.testing.assert_allclose([float(c) for c in cells], summary.loc[label], rtol=1e-4)
    assert rows[61][0] == "sd <b>"
    text = "".join(page.itertext())
    assert f"log-likelihood {fit.log_likelihood}" in text and fit.status.value in text
    assert str(fit.certificate) in text
    assert len(fit._repr_html_()) < 10_000


def test_dir_shows_what_users_use(fit):
    names = [name for name in dir(fit) if not name.startswith("_")]
    assert {"params", "summary", "standard_errors", "audit", "save", "to_datatree"} <= {*names}
    assert "parts" not in names
    assert all(hasattr(fit, name) for name in names)
