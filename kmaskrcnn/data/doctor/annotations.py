"""The doctor's look at classes and annotations."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.data.doctor.defects import Findings
from kmaskrcnn.data.doctor.images import ExaminedImage
from kmaskrcnn.data.doctor.masks import Note, examine_mask
from kmaskrcnn.data.sets.check_record import is_integer
from kmaskrcnn.data.sets.raw_set import RawSet

# Sides of a box may differ from the mask's by this many pixels, or this share of its longer side.
_BOX_PIXELS, _BOX_SHARE = 3.0, 0.05
# The stated area may differ by this many pixels and this share: an outline's area is not that of its pixels.
_AREA_PIXELS, _AREA_SHARE = 30.0, 0.25
_SAME_IOU = 0.95
_TINY_PIXELS = 4


class ExaminedAnnotation(NamedTuple):
    """An annotation that can be kept, in COCO's form, and the RLE that its segmentation draws."""

    record: dict[str, Any]
    rle: dict[str, Any]
    place: str


def examine_categories(raw: RawSet, findings: Findings) -> tuple[list[dict], dict[int, int]]:
    """Look at the classes; returns those to keep, and the id to keep for each known id."""
    kept: dict[int, dict] = {}
    target: dict[int, int] = {}
    by_name: dict[str, int] = {}
    loose: dict[str, str] = {}
    for position, category in enumerate(raw.categories):
        place = f"categories[{position}]"
        good = isinstance(category, dict) and is_integer(category.get("id")) and isinstance(category.get("name"), str)
        if not good:
            findings.add("bad-category", place, f"{category!r}"[:80])
            continue
        number, name = category["id"], category["name"]
        if number in target:
            findings.add("duplicate-category-id", place, f"id {number} is {name!r} and one before")
            continue
        target[number] = by_name.setdefault(name, number)
        if target[number] != number:
            findings.add("duplicate-category-name", place, f"{name!r} has the ids {by_name[name]} and {number}")
            continue
        other = loose.setdefault("".join(name.lower().split()), name)
        if other != name:
            findings.add("similar-category-names", place, f"{name!r} and {other!r}")
        kept[number] = category
    return list(kept.values()), target


def examine_annotations(
    raw: RawSet,
    images: list[ExaminedImage],
    image_target: dict[int, int],
    category_target: dict[int, int],
    findings: Findings,
) -> list[ExaminedAnnotation]:
    """Look at every annotation; returns those to keep, mended."""
    by_id = {image.record["id"]: image for image in images}
    kept: dict[int, list[ExaminedAnnotation]] = {number: [] for number in by_id}
    ids = [a["id"] for a in raw.annotations if isinstance(a, dict) and is_integer(a.get("id"))]
    next_id, seen = max(ids, default=0) + 1, set()
    for annotation, place in zip(raw.annotations, raw.annotation_places, strict=True):
        if not isinstance(annotation, dict) or not is_integer(annotation.get("id")):
            findings.add("bad-annotation-record", place, f"{annotation!r}"[:80])
            continue
        record = dict(annotation)
        if not raw.named:
            place = f"{place} (id {record['id']})"
        if not is_integer(record.get("image_id")) or record["image_id"] not in image_target:
            findings.add("unknown-image", place, f"image id {record.get('image_id')!r}")
            continue
        image = by_id.get(image_target[record["image_id"]])
        if image is not None and not raw.named:
            place = f"{place[:-1]}, {image.record['file_name']})"
        if record["id"] in seen:
            findings.add("duplicate-annotation-id", place, f"id {record['id']} occurs before")
            record["id"], next_id = next_id, next_id + 1
        seen.add(record["id"])
        if not is_integer(record.get("category_id")) or record["category_id"] not in category_target:
            findings.add("unknown-category", place, f"category id {record.get('category_id')!r}")
            continue
        if image is None:
            continue  # the image was named already
        record["image_id"], record["category_id"] = image.record["id"], category_target[record["category_id"]]

        def note(code: str, detail: str, place: str = place) -> None:
            findings.add(code, place, detail)

        if record.get("iscrowd", 0) not in (0, 1):
            note("bad-iscrowd", f"iscrowd is {record['iscrowd']!r}")
            record["iscrowd"] = 0
        size = image.record["height"], image.record["width"]
        found = examine_mask(record.get("segmentation"), *size, note)
        if found is None:
            continue
        record["segmentation"], rle = found
        record["iscrowd"] = int(record.get("iscrowd", 0))
        if record["iscrowd"]:
            note("crowd", "ignored in training, and in evaluation where it covers a detection")
        record["bbox"] = _box(record.get("bbox"), rle, *size, note)
        record["area"] = _area(record.get("area"), rle, note)
        kept[image.record["id"]].append(ExaminedAnnotation(record, rle, place))
    result = []
    for number, mine in kept.items():
        mine = _without_duplicates(mine, findings)
        if not mine:
            findings.add("image-without-objects", by_id[number].place, "no annotation is of it")
        result += mine
    used = {a.record["category_id"] for a in result}
    for category in raw.categories:  # one that was joined with another or has no id was named before
        if isinstance(category, dict) and category_target.get(category.get("id"), -1) not in used | {-1}:
            findings.add("unused-category", repr(category["name"]), "no object of it is left")
    return result


