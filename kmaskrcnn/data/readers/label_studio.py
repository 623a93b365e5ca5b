"""Label Studio's JSON exports: polygons, brushes, rectangles and ellipses, in percent of the sides."""

from __future__ import annotations

import math
import os
import re
import urllib.parse
from typing import Any

import numpy as np

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import code_of, read_header
from kmaskrcnn.data.readers.json_file import read_json
from kmaskrcnn.data.readers.outlines import Part, circle, turned_rectangle
from kmaskrcnn.data.sets.check_record import brief, finite, is_integer, plain_integer, size_flaw
from kmaskrcnn.data.sets.file_names import bare_name, find_spelling
from kmaskrcnn.data.sets.raw_set import RawSet, SetBuilder, encode_mask
from kmaskrcnn.errors import DataError

_KINDS = {
    "polygonlabels": "polygon",
    "brushlabels": "brush",
    "rectanglelabels": "rectangle",
    "ellipselabels": "ellipse",
}


def is_label_studio(tree: object) -> bool:
    """Whether a JSON tree is an export of Label Studio with its tasks whole (the form "JSON")."""
    if not isinstance(tree, list) or not tree:
        return False
    return all(isinstance(t, dict) and isinstance(t.get("data"), dict) and "annotations" in t for t in tree)


def read_label_studio(path: str, images_dir: str) -> RawSet:
    """Read an export of the form "JSON"; of each task the last annotation that was not canceled.

    Images are found by the names of the uploaded files, with or without the eight characters that Label Studio puts
    before them. Exports as COCO or YOLO are read as these.
    """
    tree = read_json(path)
    if not is_label_studio(tree):
        raise DataError(f"{path}: not a JSON export of Label Studio: needs tasks with 'data' and 'annotations'")
    builder = SetBuilder(path, images_dir or os.path.dirname(path))
    for position, task in enumerate(tree):
        _read_task(builder, task, f"tasks[{position}]")
    return builder.finish()


def _read_task(builder: SetBuilder, task: dict[str, Any], place: str) -> None:
    name: str = next((v for v in task["data"].values() if isinstance(v, str) and v), "")
    annotations = task["annotations"] if isinstance(task["annotations"], list) else []
    done = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    results = done[-1].get("result") if done else []
    if not name or not isinstance(results, list):
        builder.problem("bad-image-record", place, "needs a text in 'data' and a list 'result'")
        return
    shapes = [r for r in results if isinstance(r, dict) and r.get("type") in _KINDS]
    name = _file_name(builder.raw.images_dir, name)
    place = f"{place} ({name})"
    if not shapes:  # a negative, whose size the image file alone tells
        try:
            builder.image(name, *read_header(files.join(builder.raw.images_dir, name)).upright, place)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            builder.problem(code_of(error), place, "the file is missing" if missing else str(error))
        return
    height, width = (plain_integer(shapes[0].get(f"original_{k}")) for k in ("height", "width"))
    if flaw := size_flaw(height, width):
        builder.problem("bad-image-record", place, f"original_height, original_width: {flaw}")
        return
    image_id = builder.image(name, height, width, place)
    for number, result in enumerate(results):
        record = f"{place}: result[{number}]"
        try:
            found = _instance(result, height, width)
        except (ValueError, KeyError, TypeError) as error:
            detail = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            builder.problem("unreadable-record", record, detail)
            continue
        if found is not None:
            builder.instance(image_id, *found, record)


def _file_name(images_dir: str, name: str) -> str:
    """The name in images_dir of an image that a task names by path, URL, or place in Label Studio's own storage."""
    parts = urllib.parse.urlsplit(name.replace("\\", "/"))
    stored = urllib.parse.parse_qs(parts.query).get("d", [""])[0] or urllib.parse.unquote(parts.path)
    bare = bare_name(stored)
    choices = (stored.lstrip("/"), bare, re.sub(r"^[0-9a-f]{8}-", "", bare))
    return next((found for c in choices if c and (found := find_spelling(images_dir, c)) is not None), bare or name)


def _instance(result: Any, height: int, width: int) -> tuple[str, Part] | None:
    """Class and segmentation of a result; None of one that is no object, such as a choice or a relation."""
    if not isinstance(result, dict) or result.get("type") not in _KINDS:
        kind = result.get("type") if isinstance(result, dict) else result
        if isinstance(kind, str) and kind in ("keypointlabels", "videorectangle"):
            raise ValueError(f"a result of type {kind!r} has no area: {', '.join(_KINDS)} can be used")
        return None
    value, kind = result["value"], result["type"]
    if not isinstance(value, dict):
        raise ValueError(f"'value' {brief(value)} is not an object")
    labels = value.get(kind)
    if not isinstance(labels, list) or len(labels) != 1 or not isinstance(labels[0], str) or not labels[0].strip():
        raise ValueError(f"{kind} {brief(labels)} is not one class")

    def pixels(name: str, side: int) -> float:
        return finite(value[name]) * side / 100

    if kind == "polygonlabels":
        if not isinstance(value["points"], list):
            raise ValueError("'points' are not a list")
        return labels[0], [
            [finite(v) * side / 100 for x, y in value["points"] for v, side in ((x, width), (y, height))]
        ]
    if kind == "brushlabels":
        return labels[0], encode_mask(_decode_brush(value.get("rle"), height, width))
    x, y = pixels("x", width), pixels("y", height)
    angle = math.radians(finite(value.get("rotation", 0)))
    if kind == "ellipselabels":
        return labels[0], [circle(x, y, pixels("radiusX", width), pixels("radiusY", height), angle)]
    w, h = pixels("width", width), pixels("height", height)
    # Turned about its upper left corner.
    dx, dy = w / 2 * math.cos(angle) - h / 2 * math.sin(angle), w / 2 * math.sin(angle) + h / 2 * math.cos(angle)
    return labels[0], [turned_rectangle(x + dx, y + dy, w, h, angle)]


def _decode_brush(data: Any, height: int, width: int) -> np.ndarray:
    """(H, W) bool of the run-length code of a brush: bits of RGBA pixels, of which alpha is the mask.

    32 bits of the number of values, 5 bits of their length less 1, 4 x 4 bits of the lengths of run counts less 1; then
    parts: 1 bit (a repeated value, or single ones), 2 bits of which length the count has, the count less 1, the values.
    """
    if not isinstance(data, list) or not all(is_integer(v) and 0 <= v < 256 for v in data):
        raise ValueError("'rle' is not a list of bytes")
    bits, place = np.unpackbits(np.array(data, np.uint8)), 0

    def read(count: int) -> int:
        nonlocal place
        part = bits[place : place + count]
        if len(part) < count:
            raise ValueError("'rle' ends too early")
        place += count
        return int("".join(map(str, part.tolist())) or "0", 2)

    total, size = read(32), read(5) + 1
    lengths = [read(4) + 1 for _ in range(4)]
    if total != 4 * height * width or size > 16:
        raise ValueError(f"'rle' holds {total} values, not the 4 a pixel of {width} x {height}")
    values, done = np.zeros(total, np.uint16), 0
    while done < total:
        is_run = read(1)
        count = read(lengths[read(2)]) + 1
        if done + count > total:
            raise ValueError("'rle' holds more values than it states")
        if is_run:
            values[done : done + count] = read(size)
        else:
            for i in range(done, done + count):
                values[i] = read(size)
        done += count
    return values.reshape(height, width, 4)[..., 3] > 0
