"""The model as it is run: laws with all derivatives, one random key, scans from any start."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
from jax._src.core import trace_state_clean
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.distributions.distribution import validation_enabled
from numpyro.primitives import Messenger

from ppl_em.discrete import safe, scan_from_any_start
from ppl_em.util import ModelError

logger = logging.getLogger("ppl_em")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model as a model of its own, see `_Prepare`.

    `rng_key` is what it gets that asks for a key, as `numpyro.prng_key()` does: the same in every
    run, so that its log-density is one function. `any_start` says that the first step of a scan
    may hand on another kind of carry than it got. `said` collects what the log has been told.
    """

    model: Callable
    rng_key: jax.Array
    any_start: bool = False
    said: set[str] = field(default_factory=set, compare=False)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # In a program laws cannot be checked, but what is known already would be computed for it.
        inside = not trace_state_clean()
        with validation_enabled(False) if inside else contextlib.nullcontext():
            return _Prepare(self.model, self)(*args, **kwargs)

    @property
    def __name__(self) -> str:
        return getattr(self.model, "__name__", type(self.model).__name__)

    @property
    def __wrapped__(self) -> Callable:  # for `inspect.signature`
        return self.model


class _Prepare(Messenger):
    """Run a model with laws that are safe to differentiate, and with answers to its questions."""

    def __init__(self, fn: Callable, prepared: Prepared, in_scan: bool = False):
        super().__init__(fn)
        self.prepared, self.in_scan = prepared, in_scan
        self.count = 0
        self.busy = False

    def process_message(self, msg: dict[str, Any]) -> None:
        """Change the laws of sites, the bodies of scans, and give keys."""
        if msg["type"] == "prng_key":
            # While a site is on its way, it is not the model that asks, but a `block` around it.
            if msg["value"] is None and not self.busy:
                msg["value"] = self._key()
            return
        self.busy = True
        if msg["type"] == "sample":
            msg["fn"] = safe(msg["fn"])
        elif msg["type"] == "control_flow":
            args, is_scan = [*msg["args"]], msg["fn"] is scan_wrapper
            for place in (0,) if is_scan else (1, 2):  # the branches of a `cond`
                args[place] = _Prepare(args[place], self.prepared, True)
            msg["args"] = tuple(args)
            if self.prepared.any_start and is_scan:
                msg["fn"] = scan_from_any_start

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        """The site has arrived."""
        self.busy = False

    def _key(self) -> jax.Array:
        if self.in_scan:
            raise ModelError(
                f"Model '{self.prepared.__name__}': it asks for a key in a `scan` or a `cond`. "
                f"Split a key before it, one for each step, and scan over them."
            )
        if "key" not in self.prepared.said:
            self.prepared.said.add("key")
            logger.info("the model asks for random numbers: one key, from the run's, stays fixed")
        self.count += 1
        return jax.random.fold_in(self.prepared.rng_key, self.count)
