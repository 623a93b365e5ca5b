"""docs/reference/api.md names what there is, with the arguments that it takes."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "reference" / "api.md").read_text()
ENTRIES = re.findall(r"^\| `(kmaskrcnn\.[^`]*)` \|", PAGE, re.MULTILINE)


def _find(path):
    """The object of a dotted name, and whether it is a method of a class."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        owner = None
        for name in parts[length:]:
            owner, found = found, getattr(found, name)
        return found, inspect.isclass(owner) and inspect.isfunction(found)
    raise AssertionError(path)


def test_there_are_entries():
    assert len(ENTRIES) > 35
    assert len(set(ENTRIES)) == len(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_is_true(entry):
    path, _, arguments = entry.partition("(")
    found, is_method = _find(path)
    if not arguments:
        return
    own = list(inspect.signature(found).parameters.values())[is_method:]
    call = ast.parse(f"f({arguments}", mode="eval").body
    told = [argument.id for argument in call.args] + [k.arg or f"**{k.value.id}" for k in call.keywords]
    names = {inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.VAR_POSITIONAL: "*"}
    assert told == [names.get(p.kind, "") + p.name for p in own]
    for keyword in call.keywords:
        if keyword.arg:
            default = next(p.default for p in own if p.name == keyword.arg)
            assert default == ast.literal_eval(keyword.value), keyword.arg


def test_public_names_are_documented():
    import kmaskrcnn

    assert [name for name in kmaskrcnn.__all__ if not any(e.startswith(f"kmaskrcnn.{name}") for e in ENTRIES)] == []
