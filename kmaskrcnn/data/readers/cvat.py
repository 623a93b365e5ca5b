"""CVAT for images 1.1: one XML of polygons, boxes, ellipses and masks for all images."""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree

import numpy as np

from kmaskrcnn.data import files
from kmaskrcnn.data.readers.outlines import Part, circle, turned_rectangle, union
from kmaskrcnn.data.sets.check_record import brief, finite, plain_integer, size_flaw
from kmaskrcnn.data.sets.raw_set import RawSet, SetBuilder, encode_part
from kmaskrcnn.errors import DataError, Flaw

_HEAD_BYTES = 4096


def is_cvat(path: str) -> bool:
    """Whether a file is an XML of CVAT for images."""
    if not path.lower().endswith(".xml"):
        return False
    try:
        with files.open_binary(path) as file:
            return b"<annotations" in file.read(_HEAD_BYTES)
    except OSError:
        return False


def read_cvat(path: str, images_dir: str) -> RawSet:
    """Read the XML of an export; images lie in `images` beside it, or in images_dir.

    Shapes of one label and group_id are one object. Points, polylines, cuboids and skeletons are reported as records
    that cannot be used.
    """
    try:
        tree = ElementTree.fromstring(files.read_bytes(path))
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: not XML ({error})") from None
    if tree.tag != "annotations":
        raise DataError(f"{path}: not an XML of CVAT for images: its root is <{brief(tree.tag)}>")
    folder = os.path.dirname(path)
    beside = os.path.join(folder, "images")
    builder = SetBuilder(path, images_dir or (beside if files.is_folder(beside) else folder))
    for position, image in enumerate(tree.iter("image")):
        _read_image(builder, image, position)
    if not builder.raw.images and not builder.raw.problems:
        raise DataError(f"{path}: no <image> in it; export tasks of video as 'CVAT for images'")
    return builder.finish()


def _read_image(builder: SetBuilder, image: ElementTree.Element, position: int) -> None:
    name = image.get("name", "")
    place = f"image {position} ({name})"
    height, width = (plain_integer(image.get(key)) for key in ("height", "width"))
    wrong = size_flaw(height, width) if name else "needs a name"
    if wrong:
        builder.problem("bad-image-record", place, wrong)
        return
    image_id = builder.image(name, height, width, place)
    groups: dict[tuple[str, str], int] = {}
    instances: list[tuple[str, list[Part], str]] = []
    for number, shape in enumerate(image):
        if shape.tag == "tag":  # of the whole image
            continue
        label, group = shape.get("label", "").strip(), shape.get("group_id") or "0"
        record = f"{place}: {shape.tag} {number} ({label})"
        if not label:
            builder.problem("bad-annotation-record", record, "needs a label")
            continue
        try:
            part = _segmentation(shape, height, width)
        except ValueError as error:
            builder.problem("unreadable-record", record, str(error))
            continue
        if group != "0" and (label, group) in groups:
            instances[groups[label, group]][1].append(part)
            continue
        if group != "0":
            groups[label, group] = len(instances)
        instances.append((label, [part], record))
    for label, parts, record in instances:
        try:
            builder.instance(image_id, label, union(parts, height, width), record)
        except Flaw as flaw:
            builder.problem(flaw.code, record, str(flaw))


def _segmentation(shape: ElementTree.Element, height: int, width: int) -> Part:
    """Polygons or RLE of a shape; raises ValueError saying what is wrong with it."""

    def numbers(*names: str) -> list[float]:
        return [finite(shape.get(name, "")) for name in names]

    if shape.tag == "polygon":
        points = [point.split(",") for point in shape.get("points", "").split(";")]
        if not all(len(point) == 2 for point in points):
            raise ValueError("'points' are not x,y;x,y;...")
        return [[finite(value) for point in points for value in point]]
    if shape.tag == "box":
        x0, y0, x1, y1 = numbers("xtl", "ytl", "xbr", "ybr")
        angle = math.radians(finite(shape.get("rotation", "0")))
        return [turned_rectangle((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, angle)]
    if shape.tag == "ellipse":
        angle = math.radians(finite(shape.get("rotation", "0")))
        x, y, radius_x, radius_y = numbers("cx", "cy", "rx", "ry")
        return [circle(x, y, radius_x, radius_y, angle)]
    if shape.tag == "mask":
        left, top, w, h = (plain_integer(shape.get(name)) for name in ("left", "top", "width", "height"))
        if flaw := size_flaw(h, w):
            raise ValueError(f"the mask's {flaw}")
        if not all(isinstance(v, int) and abs(v) < 2**31 for v in (left, top)) or h * w > 4 * height * width:
            raise ValueError("the mask does not fit the image")
        runs = np.array([plain_integer(text.strip()) for text in shape.get("rle", "").split(",")], object)
        if not all(isinstance(run, int) and 0 <= run <= h * w for run in runs) or sum(runs) != h * w:
            raise ValueError(f"the mask's runs do not add up to its {h} x {w} pixels")
        values = np.repeat(np.arange(len(runs)) % 2 == 1, runs.astype(np.int64))  # row by row, from 0
        return encode_part(values.reshape(h, w), top, left, height, width)
    raise ValueError(f"a {shape.tag} has no area: polygon, box, ellipse and mask can be used")
