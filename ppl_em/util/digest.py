"""Fingerprints of traced programs: equal where the programs and all their constants are."""

import dataclasses
import enum
import functools
import hashlib
import pathlib
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpyro

KNOWN = tuple(str(pathlib.Path(str(module.__file__)).parent) for module in (jax, numpyro))
"""Folders of functions whose rules for derivatives are those of the version that is installed."""

PLAIN = bool | int | float | complex | str | bytes | np.dtype
"""What `repr` shows in full."""


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """A digest, and objects that count by identity; hashable."""

    digest: str
    held: tuple[Any, ...] = ()


class _Same:
    """An object with the equality of its identity; it is kept, so that its `id` stays its own."""

    def __init__(self, value: Any):
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


def fingerprint(
    function: Callable, *args: Any, notes: Any = (), derived: Callable | None = None
) -> Fingerprint:
    """Trace `function` afresh, and digest its program.

    Parameters
    ----------
    function
        To be traced, through no compiled function of ours: that would give an old trace back.
    args
        Arrays, or shapes of such.
    notes
        A list that `function` may fill while it is traced, digested as well.
    derived
        The same with derivatives, traced and digested where the program alone does not tell what
        they are: where it has rules for them, or what may have none.
    """
    closed = jax.make_jaxpr(lambda *traced: function(*traced))(*args)
    writer = _Writer()
    writer.write(closed)
    writer.write(notes)
    if derived is not None and _has_own_derivatives(closed.jaxpr):
        writer.write(jax.make_jaxpr(lambda *traced: derived(*traced))(*args))
    return writer.fingerprint()


def _has_own_derivatives(jaxpr: Any) -> bool:
    """Whether derivatives of a program may be other than what JAX and NumPyro make of it."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if "callback" in name or name == "while":
            return True
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                own: Any = getattr(inner, "jaxpr", inner)
                if not hasattr(own, "eqns"):
                    continue
                source = str(getattr(own.debug_info, "func_src_info", ""))
                if name.startswith("custom_") and not any(known in source for known in KNOWN):
                    return True
                if _has_own_derivatives(own):
                    return True
    return False


def program_and_digest(function: Callable) -> tuple[Any, Fingerprint]:
    """The program of a function without arguments, and a digest of it without its constants."""
    closed = jax.make_jaxpr(lambda: function())()
    writer = _Writer()
    writer._jaxpr(closed.jaxpr)
    return closed, writer.fingerprint()


class _Writer:
    """Feeds values of all kinds to a hash, each with its type."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=20)
        self.held: dict[_Same, int] = {}
        self.open: set[int] = set()  # functions that are being written, as they may be recursive

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(self.hash.hexdigest(), tuple(self.held))

    def text(self, *words: Any) -> None:
        for word in words:
            data = str(word).encode()
            self.hash.update(f"{len(data)}:".encode() + data)

    def write(self, value: Any) -> None:
        """Digest a value by its content where it has any, else hold it."""
        self.text(type(value).__qualname__)
        if value is None or isinstance(value, PLAIN):
            self.text(repr(value))
        elif isinstance(value, type):
            self.text(value.__module__, value.__qualname__)
        elif isinstance(value, enum.Enum):
            self.text(value.name)
        elif isinstance(value, tuple | list):
            self._all(value)
        elif isinstance(value, dict | types.MappingProxyType):
            self._all([part for item in value.items() for part in item])
        elif isinstance(value, set | frozenset):
            self._all(sorted(value, key=repr))
        elif hasattr(value, "jaxpr") and hasattr(value, "consts"):
            self._jaxpr(value.jaxpr)
            self._all(value.consts)
        elif hasattr(value, "eqns"):
            self._jaxpr(value)
        elif hasattr(value, "dtype") and hasattr(value, "shape"):
            self._array(value)
        elif isinstance(value, functools.partial):
            self._all([value.func, value.args, value.keywords])
        elif isinstance(value, types.MethodType):
            self.write(value.__func__)
            self._hold(value.__self__)
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif dataclasses.is_dataclass(value):
            self._all([getattr(value, field.name) for field in dataclasses.fields(value)])
        elif " at 0x" in (words := repr(value)) or "..." in words:
            self._hold(value)
        else:
            self.text(words)

    def _all(self, values: Any) -> None:
        self.text(len(values))
        for value in values:
            self.write(value)

    def _hold(self, value: Any) -> None:
        self.text(self.held.setdefault(_Same(value), len(self.held)))

    def _array(self, value: Any) -> None:
        """Values, or of something abstract (or spread over processes) what is here of it."""
        self.text(value.shape, value.dtype, getattr(value, "weak_type", None))
        if isinstance(value, jax.core.ShapedArray | jax.ShapeDtypeStruct | jax.core.Tracer):
            return
        if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        parts = [value]
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            parts = [shard.data for shard in value.addressable_shards]
        for part in parts:
            array = np.ascontiguousarray(np.asarray(part))
            if array.dtype == object:
                self._all(array.ravel().tolist())
            else:
                self.hash.update(array.view(np.uint8).data if array.size else b"")

    def _jaxpr(self, jaxpr: Any) -> None:
        """Equations with their variables numbered, and no word of where they were written."""
        numbers: dict[Any, int] = {}

        def define(variables: Any) -> None:
            self.text(len(variables))
            for variable in variables:
                numbers[variable] = len(numbers)
                self.write(variable.aval)

        def use(atoms: Any) -> None:
            self.text(len(atoms))
            for atom in atoms:
                if hasattr(atom, "val"):
                    self.write(atom.aval)
                    self.write(atom.val)
                else:
                    self.text(numbers[atom])

        define(jaxpr.constvars)
        define(jaxpr.invars)
        self.text(len(jaxpr.eqns))
        for equation in jaxpr.eqns:
            self.text(equation.primitive.name)
            use(equation.invars)
            for name in sorted(equation.params):
                self.text(name)
                self._param(equation.primitive.name, equation.params[name])
            define(equation.outvars)
        use(jaxpr.outvars)

    def _param(self, primitive: str, value: Any) -> None:
        # A derivative rule is a new object in every trace. What it does is seen where it is
        # applied, in a program that has derivatives in it; here is where it comes from.
        rule = callable(value) and not hasattr(value, "jaxpr")
        if primitive.startswith("custom_") and rule:
            self.text(getattr(getattr(value, "debug_info", None), "func_src_info", ""))
        else:
            self.write(value)

    def _function(self, function: types.FunctionType) -> None:
        """A function that the program calls back: what is global is read when it is called."""
        if id(function) in self.open:
            return
        self.open.add(id(function))
        self.text(function.__module__)
        self._code(function.__code__)
        self._all([function.__defaults__, function.__kwdefaults__])
        for cell in function.__closure__ or ():
            try:
                self.write(cell.cell_contents)
            except ValueError:  # not yet filled
                self.text("empty")
        self.open.discard(id(function))

    def _code(self, code: types.CodeType) -> None:
        self.text(code.co_code, code.co_names, code.co_varnames)
        self._all(code.co_consts)
