"""The models that come with ppl_em, and models in users' files."""

import importlib.util
import inspect
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ppl_em.validation import ModelError


@dataclass(frozen=True)
class Entry:
    """A model, its default data if it has any, and its reference answer if one is known."""

    name: str
    model: Callable
    module: ModuleType

    def load(self) -> dict[str, Any]:
        """The model's own data, as keyword arguments."""
        if not hasattr(self.module, "load"):
            raise ModelError(
                f"Model '{self.name}': its file has no `load()`, so there are no data. Pass "
                f"`--data FILE.csv`."
            )
        return self.module.load()

    @property
    def reference(self) -> dict[str, Any] | None:
        """Published or independently computed numbers for the model's own data, or None."""
        return getattr(self.module, "REFERENCE", None)

    @property
    def title(self) -> str:
        """First line of the model's documentation."""
        text = inspect.getdoc(self.module) or inspect.getdoc(self.model) or ""
        return text.split("\n")[0]


def folder() -> pathlib.Path:
    """Where the models are: inside an installed package, or beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parent
    installed = package / "models"
    return installed if installed.is_dir() else package.parent / "models"


def names() -> list[str]:
    """Names of the models that come with ppl_em."""
    return sorted(path.stem for path in folder().glob("*.py"))


def find(name: str) -> Entry:
    """Find a model by its name, or as `file.py` or `file.py:function`.

    Raises
    ------
    ModelError
        If there is no such model, file or function.
    """
    path, _, function = name.partition(":")
    if not path.endswith(".py"):
        if name not in names():
            raise ModelError(
                f"Model '{name}': not known. Valid names: {', '.join(names())}; or pass a Python "
                f"file, `my_model.py` or `my_model.py:function`."
            )
        path = str(folder() / f"{name}.py")
    module = _load(pathlib.Path(path))
    function = function or "model"
    model = getattr(module, function, None)
    if not callable(model):
        raise ModelError(
            f"Model '{name}': the file has no function `{function}`. Name one with "
            f"`{path}:function`."
        )
    return Entry(name, model, module)


def read_csv(path: str, model: Callable) -> dict[str, np.ndarray]:
    """Read the columns of a CSV file that the model has arguments for.

    Raises
    ------
    ModelError
        If the file cannot be read, or an argument without default has no column.
    """
    import pandas

    try:
        frame = pandas.read_csv(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"File '{path}': cannot be read as CSV ({error}).") from None
    arguments = inspect.signature(model).parameters
    takes_all = any(a.kind is a.VAR_KEYWORD for a in arguments.values())
    columns = {str(c): _column(frame[c]) for c in frame if takes_all or c in arguments}
    missing = [
        name
        for name, a in arguments.items()
        if a.default is a.empty
        and a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)
        and name not in columns
    ]
    if missing:
        raise ModelError(
            f"File '{path}': no column for the model argument '{missing[0]}'. It has: "
            f"{', '.join(map(str, frame.columns))}."
        )
    if not columns:
        raise ModelError(
            f"File '{path}': none of its columns ({', '.join(map(str, frame.columns))}) is an "
            f"argument of the model ({', '.join(arguments)})."
        )
    return columns


def _column(series: Any) -> np.ndarray:
    values = series.to_numpy()
    return values if values.dtype.kind in "fiub" else np.array([str(v) for v in values])


def _load(path: pathlib.Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"File '{path}': there is no such file.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"File '{path}': it is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"File '{path}': running it failed with {error!r}.") from error
    return module
