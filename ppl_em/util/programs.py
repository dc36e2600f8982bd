"""Compiled programs of the package: one at a time is traced, and old ones are dropped.

NumPyro's stack of handlers is one for all threads, so two models traced side by side would see
each other's sites. And a process has room for a limited number of compiled programs: each takes
memory maps, of which Linux allows some 65,000.
"""

import contextlib
import gc
import logging
import pathlib
import sys
import threading
from collections.abc import Hashable, Iterator

import jax

logger = logging.getLogger("ppl_em")

MAX_MODELS = 50
"""Different models whose programs are kept; some 40 MB and 600 memory maps each."""

SHARE = 0.5
"""Share of the memory maps that Linux allows, above which programs are dropped."""

_LOCK = threading.RLock()
_depth = 0
_models: set[Hashable] = set()


@contextlib.contextmanager
def alone() -> Iterator[bool]:
    """Let no other thread fit or evaluate a model meanwhile; true for the outermost of a thread."""
    global _depth
    with _LOCK:
        _depth += 1
        try:
            yield _depth == 1
        finally:
            _depth -= 1


def make_room(model: Hashable) -> None:
    """Drop all compiled programs of the package if there is no room for those of another model.

    Parameters
    ----------
    model
        The fingerprint of the model that is about to be fitted.
    """
    if model in _models:
        return
    if len(_models) >= MAX_MODELS or _maps_used() > SHARE:
        _drop()
        if _maps_used() > SHARE:  # not ours alone
            jax.clear_caches()
            gc.collect()
    _models.add(model)


def _drop() -> None:
    logger.info("programs of %d models are dropped", len(_models))
    _models.clear()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == __name__.partition(".")[0]:
            for value in list(vars(module).values()):
                if (
                    hasattr(value, "lower")
                    and hasattr(value, "clear_cache")
                    and not isinstance(value, type)
                ):
                    value.clear_cache()
    gc.collect()


def _maps_used() -> float:
    """The share of memory maps that is taken; 0 where the system does not count them."""
    try:
        limit = int(pathlib.Path("/proc/sys/vm/max_map_count").read_text())
        return pathlib.Path("/proc/self/maps").read_bytes().count(b"\n") / limit
    except (OSError, ValueError):
        return 0.0
