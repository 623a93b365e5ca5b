"""What benchmarks, demos and notebooks import from the package is there: most of them run in no other test."""

import ast
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("benchmarks", "demo", "notebooks") for path in (ROOT / folder).rglob("*.[pi]*y*"))
FILES = [path for path in FILES if path.suffix in (".py", ".ipynb") and "node_modules" not in path.parts]


def source(path):
    """The Python text of a file; of a notebook, its code without shell commands."""
    text = path.read_text()
    if path.suffix == ".py":
        return text
    cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell).splitlines() if not line.lstrip().startswith(("!", "%"))]
    return "\n".join(line for line in lines if line.startswith(("import ", "from ")))


def imported(path):
    """(module, name) of each import from the package; the name may be none."""
    for node in ast.walk(ast.parse(source(path))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] == "kmaskrcnn":
            yield from ((node.module, alias.name) for alias in node.names)
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "kmaskrcnn")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imported_names_are_there(path):
    for module, name in imported(path):
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] == "kmaskrcnn":
                raise
            continue  # an extra that is not installed
        if name and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
