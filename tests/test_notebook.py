"""The notebook of docs/, run by the kernel of this environment.

To renew it: `jupyter execute --inplace select.ipynb`, in a folder that holds a copy of it alone.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs/select.ipynb"


def test_it_was_run_before_it_was_kept_and_without_an_error() -> None:
    for cell in nbformat.read(NOTEBOOK, 4).cells:
        if cell.cell_type == "code":
            kinds = {output.output_type for output in cell.outputs}
            assert kinds and kinds <= {"stream", "execute_result", "display_data"}, cell.source


@pytest.mark.slow
def test_it_runs_in_an_empty_folder_and_says_what_it_said(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    kept = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    (ratio,) = (source for source in cells if "samples_scored" in source)
    assert cells[ratio][0]["data"] == kept[ratio][0]["data"]
    assert "'base': 0, 'calibrated': 0" in cells[ratio][0]["data"]["text/plain"]
    (report,) = (source for source in cells if "result.report" in source)
    assert cells[report][0]["data"]["text/plain"] == repr(
        str(tmp_path / "outputs/notebook/report/index.html")
    )
