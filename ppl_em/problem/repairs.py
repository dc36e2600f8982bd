"""What may be wrong with an argument of a model, and the same argument without that."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SCALARS = (bool, int, float, complex, str, bytes, type(None), np.generic)


NO_ARRAY = ("len()", "unsized", "0-dim", "not iterable", "not subscriptable", "too many ind")
"""What a model complains of that gets one number instead of many."""

INDEXED = "__array__() was called on traced array with shape int"
"""What JAX says if an array of NumPy is indexed by what is known in a program only."""


class Repair(NamedTuple):
    """A fact about an argument, what a user can do about it, and the value after that."""

    fact: str
    remedy: str
    value: Any
    is_container: bool = False
    """Whether it is about what the values are in, not about themselves."""


def is_frame(value: Any) -> bool:
    """Whether this is one of the containers of pandas."""
    return type(value).__module__.split(".")[0] == "pandas"


def is_listed(value: Any) -> bool:
    """Whether this is a list or tuple of plain values, which stands for an array."""
    plain = type(value) in (list, tuple) and len(value) > 0
    return plain and all(isinstance(entry, SCALARS) for entry in value)


def repairs(name: str, value: Any, complaint: str) -> list[Repair]:
    """What may be wrong with the argument `name`, each with all that comes before it mended.

    Parameters
    ----------
    name
        Of the argument, for remedies.
    value
        As it was given.
    complaint
        What the model said when it failed, in lower case: some repairs answer only to that.
    """
    kind = type(value).__name__
    if is_frame(value) and hasattr(value, "columns"):
        return _of_table(name, value, complaint)
    if isinstance(value, int | float | np.number) or getattr(value, "shape", None) == ():
        return _of_number(name, value, complaint)
    if is_frame(value) and hasattr(value, "to_numpy" if kind != "Categorical" else "codes"):
        array, codes = _from_pandas(value)
        if codes is not None:
            remedy = f"Pass its codes, which count from 0: `pandas.factorize({name})[0]`"
            return [Repair(f"it is a categorical {kind} of pandas", remedy, codes)]
        array_of, what = f"`{name}.to_numpy()`", f"a {kind} of pandas"
    elif is_listed(value) or isinstance(value, set | frozenset):
        array = np.asarray(list(value))
        array_of, what = f"an array, `numpy.asarray({name})`", f"a {kind}"
    elif hasattr(value, "toarray") or hasattr(value, "to_numpy"):
        method = "toarray" if hasattr(value, "toarray") else "to_numpy"
        array = np.asarray(getattr(value, method)())
        array_of, what = f"an array, `{name}.{method}()`", f"a {kind}"
    elif isinstance(value, np.ndarray):
        found = _of_array(name, value, complaint)
        if not found and INDEXED in complaint:
            fact = "it is an array of NumPy, which no number inside a `scan` or a plate can index"
            found = [Repair(fact, f"Pass `jax.numpy.asarray({name})`", jnp.asarray(value))]
        return found
    elif isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.number):
        return _of_array(name, np.asarray(value), complaint)
    else:
        return []
    container = Repair(f"it is {what}", f"Pass {array_of}", array, True)
    return [container, *_of_array(name, array, complaint)]


def _of_table(name: str, table: Any, complaint: str) -> list[Repair]:
    """Repairs of a data frame: as a dictionary of arrays, then column by column."""
    names = list(table)
    found = []
    if len(names) == 1:
        array = _from_pandas(table[names[0]])[0]
        remedy = f"Pass its column, `{name}[{names[0]!r}].to_numpy()`"
        found.append(Repair("it is a DataFrame of pandas", remedy, array, True))
    columns = {column: _from_pandas(table[column]) for column in table}
    plain = {c: array if codes is None else codes for c, (array, codes) in columns.items()}
    kept = {column: array for column, (array, _) in columns.items()}
    remedy = f"Pass a dictionary of arrays, `{{c: {name}[c].to_numpy() for c in {name}}}`"
    found.append(Repair("it is a DataFrame of pandas", remedy, kept, True))
    for column in plain:
        for repair in repairs(f"{name}[{column!r}]", plain[column], complaint):
            plain = plain | {column: repair.value}
            fact = f"in its column {column!r}, {repair.fact}"
            found.append(repair._replace(fact=fact, value=plain))
    return found


def _from_pandas(series: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Values of one column or index of pandas, and its codes if it is categorical."""
    categories = getattr(series, "cat", series)
    codes = getattr(categories, "codes", None)
    if codes is not None and hasattr(categories, "categories"):
        return np.asarray(series), np.asarray(codes).astype(int)
    array = np.asarray(series)
    if array.dtype == object and getattr(series.dtype, "kind", "O") in "iuf":  # with pandas' NA
        array = np.asarray(series.to_numpy(dtype=float, na_value=np.nan))
    return array, None


