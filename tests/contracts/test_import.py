"""Importing ppl_em is cheap and changes nothing."""

import compileall
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import ppl_em


def python(code: str) -> str:
    """Run code in a fresh interpreter at the top folder."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout


def test_import_touches_no_configuration_and_allocates_nothing():
    code = (
        "import jax, numpyro, warnings; before = dict(jax.config.values); import ppl_em;"
        "assert dict(jax.config.values) == before; assert not jax.live_arrays();"
        "import sys; heavy = {'pandas', 'xarray', 'arviz_base', 'matplotlib', 'optax'};"
        "print(sorted((heavy | {'ppl_em.compare', 'ppl_em.cli'}) & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


def test_what_is_loaded_late_is_there():
    code = (
        "import ppl_em; assert set(ppl_em._LATE) <= set(ppl_em.__all__) <= set(dir(ppl_em));"
        "print(all(getattr(ppl_em, name) is not None for name in ppl_em.__all__))"
    )
    assert python(code).strip() == "True"
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = ppl_em.no_such_name


@pytest.mark.slow
def test_import_costs_little_more_than_numpyro():
    compileall.compile_dir(str(ROOT / "ppl_em"), quiet=2)  # as an installer does
    code = (
        "from time import process_time as now; start = now(); import numpyro; before = now();"
        "import ppl_em; print((now() - start) / (before - start))"
    )
    # Both in one process, so that what else the machine does falls on both.
    assert np.median([float(python(code)) for _ in range(5)]) < 1.2
