"""Image files whose names in the annotations are spelled otherwise than on disk, or that were moved."""

from __future__ import annotations

import os
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator

from kmaskrcnn.data import files


def _spellings(name: str) -> Iterator[str]:
    """Other ways to write a name: Windows separators, URL encoding, composed and decomposed letters."""
    for slashes in (name, name.replace("\\", "/")):
        for text in (slashes, urllib.parse.unquote(slashes)):
            yield from (text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD")))


def find_spelling(folder: str, name: str) -> str | None:
    """The name in `folder` of an existing file that `name` means; None where there is none."""
    try:
        return next((s for s in dict.fromkeys(_spellings(name)) if files.is_file(files.join(folder, s))), None)
    except ValueError:  # no name at all: a zero byte, half of a surrogate pair
        return None


def bare_name(name: str) -> str:
    """The last part of a POSIX or Windows path."""
    return re.split(r"[/\\]", name)[-1]


def find_moved(folders: list[str], name: str) -> str | None:
    """The path of a file of the same bare name in one of the folders; None where there is none."""
    for folder in folders:
        if found := find_spelling(folder, bare_name(name)):
            return os.path.join(folder, found)
    return None


def is_anywhere(folder: str, name: str) -> bool:
    """Whether there is a file that a record means, or one that may be meant."""
    found = find_spelling(folder, name) is not None or find_moved([folder], name) is not None
    return found or bool(_name_beside(folder, name))


def _name_beside(folder: str, name: str) -> str:
    """A file in the place of another that differs in case alone; empty: there is none."""
    place = files.join(folder, name.replace("\\", "/")).rpartition("/")[0]
    try:
        names = files.names_in(place) if files.is_folder(place) else []
    except (OSError, ValueError):
        names = []
    return next((n for n in names if n.lower() == bare_name(name).lower()), "")


def missing_detail(folder: str, name: str) -> str:
    """That a file is missing, and one beside it that may be meant."""
    near = _name_beside(folder, name)
    return "the file is missing" + (f"; there is {near!r}" if near else "")
