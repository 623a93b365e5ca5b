"""The notebooks run from start to end on what a clone has, and are stored without outputs."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NAMES == ["serve", "train"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_outputs_are_stripped(path):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells(path))


def run(name, folder, monkeypatch):
    """The text that a notebook prints, run in an empty folder with the package of this checkout."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = {kind for output in outputs for kind in output.get("data", {})}
    return "".join(output.get("text", "") for output in outputs), shown


@pytest.mark.slow
def test_train(tmp_path, monkeypatch):
    text, shown = run("train", tmp_path, monkeypatch)
    assert float(re.search(r"^mask +\S+ +(\S+)", text.split("report:")[-2], re.M)[1]) > 0.3  # AP50
    assert (tmp_path / "runs/notebook/report/report.html").exists()
    assert re.search(r"^(circle|square|triangle|star) +[01]\.\d\d \d+ pixels", text, re.M)
    assert "image/png" in shown


@pytest.mark.slow
def test_serve(tmp_path, monkeypatch):
    pytest.importorskip("litserve")
    text, shown = run("serve", tmp_path, monkeypatch)
    served = int(re.search(r"^(\d+) \[", text, re.M)[1])
    assert served >= 1
    assert int(re.search(r"^float16: .* MB, (\d+) objects", text, re.M)[1]) == served
    assert int(re.search(r"^int8: .* MB, (\d+) objects", text, re.M)[1]) >= 1
    assert "image/png" in shown
