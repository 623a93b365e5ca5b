"""The images and videos that files, folders and globs name."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from kmaskrcnn.config import ConfigError
from kmaskrcnn.inference.video import VIDEO_SUFFIXES

# Files of a folder with other endings are passed over.
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")


def find_pictures(inputs: Sequence[str]) -> list[tuple[str, str]]:
    """Pictures and videos that files, folders (with those below) and globs name, and a name for the output of each.

    Returns:
        (path, name) in order, each picture once; names have no suffix, differ, and keep the folders below an input.

    Raises:
        ConfigError: one of the inputs names no picture.
    """
    if not inputs:
        raise ConfigError("--input is missing: pictures as files, folders or globs")
    found: dict[str, str] = {}
    taken: set[str] = set()
    for item in inputs:
        if os.path.isdir(item):
            paths = sorted(glob.glob(os.path.join(glob.escape(item), "**", "*"), recursive=True))
            paths = [p for p in paths if p.lower().endswith(PICTURE_SUFFIXES + VIDEO_SUFFIXES)]
            root = item
        else:
            paths = [item] if os.path.isfile(item) else sorted(glob.glob(item, recursive=True))
            paths = [p for p in paths if os.path.isfile(p)]
            root = ""
        if not paths:
            raise ConfigError(f"--input={item}: no picture there")
        for path in paths:
            if path in found:
                continue
            whole = os.path.relpath(path, root) if root else os.path.basename(path)
            stem, suffix = os.path.splitext(whole)
            name = stem if stem not in taken else f"{stem}_{suffix[1:]}"
            while name in taken:
                name += "_"
            taken.add(name)
            found[path] = name
    return list(found.items())
