"""Versions of jaxlib that must not be relied on."""

import warnings
from fnmatch import fnmatch

import jax
import jaxlib

FAULTY_ON_CPU = ("0.10.*", "0.11.0")
"""Versions whose programs for processors can hang, or give other numbers for the same input.

`pyproject.toml` excludes the same ones; `docs/upstream/jaxlib-0.10-cpu.md` shows the faults.
"""

_warned: set[str] = set()


def warn_of_faulty_jaxlib(stacklevel: int) -> None:
    """Warn, once per process, if fits on a processor can hang or be wrong with this jaxlib."""
    version = jaxlib.__version__
    if version in _warned or not any(fnmatch(version, faulty) for faulty in FAULTY_ON_CPU):
        return
    if jax.default_backend() != "cpu":
        return
    _warned.add(version)
    others = ",".join(f"!={faulty}" for faulty in FAULTY_ON_CPU)
    warnings.warn(
        f"jaxlib {version} is installed, with which fits on a CPU can hang, or give other numbers "
        f"for the same input. Install another version: pip install 'jax{others}' "
        f"'jaxlib{others}'.",
        stacklevel=stacklevel + 1,
    )
