"""The doctor's look at annotations: the checks that the loader makes too, and what only a comparison of all shows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.data.doctor.images import ExaminedImage
from kmaskrcnn.data.sets.check_set import check_annotations, no_objects
from kmaskrcnn.data.sets.defects import Findings
from kmaskrcnn.data.sets.raw_set import RawSet

_SAME_IOU = 0.95


class ExaminedAnnotation(NamedTuple):
    """An annotation that can be kept, in COCO's form, and the RLE that its segmentation draws."""

    record: dict[str, Any]
    rle: dict[str, Any]
    place: str


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
    records = {number: image.record for number, image in by_id.items()}
    for one in check_annotations(raw, records, image_target, category_target, findings, thorough=True):
        if one.record["iscrowd"]:
            findings.add("crowd", one.place, "ignored in training, and in evaluation where it covers a detection")
        record = {**one.record, "segmentation": one.mask.as_json(), "bbox": one.bbox, "area": one.area}
        kept[record["image_id"]].append(ExaminedAnnotation(record, one.mask.rle, one.place))
    result = []
    for number, mine in kept.items():
        mine = _without_duplicates(mine, findings)
        if not mine:
            findings.add("image-without-objects", by_id[number].place, "no annotation is of it")
        result += mine
    if images and not result:
        findings.add("no-objects", raw.source, no_objects(len(images)))
    used = {a.record["category_id"] for a in result}
    names = {
        c["id"]: c["name"] for c in raw.categories if isinstance(c, dict) and c.get("id") in category_target.values()
    }
    for category in sorted(set(category_target.values()) - used):
        findings.add("unused-category", repr(names[category]), "no object of it is left")
    return result


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
