"""The names of a model's classes, and their file."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from ..errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Labels:
    """Names and COCO category ids of the classes 1..C, in order."""

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either whole or not there."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_labels(directory: Path, labels: Labels) -> None:
    """Write labels.json into a folder."""
    write_text(directory / "labels.json", json.dumps(dataclasses.asdict(labels), indent=2) + "\n")


def parse_labels(text: str) -> Labels:
    """The labels in the text of a labels.json; raises ValueError, KeyError or TypeError if it is malformed."""
    tree = json.loads(text)
    return Labels(tuple(tree["class_names"]), tuple(tree["category_ids"]))


def read_labels(directory: str | os.PathLike) -> Labels:
    """The class names and category ids of a model folder; raises ConfigError if they are missing or malformed."""
    path = Path(directory) / "labels.json"
    try:
        return parse_labels(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from None