def _box(bbox: Any, rle: dict[str, Any], height: int, width: int, note: Note) -> list[float]:
    """The box to keep, x, y, width, height; that of the mask where the given one is wrong."""
    tight = [float(v) for v in mask_utils.toBbox(rle)]
    good = isinstance(bbox, list | tuple) and len(bbox) == 4 and all(isinstance(v, numbers.Real) for v in bbox)
    if not good or not all(math.isfinite(v) for v in bbox):
        note("bad-box", f"bbox {bbox!r}"[:80])
        return tight
    x, y, w, h = map(float, bbox)
    mask = f"the mask's is {[round(v, 1) for v in tight]}"
    allowed = max(_BOX_PIXELS, _BOX_SHARE * max(tight[2:]))
    sides = np.array([x, y, x + w, y + h])
    wanted = np.array([tight[0], tight[1], tight[0] + tight[2], tight[1] + tight[3]])

    def fits(corners: np.ndarray) -> bool:
        return bool(np.abs(np.clip(corners, 0, (width, height) * 2) - wanted).max() <= allowed)

    if fits(sides) and w > 0 and h > 0:
        if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
            note("box-over-border", f"bbox {bbox} in an image of {width} x {height}")
        x0, y0, x1, y1 = np.clip(sides, 0, (width, height) * 2).tolist()
        return list(bbox) if (x0, y0, x1, y1) == tuple(sides) else [x0, y0, x1 - x0, y1 - y0]
    if max(abs(v) for v in bbox) <= 1 and fits(sides * np.tile([width, height], 2)):
        note("box-as-shares", f"bbox {bbox}; {mask}")
    elif fits(np.array([x, y, w, h])):
        note("box-as-corners", f"bbox {bbox}; {mask}")
    elif w <= 0 or h <= 0:
        note("box-without-area", f"bbox {bbox}; {mask}")
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        note("box-outside", f"bbox {bbox} in an image of {width} x {height}")
    else:
        note("box-mask-differ", f"bbox {[round(v, 1) for v in (x, y, w, h)]}; {mask}")
    return tight


def _area(area: Any, rle: dict[str, Any], note: Note) -> float:
    pixels = float(mask_utils.area(rle))
    if pixels < _TINY_PIXELS:
        note("tiny-mask", f"{pixels:g} pixels")
    if not isinstance(area, int | float) or isinstance(area, bool):
        return pixels
    if not abs(area - pixels) <= max(_AREA_PIXELS, _AREA_SHARE * pixels):
        note("area-differs", f"area is {area:g}, the mask has {pixels:g} pixels")
        return pixels
    return area


def _without_duplicates(annotations: list[ExaminedAnnotation], findings: Findings) -> list[ExaminedAnnotation]:
    """The annotations of one image less those that repeat an earlier one of their class."""
    if len(annotations) < 2:
        return annotations
    boxes = np.array([a.record["bbox"] for a in annotations], np.float64)
    overlap = mask_utils.iou(boxes, boxes, np.zeros(len(boxes), np.uint8))
    repeated: dict[int, int] = {}
    for i, j in np.argwhere(np.triu(overlap > _SAME_IOU - 0.1, 1)).tolist():
        first, second = annotations[i], annotations[j]
        alike = all(first.record[k] == second.record[k] for k in ("category_id", "iscrowd"))
        fresh = alike and i not in repeated and j not in repeated
        if fresh and mask_utils.iou([first.rle], [second.rle], [0])[0, 0] >= _SAME_IOU:
            repeated[j] = i
    for j, i in repeated.items():
        findings.add("duplicate-instance", annotations[j].place, f"the mask of {annotations[i].place}")
    return [a for i, a in enumerate(annotations) if i not in repeated]
