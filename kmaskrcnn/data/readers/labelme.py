"""A folder of LabelMe files: one JSON an image, with polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import binascii
import io
import os
from typing import Any

import numpy as np
from PIL import Image

from kmaskrcnn.data import files
from kmaskrcnn.data.readers.json_file import read_json
from kmaskrcnn.data.readers.outlines import circle
from kmaskrcnn.data.sets.check_record import is_integer
from kmaskrcnn.data.sets.raw_set import RawSet, SetBuilder, encode_mask
from kmaskrcnn.errors import DataError


def is_labelme(tree: object) -> bool:
    """Whether a JSON tree is a LabelMe file."""
    return isinstance(tree, dict) and isinstance(tree.get("shapes"), list) and "imagePath" in tree


def read_labelme(path: str, images_dir: str) -> RawSet:
    """Read every JSON of a folder; shapes of one image with the same label and group_id are one instance.

    Images are found by imagePath, from the folder or from images_dir. Points, lines and strips are reported as records
    that cannot be used.
    """
    names = files.matching(path, "*.json")
    if not names:
        raise DataError(f"{path}: no LabelMe files (*.json) in this folder")
    builder = SetBuilder(path, images_dir or path)
    for name in names:
        try:
            tree = read_json(os.path.join(path, name))
        except DataError as error:
            builder.problem(
                "unreadable annotation file", name, str(error).removeprefix(f"{os.path.join(path, name)}: ")
            )
            continue
        if not is_labelme(tree):
            builder.problem("unreadable annotation file", name, "not a LabelMe file: needs 'shapes' and 'imagePath'")
            continue
        _read_image(builder, name, tree)
    return builder.finish()


def _read_image(builder: SetBuilder, name: str, tree: dict[str, Any]) -> None:
    height, width, file_name = (tree.get(key) for key in ("imageHeight", "imageWidth", "imagePath"))
    if not (is_integer(height) and is_integer(width) and isinstance(file_name, str) and file_name):
        builder.problem("bad image record", name, "needs integers imageHeight, imageWidth and a text imagePath")
        return
    file_name = file_name.replace("\\", "/")  # as written on Windows
    image_id = builder.image(file_name, height, width, name)
    groups: dict[tuple[str, Any], int] = {}  # position of the instance in `instances` by label and group
    instances: list[tuple[str, Any, str]] = []
    for position, shape in enumerate(tree["shapes"]):
        place = f"{name}: shapes[{position}]"
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str) or not label:
            builder.problem("bad annotation record", place, "needs a text 'label'")
            continue
        try:
            segmentation = _segmentation(shape, height, width)
        except ValueError as error:
            builder.problem("bad segmentation", f"{place} ({label})", str(error))
            continue
        group = shape.get("group_id")
        key = (label, group)
        joined = isinstance(group, int | str) and key in groups
        if joined and isinstance(segmentation, list) and isinstance(instances[groups[key]][1], list):
            instances[groups[key]][1].extend(segmentation)
            continue
        groups.setdefault(key, len(instances))
        instances.append((label, segmentation, f"{place} ({label})"))
    for label, segmentation, place in instances:
        builder.instance(image_id, label, segmentation, place)


def _segmentation(shape: dict[str, Any], height: int, width: int) -> list[list[float]] | dict[str, Any]:
    """Polygons or RLE of a shape; raises ValueError saying what is wrong with it."""
    kind = shape.get("shape_type") or "polygon"
    try:
        points = np.asarray(shape.get("points"), np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        raise ValueError("'points' are not pairs of numbers x, y") from None
    if not len(points):
        raise ValueError("'points' are empty")
    if not np.isfinite(points).all():
        raise ValueError("'points' are not finite")
    if kind == "polygon":
        return [points.reshape(-1).tolist()]
    if kind in ("rectangle", "circle", "mask") and len(points) < 2:
        raise ValueError(f"a {kind} needs 2 points, has {len(points)}")
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    if kind == "rectangle":  # two corners, or all four
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if kind == "circle":  # the centre, and a point on the circle
        radius = float(np.hypot(*(points[1] - points[0])))
        return [circle(points[0, 0], points[0, 1], radius, radius)]
    if kind == "mask":  # a PNG of the rectangle between the points, both ends included
        return _placed_mask(shape.get("mask"), round(x0), round(y0), height, width)
    raise ValueError(f"a shape of type {kind!r} has no area: polygon, rectangle, circle and mask can be used")


def _placed_mask(text: Any, left: int, top: int, height: int, width: int) -> dict[str, Any]:
    try:
        with Image.open(io.BytesIO(base64.b64decode(text))) as image:
            part = np.asarray(image.convert("L")) > 0
    except (TypeError, binascii.Error, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"'mask' is no PNG in base64 ({error})") from None
    mask = np.zeros((height, width), bool)
    target = mask[max(top, 0) : max(top + part.shape[0], 0), max(left, 0) : max(left + part.shape[1], 0)]
    source = part[max(-top, 0) :, max(-left, 0) :]
    target[:] = source[: target.shape[0], : target.shape[1]]
    return encode_mask(mask)
