"""The shape of the package: imports go one way, files stay small, importing changes nothing."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent / "ppl_em"
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}

MAX_LINES = 300
LATE_IMPORTS = (
    "pandas",
    "xarray",
    "arviz",
    "matplotlib",
    "scipy.stats",
    "scipy.optimize",
    "optax",
)
"""What may be imported inside a function: heavy or optional, at the edge of the library."""


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): tree for path, tree in TREES.items()}


def imported(node: ast.AST) -> list[str]:
    """Names that one import statement imports: modules, and module.name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, late: bool | None = None, inside: bool = False) -> set[str]:
    """All imports outside `TYPE_CHECKING`; only those in functions if `late`, or outside."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if late is None or late == inside:
            found.update(imported(node))
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        found |= imports(node, late, inside or function)
    return found


def resolve(name: str) -> str | None:
    """The module of the package that an imported name lives in."""
    while name not in MODULES:
        if "." not in name:
            return None
        name = name.rpartition(".")[0]
    return name if name.startswith("ppl_em") else None


GRAPH = {
    name: {m for m in map(resolve, imports(tree)) if m and m not in (name, "ppl_em")}
    for name, tree in MODULES.items()
}


def within(module: str, *packages: str) -> bool:
    return any(module == f"ppl_em.{p}" or module.startswith(f"ppl_em.{p}.") for p in packages)


def test_there_are_no_circles():
    assert len(GRAPH) > 20
    inner = {k: {m for m in v if not k.startswith(f"{m}.")} for k, v in GRAPH.items()}
    list(graphlib.TopologicalSorter(inner).static_order())


ALLOWED = {  # module or package: all that it may import from ppl_em
    "static": (),
    "validation": (),
    "likelihood": (),
    "optimize": (),
    "stopping": (),
    "params": ("static", "validation"),
    "ends": ("params",),
    "landscape": ("e_step", "ends", "information", "problem", "stopping"),
    "boundary": ("e_step", "ends", "landscape", "params", "problem", "stopping", "trail"),
    "arguments": ("static",),
    "elimination": ("validation",),
    "chains": ("elimination",),
    "scans": ("validation",),
    "tabulate": ("validation", "elimination", "scans"),
    "factors": ("elimination", "tabulate"),
    "summation": ("validation", "elimination", "chains", "tabulate", "factors"),
    "condense": ("elimination", "tabulate", "factors", "problem"),
    "restrictions": ("static", "validation", "params"),
    "problem": (
        "static",
        "validation",
        "params",
        "arguments",
        "factors",
        "restrictions",
        "summation",
    ),
    "feasibility": ("active_set", "params", "problem", "restrictions", "validation"),
    "uncertainty": (),
    "expectations": ("m_step", "params", "posterior", "problem", "summation", "validation"),
    "constrained": (
        "active_set",
        "feasibility",
        "information",
        "params",
        "problem",
        "uncertainty",
    ),
    "states": ("static", "elimination", "factors"),
    "condense_steps": (
        "params",
        "elimination",
        "tabulate",
        "factors",
        "problem",
        "condense",
    ),
    "subsampling": ("validation",),
    "batches": ("factors", "params", "problem", "subsampling", "summation", "validation"),
    "initial": (),
    "trial": ("checks", "initial", "params", "subsampling"),
    "structure": ("static", "problem", "terms"),
    "pareto": (),
    "bridge": ("pareto",),
    "proposals": (),
    "terms": ("params", "summation", "problem"),
    "contributions": ("problem", "terms"),
    "evidence": (
        "likelihood",
        "problem",
        "structure",
        "posterior",
        "pareto",
        "bridge",
        "proposals",
        "contributions",
    ),
    "sampled_information": (
        "contributions",
        "information",
        "motion",
        "optimize",
        "pareto",
        "problem",
        "proposals",
        "scores",
    ),
    "acceleration": ("validation",),
    "ascent": (
        "boundary",
        "e_step",
        "feasibility",
        "home_stretch",
        "host",
        "information",
        "m_step",
        "problem",
        "stopping",
        "trail",
        "validation",
    ),
    "motion": ("problem",),
    "evaluation": ("motion", "optimize", "posterior", "problem", "scores"),
    "em_step": ("e_step", "m_step", "posterior", "problem", "updates"),
    "climb": (
        "constrained",
        "e_step",
        "em_step",
        "evidence",
        "health",
        "identifiability",
        "information",
        "likelihood",
        "polish",
        "problem",
        "scores",
        "stopping",
        "updates",
    ),
    "plots_compare": ("params",),
    "compare": (
        "audit",
        "e_step",
        "em",
        "plots_compare",
        "result",
        "validation",
    ),
    "audit": (
        "climb",
        "e_step",
        "identifiability",
        "information",
        "likelihood",
        "params",
        "problem",
        "validation",
    ),
    "posterior": (
        "static",
        "validation",
        "params",
        "problem",
        "factors",
        "condense_steps",
        "states",
        "structure",
        "terms",
        "subsampling",
        "batches",
    ),
    "active_set": (),
    "search": ("active_set",),
    "host": ("active_set", "search"),
    "m_step": ("optimize", "host", "active_set", "validation"),
    "penalties": ("params", "problem"),
    "starts": ("params", "problem", "terms", "validation"),
    "alignment": ("params", "problem"),
    "optima": ("params",),
    "degenerate": ("params", "posterior", "problem", "result", "stopping"),
    "restarts": (
        "alignment",
        "finishing",
        "optima",
        "params",
        "problem",
        "result",
        "stopping",
        "trail",
        "updates",
        "validation",
    ),
    "e_step": (
        "static",
        "validation",
        "params",
        "problem",
        "elimination",
        "factors",
        "scans",
        "summation",
        "condense",
        "condense_steps",
        "states",
        "structure",
        "optimize",
        "likelihood",
        "posterior",
        "terms",
        "subsampling",
        "batches",
    ),
}
FORBIDDEN = {  # module: never imported by these
    "cli": lambda importer: not within(importer, "__main__"),
    "plots": lambda importer: not within(importer, "cli", "result"),
    "plots_compare": lambda importer: not within(importer, "compare"),
    "algorithms": lambda importer: not within(importer, "cli") and importer != "ppl_em",
    "compare": lambda importer: not within(importer, "cli", "reports") and importer != "ppl_em",
    "reports": lambda importer: not within(importer, "cli"),
    "em": lambda importer: (
        not within(importer, "cli", "compare", "algorithms", "direct") and importer != "ppl_em"
    ),
}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_only_from_its_left(package):
    for module, targets in GRAPH.items():
        if within(module, package):
            outside = {m for m in targets if not within(m, package, *ALLOWED[package])}
            assert not outside, f"{module} imports {sorted(outside)}"


@pytest.mark.parametrize("target", FORBIDDEN)
def test_the_edge_is_not_imported(target):
    for module, targets in GRAPH.items():
        if FORBIDDEN[target](module):
            assert not any(within(m, target) for m in targets), module


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
