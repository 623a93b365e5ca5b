"""The images and videos that files, folders and globs name."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import unicodedata
import urllib.parse
from collections.abc import Iterator, Sequence

from kmaskrcnn.config import ConfigError
from kmaskrcnn.data.image_files import HEIF_SUFFIXES, RAW_SUFFIXES
from kmaskrcnn.inference.video import VIDEO_SUFFIXES
from kmaskrcnn.outputs import images_written, output_names

# Files of a folder with other endings are passed over. Those of telephones and cameras that cannot be read are not: who
# reads them says so.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".avif", ".jp2", ".jxl"),
    *HEIF_SUFFIXES,
    *RAW_SUFFIXES,
)


def find_inputs(
    inputs: str | Sequence[str], output: str = "", left_out: list[str] | None = None
) -> list[tuple[str, str]]:
    """Images and videos that files, folders (with those below) and globs name, and a name for the output of each.

    In folders and globs the files that earlier predictions and evaluations wrote are left out, as is the output folder
    where it lies below the folder that is searched. A name is also found where it is written as a URL (`%20`), with
    backslashes, or in another form of Unicode than on the disk.

    Args:
        inputs: one or several.
        output: folder that the outputs go into; empty: none.
        left_out: extended by the files left out, if given.

    Returns:
        (path, name) in order, each file once; names as for `kmaskrcnn.outputs.output_names`.

    Raises:
        ConfigError: one of the inputs names no image.
    """
    inputs = [inputs] if isinstance(inputs, str) else list(inputs)
    if not inputs:
        raise ConfigError("no images were given: name files, folders or globs")
    roots: dict[str, str] = {}  # of each file, by its path
    seen: set[str] = set()
    skipped: list[str] = []
    for item in inputs:
        paths, root, named = _search(item)
        out = set() if named else _outputs_among(paths, root, output)
        skipped += [path for path in paths if path in out]
        if not out.issuperset(paths):
            paths = [path for path in paths if path not in out]
        else:
            raise ConfigError(f"{item}: {_absence(item, root, len(out))}")
        for path in paths:
            if os.path.abspath(path) not in seen:
                seen.add(os.path.abspath(path))
                roots[path] = root
    if left_out is not None:
        left_out += [path for path in dict.fromkeys(skipped) if path not in roots]
    return list(zip(roots, output_names(list(roots), list(roots.values())), strict=True))


def _absence(item: str, folder: str, outputs: int) -> str:
    """Why an input names no image."""
    if outputs:
        return f"no image there but outputs of earlier runs ({outputs} files)"
    with contextlib.suppress(ValueError):  # a zero byte
        if folder or os.path.exists(os.path.expanduser(item)):
            return "no image there"
    return "no file matches this pattern" if glob.has_magic(item) else "no such file or folder"


def _search(item: str) -> tuple[list[str], str, bool]:
    """The files that an input names, in order, the folder that was searched, and whether it is one file's name."""
    for spelling in _spellings(item):
        if os.path.isfile(spelling):
            return [spelling], os.path.dirname(spelling), True
        if os.path.isdir(spelling):
            return sorted(_images_below(spelling)), spelling, False
        # Only what is not there as it is written is a pattern.
        root, pattern = spelling, ""
        while root and not os.path.isdir(root):
            root, name = os.path.split(root.rstrip("/"))
            pattern = os.path.join(name, pattern) if pattern else name
        found = glob.glob(pattern, root_dir=root or None, recursive=True) if glob.has_magic(pattern) else []
        paths = sorted(path for path in (os.path.join(root, name) for name in found) if os.path.isfile(path))
        if paths:
            return paths, root, False
    return [], "", False


def _spellings(item: str) -> Iterator[str]:
    """An input as it is written, and what else it may mean."""
    item = os.path.expanduser(item)
    yield item
    if item.startswith("file://"):
        yield urllib.parse.unquote(urllib.parse.urlsplit(item).path)
    for other in (item, item.replace("\\", "/"), urllib.parse.unquote(item)):
        yield from (unicodedata.normalize(form, other) for form in ("NFC", "NFD"))


def _images_below(folder: str) -> Iterator[str]:
    """The images and videos in a folder and those below it; what is hidden is passed over."""
    visited = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(path))
        folders[:] = [n for n in folders if n[0] != "." and os.path.realpath(os.path.join(path, n)) not in visited]
        for name in names:
            if name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES + VIDEO_SUFFIXES):
                yield os.path.join(path, name)


def _outputs_among(paths: list[str], root: str, output: str) -> set[str]:
    """Those of the files that earlier runs wrote, or that lie in the output folder where it is below the root."""
    real = functools.cache(os.path.realpath)
    top, own = real(root or "."), real(os.path.expanduser(output)) if output else ""
    below = own + os.sep if own.startswith(os.path.join(top, "")) and own != top else ""
    lists = {own} - {""}
    for folder in {real(os.path.dirname(path) or ".") for path in paths}:
        while folder not in lists:
            lists.add(folder)
            folder = os.path.dirname(folder) if folder.startswith(top) and folder != top else folder
    written = {os.path.join(folder, name) for folder in lists for name in images_written(folder)}
    out = set()
    for path in paths:
        place = os.path.join(real(os.path.dirname(path) or "."), os.path.basename(path))
        if place in written or (below and place.startswith(below)):
            out.add(path)
    return out
