"""The same input gives the same answer, and one at all, whatever the number of threads."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "determinism.py"


AS_USERS_DO = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
"""Set for the tests, but not here: programs are compiled as for users."""


def repeated(*options: str) -> None:
    """Run the script, which compares; its table is shown if anything differs."""
    environment = {
        **{name: value for name, value in os.environ.items() if name not in AS_USERS_DO},
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(SCRIPT), "--threads", "1", "2", "4", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "all equal"


@pytest.mark.slow
def test_a_linear_mixed_model():
    repeated("--groups", "2000", "--repeats", "2", "--models", "linear, 2 effects")


@pytest.mark.long
def test_all_models_with_many_groups():
    repeated("--groups", "10000", "--repeats", "3")


@pytest.mark.slow
def test_a_fit_that_does_not_end_is_a_fault():
    command = [sys.executable, str(SCRIPT), "--threads", "1", "--groups", "50", "--repeats", "1"]
    command += ["--limit", "0.1", "--models", "linear, 2 effects"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 of 1 fits did not end with 1 threads" in done.stdout
