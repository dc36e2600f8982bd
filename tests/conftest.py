"""Shared set-up: double precision, a persistent compilation cache, the models folder."""

import gc
import importlib.metadata
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator
from types import ModuleType

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and run little: spend less on optimising what they compile.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
if int(importlib.metadata.version("jaxlib").split(".")[1]) < 11:  # later ones refuse the flag
    # Half of the compiler's time here goes to an emitter that can be left out.
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
# Every operation is compiled with the call stack it came from, which is deep under pytest.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

import jax
import numpyro
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Tracing allocates much that lives on: collect seldom, and not what the imports left.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

numpyro.enable_x64()
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

SEED = int(os.environ.get("PPL_EM_TEST_SEED", "0"))
"""Base of every random key in the tests; set the variable to sweep it."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as long what takes seconds and has quicker siblings, by parameters or in kind."""
    long = {*(ROOT / "tests" / "long.txt").read_text().splitlines()}
    for item in items:
        if item.nodeid in long:
            item.add_marker(pytest.mark.long)


MAX_MAPS = 45_000
"""Memory maps of a process, of which Linux allows 65530 and each compiled program takes some."""


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forget compiled programs when they have become very many."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAX_MAPS:
        jax.clear_caches()


@pytest.fixture
def rng_key() -> jax.Array:
    """A new-style random key."""
    return jax.random.key(SEED)


@pytest.fixture
def optimized() -> Iterator[None]:
    """Compile for speed: for tests that run for much longer than they compile."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def load_model(name: str) -> ModuleType:
    """Load `models/NAME.py` from the checkout."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "models" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_reference(name: str) -> dict:
    """Read `tests/reference/NAME.json`."""
    return json.loads((ROOT / "tests" / "reference" / f"{name}.json").read_text())
