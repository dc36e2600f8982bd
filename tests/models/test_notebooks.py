"""Notebooks run from top to bottom, and stay small."""

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


FIRST, *OTHERS = (pytest.param(path, id=path.stem) for path in NOTEBOOKS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(*FIRST.values, id=FIRST.id, marks=pytest.mark.slow),
        *(pytest.param(*other.values, id=other.id, marks=pytest.mark.long) for other in OTHERS),
    ],
)
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small(path):
    assert path.stat().st_size < 200_000
    assert str(ROOT) not in path.read_text()
