"""The shape of the package: imports go one way, files stay small, importing changes nothing."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2] / "ppl_em"
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

MAX_LINES = 300
LATE_IMPORTS = (
    "pandas",
    "h5py",
    "xarray",
    "arviz",
    "matplotlib",
    "scipy.stats",
    "scipy.optimize",
    "optax",
    "ppl_em.fit.after.",
)
"""What may be imported inside a function: heavy, optional, or asked for seldom, after a fit."""


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


PATHS = {module_name(path): path for path in FILES}
MODULES = {name: TREES[path] for name, path in PATHS.items()}


def imported(node: ast.AST) -> list[str]:
    """Names that one import statement imports: modules, and module.name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(
    tree: ast.AST, late: bool | None = None, inside: bool = False, typing: bool = False
) -> set[str]:
    """All imports, those under `TYPE_CHECKING` if `typing`; only those in functions if `late`."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node) and not typing:
            continue
        if late is None or late == inside:
            found.update(imported(node))
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        found |= imports(node, late, inside or function, typing)
    return found


def resolve(name: str) -> str | None:
    """The module of the package that an imported name lives in."""
    while name not in MODULES:
        if "." not in name:
            return None
        name = name.rpartition(".")[0]
    return name if name.startswith("ppl_em") else None


LAYERS = (  # each imports only from lines above it; within a line nothing imports its neighbor
    ("util",),
    ("optimize", "stats", "params", "discrete"),
    ("problem", "m_step"),
    ("structure",),
    ("posterior",),
    ("e_step",),
    ("likelihood", "result"),
    ("algorithms",),
    ("fit",),
    ("em",),
    ("direct",),
    ("compare",),
    ("cli",),
    ("", "__main__"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def room(module: str) -> str:
    """The folder or front door that a module belongs to; empty for the package itself."""
    return module.split(".")[1] if "." in module else ""


GRAPH = {
    name: {m for m in map(resolve, imports(tree, typing=True)) if m and m != name}
    for name, tree in MODULES.items()
}


def test_there_are_no_circles():
    assert len(GRAPH) > 20
    inner = {k: {m for m in v if not k.startswith(f"{m}.")} for k, v in GRAPH.items()}
    list(graphlib.TopologicalSorter(inner).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_from_above(module):
    own = room(module)
    for target in GRAPH[module]:
        there = room(target)
        assert there == own or RANK[there] < RANK[own], f"{module} imports {target}"


@pytest.mark.parametrize("module", MODULES)
def test_folders_are_entered_by_their_face(module):
    """From elsewhere by the face; inside a folder by the file. A face has no name of a file."""
    own = room(module)
    for node in ast.walk(TREES[PATHS[module]]):
        for name in imported(node):
            target = resolve(name)
            if target is None or target == module or module == "ppl_em":
                continue
            there, symbol = room(target), name.rpartition(".")[2]
            if there == own:
                assert target != f"ppl_em.{own}" or module == target, f"{module}: own face"
            elif target.count(".") > 1 and target != name:
                files = {path.stem for path in (ROOT / there).rglob("*.py")}
                assert symbol in files or symbol.startswith("_"), f"{module}: {name}"


def test_faces_have_no_name_of_a_file():
    for path in ROOT.glob("*/__init__.py"):
        files = {p.stem for p in path.parent.iterdir()}
        names = {
            alias.asname or alias.name
            for n in TREES[path].body
            if isinstance(n, ast.ImportFrom)
            for alias in n.names
        }
        assert not names & files, path


MAX_FILES = 25


def test_folders_are_small():
    for path in [ROOT, *(p for p in ROOT.rglob("*") if p.is_dir())]:
        assert len(list(path.glob("*.py"))) <= MAX_FILES, path


@pytest.mark.parametrize("name", MODULES)
def test_imports_of_one_file(name):
    late = {m for m in imports(MODULES[name], late=True) if not m.startswith(LATE_IMPORTS)}
    assert not late, f"{name} imports {late} inside a function"


@pytest.mark.parametrize("path", [str(path.relative_to(ROOT.parent)) for path in FILES])
def test_files_are_small(path):
    assert len((ROOT.parent / path).read_text().splitlines()) <= MAX_LINES


def undocumented(node: ast.AST, name: str) -> list[str]:
    found = [] if ast.get_docstring(node) else [name]
    for child in node.body:
        public = getattr(child, "name", "_").startswith("_") is False
        if public and isinstance(child, ast.ClassDef):
            found += undocumented(child, f"{name}.{child.name}")
        elif public and not ast.get_docstring(child):
            found.append(f"{name}.{child.name}")
    return found


def test_public_names_are_documented():
    assert not [text for name, tree in MODULES.items() for text in undocumented(tree, name)]


def test_nothing_is_asserted():
    """`assert` vanishes under `python -O`; users get errors that say what to do."""
    for module, tree in MODULES.items():
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), module


IMPORT = """
import sys
import jax
from jax._src import xla_bridge
before = dict(jax.config.values)
import ppl_em
assert dict(jax.config.values) == before, "importing changed JAX's configuration"
assert not xla_bridge._backends, "importing allocated an array"
heavy = [m for m in ("matplotlib", "pandas", "xarray", "arviz_base") if m in sys.modules]
assert not heavy, heavy
assert set(ppl_em.__all__) <= set(dir(ppl_em))
"""


def test_importing_changes_nothing():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
