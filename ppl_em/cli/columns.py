"""Columns of a CSV file, as arguments of a model: numbers, texts, and ids."""

import collections
import csv
import difflib
import inspect
import logging
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ppl_em.problem import accepts
from ppl_em.util import ModelError

logger = logging.getLogger("ppl_em")

FORMAT = "Pass a text file in UTF-8, with a comma between columns and their names in the first line"


def read_csv(path: str, model: Callable) -> dict[str, np.ndarray]:
    """Read the columns of a CSV file that the model has arguments for.

    An argument may stand for a column whose name is not one in Python: `Solar_R` for `Solar.R`.
    A model with a `**` argument gets every column. Columns left over are named in the log. Texts
    that the model uses as indices become ids that count from 0.

    Raises
    ------
    ModelError
        If the file cannot be read, an argument without default has no column, or a column that
        the model computes with has something other than numbers.
    """
    frame = _read(path)
    arguments = inspect.signature(model).parameters
    takes_all = any(a.kind is a.VAR_KEYWORD for a in arguments.values())
    called = {c: _argument(str(c), arguments) for c in frame}
    used = {c: name for c, name in called.items() if takes_all or name in arguments}
    _check_names(path, frame, list(used))
    columns = {name: _column(frame[c]) for c, name in used.items()}
    missing = [
        name
        for name, a in arguments.items()
        if a.default is a.empty
        and a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)
        and name not in columns
    ]
    if missing:
        raise _no_column(path, missing[0], list(map(str, frame.columns)))
    if not columns:
        raise ModelError(
            f"File '{path}': none of its columns ({', '.join(map(str, frame.columns))}) is an "
            f"argument of the model ({', '.join(arguments)})."
        )
    if not len(frame):
        raise ModelError(f"File '{path}': there are no rows below the names of its columns.")
    ignored = [str(c) for c in frame if c not in used]
    if ignored:
        logger.warning(
            "File '%s': ignored, as the model has no such argument: %s", path, ", ".join(ignored)
        )
    return _with_ids(path, model, columns, {name: c for c, name in used.items()})


def _read(path: str) -> Any:
    """The file as a data frame."""
    import pandas

    try:
        if stat.S_ISCHR(os.stat(path).st_mode):
            raise OSError("it is a device")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            return pandas.read_csv(path, index_col=False, skipinitialspace=True)
    except pandas.errors.ParserWarning:
        reason = "its rows have more entries than there are names of columns"
        raise ModelError(f"File '{path}': {reason}. {FORMAT}.") from None
    except (OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"File '{path}': cannot be read as CSV ({reason}). {FORMAT}.") from None


def _check_names(path: str, frame: Any, used: list[Any]) -> None:
    """Raise if a column that is used is there twice: pandas calls the second `y.1`."""
    if not any(re.fullmatch(r".*\.\d+", str(c)) for c in frame) or not os.path.isfile(path):
        return
    with open(path, encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, skipinitialspace=True), [])
    for name, count in collections.Counter(names).items():
        if count > 1 and name in used:
            raise ModelError(
                f"File '{path}': column '{name}' is there {count} times. Rename or remove one."
            )


def _no_column(path: str, argument: str, names: list[str]) -> ModelError:
    found = f"no column for the model argument '{argument}'. It has: {', '.join(names)}"
    marks = [m for m in (";", "\t", "|") if len(names) == 1 and m in names[0]]
    if marks:
        word = {"\t": "tabs"}.get(marks[0], f"'{marks[0]}'")
        return ModelError(f"File '{path}': {found}. {word} separate its columns. {FORMAT}.")
    close = difflib.get_close_matches(argument.lower(), [n.lower() for n in names], n=1)
    near = [n for n in names if close and n.lower() == close[0]]
    hint = f"Rename column '{near[0]}', if that is meant" if near else "Name it in the first line"
    return ModelError(f"File '{path}': {found}. {hint}.")


def _argument(column: str, arguments: Mapping[str, Any]) -> str:
    """Name of the argument that takes a column: its own, or that with `_` for other signs."""
    plain = re.sub(r"\W", "_", column)
    return plain if column not in arguments and plain in arguments else column


def _column(series: Any) -> np.ndarray:
    """Numbers, or texts in which what is missing is empty."""
    values = series.to_numpy()
    if values.dtype.kind in "fiub":
        return values
    texts = np.array(["" if v != v or v is None else str(v) for v in values])
    try:
        return texts.astype(float)  # whole numbers beyond 64 bits
    except ValueError:
        return texts


def _with_ids(
    path: str, model: Callable, columns: dict[str, np.ndarray], headers: dict[str, Any]
) -> dict[str, np.ndarray]:
    """`columns` with ids for texts, truth values and reals that the model uses as indices."""
    codes = {name: found for name, v in columns.items() if (found := _codes(v)) is not None}
    if not codes or accepts(model, columns):
        return columns
    coded = {**columns, **codes}
    if not accepts(model, coded):
        return columns
    for name, ids in codes.items():
        kept = {**coded, name: columns[name]}
        if accepts(model, kept):
            coded = kept
            continue
        if accepts(model, {**coded, name: ids + 0.5}):  # used as a number
            raise _no_number(path, str(headers[name]), columns[name])
        if np.any(columns[name] == ""):
            line = 2 + int(np.argmax(columns[name] == ""))
            raise ModelError(
                f"File '{path}': column '{headers[name]}' has ids, and none in line {line}. Fill "
                f"it in, or leave the row out."
            )
        if columns[name].dtype.kind == "U":
            logger.warning(
                "File '%s': the texts of column '%s' are ids 0 to %d for the model, in the order "
                "of the alphabet",
                *(path, headers[name], ids.max()),
            )
    return coded


def _codes(values: np.ndarray) -> np.ndarray | None:
    """Whole numbers that may stand for `values` as ids; None if these are such already."""
    if values.dtype.kind == "U":
        return np.unique(values, return_inverse=True)[1]
    if values.dtype.kind == "b" or (values.dtype.kind == "f" and np.all(values == values.round())):
        return values.astype(int) if np.all(np.abs(values) < 2**62) else None
    return None


def _no_number(path: str, column: str, values: np.ndarray) -> ModelError:
    """What to say of a column that has words where the model needs numbers."""
    line, word = next(
        ((i + 2, str(v)) for i, v in enumerate(values) if not _is_number(str(v))), (2, values[0])
    )
    remedy = "Write a number, or nothing if it is missing"
    if re.fullmatch(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}.*", str(word)):
        remedy = "Write dates as numbers, days since the first of them say"
    return ModelError(
        f"File '{path}': column '{column}' has {str(word)[:40]!r} in line {line}, which is no "
        f"number, and the model computes with it. {remedy}."
    )


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True
