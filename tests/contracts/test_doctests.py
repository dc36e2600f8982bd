"""Examples in docstrings run as they stand, and every public name has one.

Each runs in a namespace of its own: `ppl_em`, and what the example of `EM` leaves behind (`model`,
`y`, `result`, `jax`, ...), never the private names of its module. Files are written to a temporary
folder.
"""

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import Any

import pytest

import ppl_em
from ppl_em import EM, EMResult

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
FINDER = doctest.DocTestFinder(exclude_empty=True)


def modules() -> list[ModuleType]:
    """Every module of the package but `__main__`, which would run the command line."""
    names = {info.name for info in pkgutil.walk_packages(ppl_em.__path__, "ppl_em.")}
    return [importlib.import_module(name) for name in sorted(names - {"ppl_em.__main__"})]


def examples_of(thing: Any, name: str) -> list[doctest.DocTest]:
    """The examples in a module, with those of what it defines, or in a class with its methods."""
    return [test for test in FINDER.find(thing, name) if test.examples]


EXAMPLES = {
    module.__name__: found
    for module in modules()
    if (found := examples_of(module, module.__name__))
}

CONFIGURATIONS = {
    ppl_em.e_step: ("Auto", "Exact", "Laplace", "MeanField", "NUTS", "Quadrature", "from_flag"),
    ppl_em.m_step: ("Auto", "ClosedForm", "Gradient", "LBFGS", "Newton", "Scipy", "from_flag"),
}

PUBLIC = {
    f"{owner.__name__}.{name}": getattr(owner, name)
    for owner, names in {ppl_em: ppl_em.__all__, **CONFIGURATIONS}.items()
    for name in names
    if not inspect.ismodule(getattr(owner, name))
}

METHODS = ("audit", "covariance", "save", "standard_errors", "summary", "to_datatree")


def run(test: doctest.DocTest, names: dict[str, Any]) -> dict[str, Any]:
    """Run one docstring; returns the names that it leaves."""
    test.globs = names.copy()
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    failed, _ = runner.run(test, out=report.append, clear_globs=False)
    assert not failed, "".join(report)
    return test.globs


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What every example may use."""
    (example,) = examples_of(EM, "EM")
    return run(example, {"ppl_em": ppl_em})


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_run(module, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in EXAMPLES[module]:
        run(example, names)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_an_example(name):
    text = inspect.getdoc(PUBLIC[name])
    _, found, examples = text.partition("\nExamples\n--------\n")
    assert found, f"{name}: no section `Examples`"
    assert doctest.DocTestParser().get_examples(examples), f"{name}: no example"


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_a_result_have_an_example(name):
    assert doctest.DocTestParser().get_examples(inspect.getdoc(getattr(EMResult, name))), name
