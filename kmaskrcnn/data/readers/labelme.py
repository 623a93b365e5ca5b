"""A folder of LabelMe files: one JSON an image, with polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import binascii
import io
import os
from typing import Any

import numpy as np

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import ImageError, code_of, header_of, open_image, read_encoded
from kmaskrcnn.data.readers.json_file import read_json
from kmaskrcnn.data.readers.outlines import Part, circle, union
from kmaskrcnn.data.sets.check_record import brief, plain_integer, size_flaw
from kmaskrcnn.data.sets.file_names import bare_name, find_moved, find_spelling
from kmaskrcnn.data.sets.raw_set import RawSet, SetBuilder, encode_part
from kmaskrcnn.data.sizes import MAX_PIXELS
from kmaskrcnn.errors import DataError, Flaw


def is_labelme(tree: object) -> bool:
    """Whether a JSON tree is a LabelMe file."""
    return isinstance(tree, dict) and isinstance(tree.get("shapes"), list) and "imagePath" in tree


def read_labelme(path: str, images_dir: str) -> RawSet:
    """Read every JSON of a folder; shapes of one image with the same label and group_id are one instance.

    Images are found by imagePath, from the folder or from images_dir, by their bare names where they were moved, and in
    the files' own imageData where there is no other. Points, lines and strips are reported as records
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
            builder.problem("unreadable-record", name, str(error).removeprefix(f"{os.path.join(path, name)}: "))
            continue
        if not is_labelme(tree):
            builder.problem("unreadable-record", name, "not a LabelMe file: needs 'shapes' and 'imagePath'")
            continue
        _read_image(builder, path, name, tree)
    _note_unlisted(builder, path, {files.stem(name) for name in names})
    return builder.finish()


def _note_unlisted(builder: SetBuilder, folder: str, annotated: set[str]) -> None:
    """Note the photographs that no file is of: they may wait to be annotated, or lack the file of a negative."""
    images_dir = builder.raw.images_dir
    paths = [
        os.path.join(d, n)
        for d in dict.fromkeys((images_dir, folder))
        for n in files.matching(d, *files.IMAGE_PATTERNS)
    ]
    listed = {os.path.normpath(files.join(images_dir, i["file_name"])) for i in builder.raw.images}
    for path in paths:
        if os.path.normpath(path) not in listed and files.stem(path) not in annotated:
            builder.problem("unlisted-image", path, "has no LabelMe file and is not used")


def _read_image(builder: SetBuilder, folder: str, name: str, tree: dict[str, Any]) -> None:
    height, width, file_name = (tree.get(key) for key in ("imageHeight", "imageWidth", "imagePath"))
    height, width = plain_integer(height), plain_integer(width)
    if wrong := size_flaw(height, width):
        builder.problem("bad-image-record", name, f"imageHeight and imageWidth: {wrong}")
        return
    if not isinstance(file_name, str) or not file_name:
        builder.problem("bad-image-record", name, f"imagePath {brief(file_name)} is not text")
        return
    try:
        image_id = _add_image(builder, folder, name, tree, file_name, height, width)
    except OSError as error:
        builder.problem(code_of(error), f"{name}: imageData", str(error))
        return
    groups: dict[tuple[str, Any], int] = {}  # position of the instance in `instances` by label and group
    instances: list[tuple[str, list[Part], str]] = []
    for position, shape in enumerate(tree["shapes"]):
        place = f"{name}: shapes[{position}]"
        label = shape.get("label") if isinstance(shape, dict) else None
        label = label.strip() if isinstance(label, str) else ""
        if not label:
            builder.problem("bad-annotation-record", place, "needs a text 'label'")
            continue
        group = shape.get("group_id")
        if not (group is None or isinstance(group, int | float | str)):
            builder.problem("bad-annotation-record", f"{place} ({label})", f"group_id {brief(group)} is not a number")
            continue
        try:
            part = _segmentation(shape, height, width)
        except ValueError as error:
            builder.problem("unreadable-record", f"{place} ({label})", str(error))
            continue
        if group is not None and (label, group) in groups:
            instances[groups[label, group]][1].append(part)
            continue
        if group is not None:
            groups[label, group] = len(instances)
        instances.append((label, [part], f"{place} ({label})"))
    for label, parts, place in instances:
        try:
            builder.instance(image_id, label, union(parts, height, width), place)
        except Flaw as flaw:
            builder.problem(flaw.code, place, str(flaw))


