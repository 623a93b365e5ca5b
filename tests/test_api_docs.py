"""docs/reference/api.md lists the public names, and each has a docstring."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "api.md").read_text()
ENTRIES = re.findall(r"^::: (kmaskrcnn\.[\w.]+)$", PAGE, re.MULTILINE)


def _find(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_is_there_and_documented(entry):
    found = _find(entry)
    assert inspect.getdoc(found), entry
    if inspect.isclass(found):
        for name, member in vars(found).items():
            if inspect.isfunction(member) and not name.startswith("_") and name not in ("call", "get_config"):
                assert inspect.getdoc(member), f"{entry}.{name}"


@pytest.mark.parametrize("package", ["kmaskrcnn", "kmaskrcnn.data", "kmaskrcnn.evaluation"])
def test_public_names_are_listed(package):
    module = importlib.import_module(package)
    listed = {entry.rpartition(".")[2] for entry in ENTRIES}
    assert [name for name in module.__all__ if name not in listed] == []