def _of_number(name: str, value: Any, complaint: str) -> list[Repair]:
    if any(word in complaint for word in NO_ARRAY):
        remedy = f"Pass an array, `numpy.atleast_1d({name})`"
        return [Repair("it is a single number", remedy, np.atleast_1d(np.asarray(value)))]
    if isinstance(value, float | np.floating) and not np.isfinite(value):
        return [Repair(f"it is {value}", "Pass a finite number", type(value)(1.0))]
    return []


def _of_array(name: str, array: np.ndarray, complaint: str) -> list[Repair]:
    """Repairs of an array, until it holds finite numbers."""
    found: list[Repair] = []
    if array.dtype.kind in "OUST":
        numbers = _as_numbers(array)
        if numbers is None:
            return [_of_texts(name, array)]
        what = "objects" if array.dtype.kind == "O" else "texts"
        remedy = f"Pass `numpy.asarray({name}, float)`"
        missing = [v for v in array.ravel().tolist() if v is None]
        fact = f"it is an array of {what}" + (f", {len(missing)} of them None" if missing else "")
        found.append(Repair(fact, remedy, numbers))
        array = numbers
    elif array.dtype.kind in "mM":
        span = array - array.ravel()[0] if array.dtype.kind == "M" and array.size else array
        days = span.astype("timedelta64[us]").astype(float) / 86_400e6
        what = "dates" if array.dtype.kind == "M" else "time spans"
        days_of = f"({name} - {name}[0])" if array.dtype.kind == "M" else name
        remedy = f"Pass numbers, days say: `{days_of} / numpy.timedelta64(1, 'D')`"
        found.append(Repair(f"it holds {what}, {_first(array)} the first", remedy, days))
        array = days
    elif array.dtype.kind == "c":
        remedy = f"Pass real numbers, `{name}.real` and `{name}.imag` say"
        found.append(Repair("it holds complex numbers", remedy, array.real))
        array = array.real
    elif array.dtype.kind not in "fiub":
        return [Repair(f"it holds {array.dtype}", "Pass numbers", np.zeros(array.shape))]
    return found + _of_numbers(name, array, complaint)


def _of_texts(name: str, array: np.ndarray) -> Repair:
    entries = [str(v) for v in array.ravel().tolist()]
    words = ((i, w) for i, w in enumerate(entries) if not _is_number(w))
    place, word = next(words, (0, entries[0] if entries else ""))
    codes = np.unique(np.asarray(entries), return_inverse=True)[1].reshape(array.shape)
    where = f" at position {place}" if place else " the first"
    return Repair(
        f"it holds texts or objects, {word[:40]!r}{where}",
        f"Pass numbers; as ids, codes that count from 0: `pandas.factorize({name})[0]`",
        codes,
    )


def _of_numbers(name: str, array: np.ndarray, complaint: str) -> list[Repair]:
    found: list[Repair] = []
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        found.append(without_gaps(array))
        array = found[-1].value
    if not any(word in complaint for word in ("index", "indices", "integer", "slice")):
        return found
    if array.dtype.kind == "f":
        whole = bool(np.all(array == np.round(array)))
        fact = f"it holds {array.dtype} and the model uses it for indices or counts"
        if not whole:
            fact += f", but {_first(array[array != np.round(array)])} is no whole number"
        remedy = f"Pass whole numbers, `{name}.astype(int)`"
        found.append(Repair(fact, remedy, np.round(array).astype(int)))
    elif array.dtype.kind == "b":
        remedy = f"Pass ids 0 and 1, `{name}.astype(int)`"
        found.append(Repair("it holds truth values, which select as masks", remedy, array * 1))
    return found


def without_gaps(array: np.ndarray) -> Repair:
    """The repair of NaN and infinite values, and where the first one is."""
    bad = ~np.isfinite(array)
    kind = "NaN" if np.any(np.isnan(array)) else "infinite"
    place = np.argwhere(bad)[0].tolist()
    where = place[0] if len(place) == 1 else tuple(place)
    fill = np.median(array[~bad]) if np.any(~bad) else 1.0
    return Repair(
        f"{int(bad.sum())} of its values {'is' if bad.sum() == 1 else 'are'} {kind}, the first at "
        f"position {where}",
        "Leave such rows out of all arguments, or fill the gaps in",
        np.where(bad, np.asarray(fill, array.dtype), array),
    )


def _as_numbers(array: np.ndarray) -> np.ndarray | None:
    """The numbers that objects or texts stand for; None if some do not."""
    try:
        return np.array([np.nan if v is None else v for v in array.ravel()], float).reshape(
            array.shape
        )
    except (ValueError, TypeError, OverflowError):
        return None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word == "None"
    return True


def _first(array: np.ndarray) -> Any:
    return array.ravel()[0] if array.size else "none"
