"""JSON files, with errors that name them."""

from __future__ import annotations

import json
from typing import Any

from kmaskrcnn.data import files
from kmaskrcnn.errors import DataError


def read_json(path: str) -> Any:
    """The tree of a JSON file; raises DataError where it is missing, empty or broken."""
    try:
        text = files.read_text(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not text.strip():
        raise DataError(f"{path}: the annotation file is empty")
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deep to be an annotation file") from None
