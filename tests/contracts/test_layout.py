"""The map of the package, counted: levels, arrows, files in a folder; no place decides by class."""

import ast
import pathlib
import re
from functools import cache

import pytest
from test_architecture import FILES, LAYERS, MODULES, RANK, ROOT, TREES, imported, room

from ppl_em.e_step import FLAGS

MOST_LEVELS, MOST_ARROWS, MOST_FILES = 14, 115, 25

BESIDE = ("benchmarks", "models")
"""Folders of the repository that are boxes, too."""


def targets(tree: ast.AST) -> set[str]:
    """Boxes of the package that a file imports from, those under `TYPE_CHECKING` included."""
    names = [n for node in ast.walk(tree) for n in imported(node) if n.split(".")[0] == "ppl_em"]
    return {".".join(name.split(".")[:2]) for name in names}


def boxes() -> dict[str, set[str]]:
    """Every box, a folder or a front door, and the boxes that it imports."""
    found: dict[str, set[str]] = {}

    def add(box: str, tree: ast.AST) -> None:
        own = found.setdefault(box, set())
        for name in targets(tree):
            there = name.partition(".")[2]
            known = there in RANK and there != ""
            own.add(there if known else "ppl_em")
        own.discard(box)

    for module, tree in MODULES.items():
        add(room(module) or "ppl_em", tree)
    for folder in BESIDE:
        for path in (ROOT.parent / folder).glob("*.py"):
            add(folder, ast.parse(path.read_text()))
    return found


def levels(graph: dict[str, set[str]]) -> int:
    """A box stands one level above the highest that it imports."""
    height: dict[str, int] = {}

    def of(box: str) -> int:
        if box not in height:
            height[box] = 0  # a circle would be found by another test
            height[box] = 1 + max((of(other) for other in graph.get(box, ())), default=0)
        return height[box]

    # The package, its command and what stands beside it are entries, on top of all.
    return max(of(box) for box in graph if box not in ("ppl_em", "__main__", *BESIDE))


def test_the_table_of_the_layout(capsys):
    graph = boxes()
    arrows = sum(map(len, graph.values()))
    counted = {"boxes": len(graph), "levels": levels(graph), "arrows": arrows}
    with capsys.disabled():
        print(f"\nlayout: {counted}")
    assert counted["levels"] <= MOST_LEVELS
    assert arrows <= MOST_ARROWS
    known = {name for layer in LAYERS for name in layer}
    assert all(room(module) in known for module in MODULES), "every module has a rank"


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda p: p.name)
def test_a_readme_names_every_file(folder):
    files = {p.name for p in folder.glob("*.py")} - {"__init__.py", "__main__.py"}
    text = (folder / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(files) + 1 <= MOST_FILES
    if folder == ROOT:  # the map of the rooms
        names = {p.name for p in folder.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
        assert all(f"`{name}/`" in text for name in names)
    missing = {name for name in files if f"`{name}`" not in text}
    assert not missing, f"{folder.name}/README.md does not name {sorted(missing)}"
    known = {p.name for p in folder.rglob("*.py")}
    rows = re.findall(r"^\| `(\w+\.py)`", text, flags=re.M)
    assert set(rows) <= known, f"{folder.name}/README.md: {sorted(set(rows) - known)}"


CONTRACTS = ("e_step", "posterior")
"""Rooms whose classes nothing outside may be told apart by."""


@cache
def classes() -> set[str]:
    """Names of the E-steps and posteriors: classes that derive from the contracts."""
    found = {"EStep", "DeterministicEStep", "Approximation", "StochasticEStep", "Choice"}
    found |= {"Posterior", "Centered"}
    known: dict[str, list[str]] = {}
    for path in FILES:
        if path.relative_to(ROOT).parts[0] in CONTRACTS:
            for node in ast.walk(TREES[path]):
                if isinstance(node, ast.ClassDef):
                    known[node.name] = [ast.unparse(base).split("[")[0] for base in node.bases]
    while True:
        more = {name for name, bases in known.items() if set(bases) & found} - found
        if not more:
            return found
        found |= more


def deciding(tree: ast.AST) -> list[str]:
    """Names in class tests: `isinstance`, `issubclass`, `type(...) is`, class names as strings."""
    names: list[str] = []
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if called and node.func.id in ("isinstance", "issubclass"):
            names += [n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)]
            names += [n.attr for n in ast.walk(node.args[1]) if isinstance(n, ast.Attribute)]
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            names += [n.id for side in sides for n in ast.walk(side) if isinstance(n, ast.Name)]
            names += [
                n.value
                for side in sides
                for n in ast.walk(side)
                if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_place_decides_by_class(path):
    known = classes()
    assert {"NUTS", "Enumeration", "MeanField", "WeightedDraws", "Nodes", "Factorized"} <= known
    assert not set(deciding(TREES[path])) & known


WORDS = set(FLAGS) - {"auto"}
"""Flags, but for the word that every option knows."""

MAY_NAME_FLAGS = ("cli", "__main__.py")
"""Where flags may be compared or listed, beside the E-steps' own files: the command line."""

KINDS_OF_LIKELIHOOD = pathlib.Path("posterior/log_likelihood.py")
"""Names the kinds of log-likelihoods, some of which are words for flags as well."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_place_decides_by_flag(path):
    """No flag in a comparison or a list; defaults of options and messages may have them."""
    where = path.relative_to(ROOT)
    if where.parts[0] in MAY_NAME_FLAGS or where == KINDS_OF_LIKELIHOOD:
        return
    own = where.stem if where.parts[0] == "e_step" else ""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Compare | ast.Dict | ast.Tuple | ast.List | ast.Set):
            found |= {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)} & WORDS
    assert not found - {own}
