"""Functions that are compiled when they are called: in a hurry where the data are few.

XLA spends most of the time of a first fit on making programs fast that run for milliseconds. A
program for few data is compiled with less care instead, in half the time or less.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jaxlib
import numpy as np
from jax._src.core import trace_state_clean

FEW, MANY = 2_000, 200_000
"""Numbers in the arguments of a call up to which it is compiled in a hurry, or with little care."""


def _options(level: int) -> dict[str, Any]:
    """Options of XLA's compiler for CPUs, for code that is slower, and as right."""
    options: dict[str, Any] = {
        "xla_backend_optimization_level": level,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    if tuple(int(part) for part in jaxlib.__version__.split(".")[:2]) < (0, 11):
        options["xla_cpu_use_fusion_emitters"] = False  # later versions have no choice
    return options


class Compiled:
    """`jax.jit` of a function, several times: in a hurry, with little care, and as XLA does it.

    Within a program that is being traced it is the usual one, and part of that program.
    """

    def __init__(
        self,
        function: Callable,
        static_argnums: int | tuple[int, ...] = (),
        runs_long: bool = False,
    ):
        functools.update_wrapper(self, function)
        self._jit = functools.partial(jax.jit, function, static_argnums=static_argnums)
        self._runs_long = runs_long

    @functools.cached_property
    def usual(self) -> Any:
        """As XLA compiles it; each of the three is made when first asked for."""
        return self._jit()

    @functools.cached_property
    def careless(self) -> Any:
        """With little care."""
        return self._jit(compiler_options=_options(1))

    @functools.cached_property
    def hurried(self) -> Any:
        """In a hurry, unless it runs long."""
        return self.careless if self._runs_long else self._jit(compiler_options=_options(0))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._for(args, kwargs)(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As of `jax.jit`."""
        return self._for(args, kwargs).lower(*args, **kwargs)

    def _cache_size(self) -> int:
        """As of `jax.jit`."""
        return sum(one._cache_size() for one in {self.usual, self.careless, self.hurried})

    def clear_cache(self) -> None:
        """Forget all that was compiled."""
        for one in (self.usual, self.careless, self.hurried):
            one.clear_cache()

    def _for(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not trace_state_clean() or jax.default_backend() != "cpu":
            return self.usual
        if any(getattr(value, "runs_long", False) for value in args):
            return self.careless
        leaves = jax.tree.leaves((args, kwargs))
        count = sum(leaf.size for leaf in leaves if isinstance(leaf, jax.Array | np.ndarray))
        return self.hurried if count <= FEW else self.careless if count <= MANY else self.usual


def compiled(
    function: Any = None,
    *,
    static_argnums: int | tuple[int, ...] = (),
    runs_long: bool = False,
) -> Any:
    """`jax.jit` for the programs of this package, as a decorator with or without arguments.

    One that runs for long whatever the size of its arguments is not compiled in a hurry.
    """
    if function is None:
        return functools.partial(compiled, static_argnums=static_argnums, runs_long=runs_long)
    return Compiled(function, static_argnums, runs_long)
