"""The models that come with ppl_em, and models in users' files."""

import functools
import importlib.util
import inspect
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from ppl_em.util import ModelError, brief_repr

DEFAULT = "model"
"""The function of a file that stands for the file."""


@dataclass(frozen=True)
class Entry:
    """A model, its default data if it has any, and its reference answer if one is known.

    A file may hold several models of the same data: `function` is the name of this one.
    """

    name: str
    model: Callable
    module: ModuleType
    function: str = DEFAULT

    def load(self) -> dict[str, Any]:
        """The model's own data, as keyword arguments."""
        if not hasattr(self.module, "load"):
            raise ModelError(
                f"Model '{self.name}': its file has no `load()`, so there are no data. Pass "
                f"`--data FILE.csv`."
            )
        try:
            data = self.module.load()
        except (Exception, SystemExit) as error:
            raise ModelError(f"Model '{self.name}': its `load()` failed with {error!r}.") from error
        if not isinstance(data, Mapping) or not all(isinstance(name, str) for name in data):
            raise ModelError(
                f"Model '{self.name}': its `load()` returned {brief_repr(data)}. It has to return "
                f"a dictionary, argument of the model to value."
            )
        return dict(data)

    @property
    def reference(self) -> dict[str, Any] | None:
        """Published or independently computed numbers for the model's own data, or None.

        `REFERENCE` belongs to the function `model`, `REFERENCES[function]` to another.
        """
        if self.function == DEFAULT:
            return getattr(self.module, "REFERENCE", None)
        return getattr(self.module, "REFERENCES", {}).get(self.function)

    @property
    def title(self) -> str:
        """First line of the documentation: of the file, or of a further function in it."""
        sources = [self.module, self.model]
        if self.function != DEFAULT:
            sources.reverse()
        text = next(filter(None, map(inspect.getdoc, sources)), "")
        return text.split("\n")[0]


def folder() -> pathlib.Path:
    """Where the models are: inside an installed package, or beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parent.parent
    installed = package / "models"
    return installed if installed.is_dir() else package.parent / "models"


def names() -> list[str]:
    """Names of the model files that come with ppl_em."""
    return sorted(path.stem for path in folder().glob("*.py"))


def entries() -> list[Entry]:
    """Every model that comes with ppl_em: `NAME`, then the `NAME:function` of the same file."""
    found = []
    for name in names():
        first = find(name)
        others = getattr(first.module, "REFERENCES", {})
        found += [first, *(_entry(f"{name}:{other}", first.module, other) for other in others)]
    return found


def find(name: str) -> Entry:
    """Find a model by `NAME` or `NAME:function`, or as `file.py` or `file.py:function`.

    Raises
    ------
    ModelError
        If there is no such model, file or function.
    """
    path, _, function = name.partition(":")
    if not path.endswith(".py"):
        if path not in names():
            raise ModelError(
                f"Model '{name}': not known. Valid names: {', '.join(names())}; or pass a Python "
                f"file, `my_model.py` or `my_model.py:function`."
            )
        path = str(folder() / f"{path}.py")
    return _entry(name, _load(pathlib.Path(path)), function or DEFAULT)


def _entry(name: str, module: ModuleType, function: str) -> Entry:
    model = getattr(module, function, None)
    if not callable(model):
        raise ModelError(
            f"Model '{name}': the file has no function `{function}`. Name one with "
            f"`{name.partition(':')[0]}:function`."
        )
    return Entry(name, model, module, function)


def _load(path: pathlib.Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"File '{path}': there is no such file.")
    return _run_file(path.resolve(), path.stat().st_mtime_ns)


@functools.cache
def _run_file(path: pathlib.Path, changed: int) -> ModuleType:
    """The module of a file, the same until the file changes, so that programs stay compiled."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"File '{path}': it is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ModelError(f"File '{path}': running it failed with {error!r}.") from error
    return module