def _add_image(
    builder: SetBuilder, folder: str, name: str, tree: dict[str, Any], file_name: str, height: int, width: int
) -> int:
    """Add the image: by its imagePath, else by its bare name in images_dir or beside the JSON, else the imageData."""
    images_dir = builder.raw.images_dir
    if (spelled := find_spelling(images_dir, file_name)) is not None:
        return builder.image(spelled, height, width, name)
    if (moved := find_moved([images_dir, folder], file_name)) is not None:
        return builder.image(_from_folder(images_dir, moved), height, width, name)
    data = tree.get("imageData")
    if not isinstance(data, str) or not data:
        return builder.image(file_name.replace("\\", "/"), height, width, name)
    path = os.path.join(folder, name)
    offset = files.read_bytes(path).find(data.encode("ascii", "replace"))
    if offset < 0:
        raise ImageError("not-an-image", "is written with escapes, so that it cannot be read in place; save it again")
    header = header_of(io.BytesIO(read_encoded(path, offset, len(data))))
    turn = header.turn_for(height, width)
    if turn is None:
        sizes = f"has {header.width} x {header.height}, the annotations {width} x {height}"
        raise ImageError("image-size-differs", sizes)
    more = {"by_pillow": header.by_pillow, "turn": turn}
    name_of = bare_name(file_name)
    return builder.image(name_of, height, width, name, shard=path, offset=offset, length=len(data), **more)


def _from_folder(folder: str, path: str) -> str:
    """A path as a name in a folder."""
    return path if files.is_remote(path) else os.path.relpath(path, folder)


def _segmentation(shape: dict[str, Any], height: int, width: int) -> Part:
    """Polygons or RLE of a shape; raises ValueError saying what is wrong with it."""
    kind = shape.get("shape_type") or "polygon"
    try:
        points = np.asarray(shape.get("points"), np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("'points' are not pairs of numbers x, y") from None
    if not len(points):
        raise ValueError("'points' are empty")
    if not np.isfinite(points).all():
        raise ValueError("'points' are not finite")
    if np.abs(points).max() > MAX_PIXELS:
        raise ValueError("'points' lie beyond any image")
    if kind == "polygon":
        return [points.reshape(-1).tolist()]
    if kind in ("rectangle", "circle", "mask") and len(points) < 2:
        raise ValueError(f"a {kind} needs 2 points, has {len(points)}")
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    if kind == "rectangle":  # two corners, or all four
        return [[x0, y0, x1, y0, x1, y1, x0, y1]]
    if kind == "circle":  # the center, and a point on the circle
        radius = float(np.hypot(*(points[1] - points[0])))
        return [circle(points[0, 0], points[0, 1], radius, radius)]
    if kind == "mask":  # a PNG of the rectangle between the points, both ends included
        return _placed_mask(shape.get("mask"), round(x0), round(y0), height, width)
    raise ValueError(f"a shape of type {brief(kind)} has no area: polygon, rectangle, circle and mask can be used")


def _placed_mask(text: Any, left: int, top: int, height: int, width: int) -> dict[str, Any]:
    try:
        with open_image(io.BytesIO(base64.b64decode(text))) as image:
            if image.width * image.height > 4 * max(height * width, 1):
                sizes = f"{image.width} x {image.height}, its image {width} x {height}"
                raise Flaw("unreadable-record", f"'mask' has {sizes}")
            part = np.asarray(image.convert("L")) > 0
    except (TypeError, binascii.Error, OSError) as error:
        raise ValueError(f"'mask' is not a base64 PNG ({error})") from None
    return encode_part(part, top, left, height, width)
