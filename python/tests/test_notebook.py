"""The notebook of the manual, run from its first cell to its last in an empty folder."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs/notebooks/your_own_data.ipynb"


def test_the_notebook_runs_and_its_outputs_are_in_the_repository(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(cell.outputs for cell in notebook.cells[3:] if cell.cell_type == "code"), "run it and save it"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    assert (tmp_path / "models/cells/manifest.json").exists()
