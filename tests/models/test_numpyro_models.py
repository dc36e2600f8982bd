"""Models of the kinds in NumPyro's examples, notebooks and tests: right, or refused, and why.

Each is in `tests/helpers/numpyro_models/`, with its source and what is to come out. What is fitted
is compared with its marginal likelihood by brute force, a Gaussian formula or quadrature, through
NumPyro's own log-density: the value, and that it is largest there.
"""

import jax
import pytest
from numpyro_models import CASES
from numpyro_models.fits import check

QUICK = [name for name, case in CASES.items() if case.quick]
OTHERS = [name for name in CASES if name not in QUICK]


def test_there_are_many():
    assert len(CASES) >= 150
    assert len({case.source for case in CASES.values()}) >= 130


@pytest.mark.parametrize("name", QUICK)
def test_a_model(name):
    check(CASES[name])


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_another_model(name):
    check(CASES[name])
    jax.clear_caches()
