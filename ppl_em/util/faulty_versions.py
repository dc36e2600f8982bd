"""Versions of jaxlib that must not be relied on."""

import warnings

import jax
import jaxlib

FAULTY_ON_CPU = ("0.10.",)
"""How versions start whose processor backend hangs, or gives other numbers for the same input."""

_warned: set[str] = set()


def warn_of_faulty_jaxlib(stacklevel: int) -> None:
    """Warn, once per process, if fits on a processor can hang or be wrong with this jaxlib."""
    version = jaxlib.__version__
    if version in _warned or not version.startswith(FAULTY_ON_CPU):
        return
    if jax.default_backend() != "cpu":
        return
    _warned.add(version)
    warnings.warn(
        f"jaxlib {version} is installed, with which fits on a CPU can hang, or give other numbers "
        "for the same input. Install another version: pip install 'jax!=0.10.*' 'jaxlib!=0.10.*'.",
        stacklevel=stacklevel + 1,
    )
