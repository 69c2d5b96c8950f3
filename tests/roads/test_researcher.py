"""The researcher's road: the notebook with a method, a mask and a metric of their own runs, and is kept with its pictures."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
NOTEBOOK = Path(__file__).parents[2] / "recipes" / "notebooks" / "own_method.ipynb"
METHODS = ["original", "ours", "random_encoder", "max_loss", "noisy_label", "retain_label", "control", "blurred"]


def outputs(notebook) -> list[dict]:
    """What the cells show, {MIME type: content} each."""
    return [out["data"] for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs if "data" in out]


def rows_of(notebook) -> list[str]:
    """First column of the table."""
    (table,) = [data["text/markdown"] for data in outputs(notebook) if "text/markdown" in data]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert "retain ink" in lines[0] and "forget ink" in lines[0] and "drift" in lines[0]
    return [line.split("|")[1].strip() for line in lines[2:]]


def test_it_is_kept_with_its_table_and_pictures():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "it was not run from top to bottom"
    assert rows_of(notebook) == METHODS
    assert sum("image/png" in data for data in outputs(notebook)) == 3
    assert NOTEBOOK.stat().st_size < 300_000
    text = NOTEBOOK.read_text()
    assert not re.search(r'"(/home|/root|/work|/tmp|/usr)|Traceback|Warning', text)


def test_it_runs_as_it_is(tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("mlxtend")
    monkeypatch.setenv("OWN_METHOD_SIZE", "small")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[2]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert rows_of(notebook) == METHODS
    assert sum("image/png" in data for data in outputs(notebook)) == 3
    assert not list(tmp_path.iterdir()), "it leaves files where it was started"
