"""How many programs the first fit of a process compiles: each costs time before the answer."""

import pathlib
import runpy

import pytest
from conftest import ROOT

BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "first_fit.py"))
AT_MOST = {name: 25 for name in BENCHMARK["MODELS"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seeds:laplace", "faithful"])
def test_first_fit(name, tmp_path):
    found = BENCHMARK["in_a_process"](name, str(pathlib.Path(tmp_path) / "cache"))
    assert 5 < found["programs"] <= AT_MOST[name]
    assert found["second"] < found["first"]
