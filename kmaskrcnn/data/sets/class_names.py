"""Names of classes from flags and files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from kmaskrcnn.data import files
from kmaskrcnn.errors import DataError


def parse_class_names(given: Sequence[str]) -> list[str]:
    """Class names in order: given one by one, or a file that has one a line or is a TensorFlow label map (.pbtxt)."""
    if len(given) != 1 or not files.exists(given[0]):
        return list(given)
    text = _read(given[0])
    if not given[0].endswith(".pbtxt"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    items = []
    for item in re.findall(r"item\s*:?\s*\{(.*?)\}", text, re.DOTALL):
        number = re.search(r"\bid\s*:\s*(\d+)", item)
        name = re.search(r"\b(?:display_name|name)\s*:\s*(['\"])(.*?)\1", item)
        if not number or not name:
            raise DataError(f"{given[0]}: an item without id and name")
        items.append((int(number.group(1)), name.group(2)))
    if [number for number, _ in sorted(items)] != list(range(1, len(items) + 1)):
        raise DataError(f"{given[0]}: the ids are not 1, 2, ... without gaps")
    return [name for _, name in sorted(items)]


def parse_class_map(given: Sequence[str]) -> dict[str, str]:
    """New name by old name: OLD=NEW one by one, or a file of such lines or a JSON object. OLD= drops a class."""
    source, parts = "class_map", list(given)
    if len(given) == 1 and "=" not in given[0]:
        source = given[0]
        text = _read(source)
        if source.endswith(".json"):
            try:
                tree = json.loads(text)
            except ValueError as error:
                raise DataError(f"{source}: not JSON ({error})") from None
            if not isinstance(tree, dict) or not all(isinstance(v, str) for v in tree.values()):
                raise DataError(f"{source}: needs an object of new name by old name")
            return tree
        parts = [line for line in text.splitlines() if line.strip()]
    result = {}
    for part in parts:
        old, equals, new = (piece.strip() for piece in part.partition("="))
        if not equals or not old:
            raise DataError(f"{source}: {part!r}: write OLD=NEW, or OLD= to leave a class out")
        if old in result:
            raise DataError(f"{source}: {old!r} occurs twice")
        result[old] = new
    return result


def _read(path: str) -> str:
    try:
        return files.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
