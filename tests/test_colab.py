"""The notebook runs from top to bottom, in small form, and draws what it says."""

import json

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "launch" / "colab_evaluate.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    out = tmp_path_factory.mktemp("colab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_DIFFUSION_QUICK", "1")
        patch.setenv("SSL_DIFFUSION_OUT", str(out))
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        place = {"metadata": {"path": str(NOTEBOOK.parent)}}
        NotebookClient(notebook, timeout=600, resources=place).execute()  # raises what a cell does
    return notebook, out


def test_every_cell_ran_and_pictures_were_drawn(executed):
    notebook, out = executed
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    drawn = [
        output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(drawn) >= 4
    report = json.loads((out / "evaluation" / "report.json").read_text())
    assert report["pinned"]


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
