"""The kinds of error and the AP that each costs (TIDE: Bolya, Foley, Hays, Hoffman 2020)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.evaluation.error_kinds import ranking_score, to_rle

# A detection is an object from the one IoU on, and touches none up to the other.
_FOREGROUND_IOU, _BACKGROUND_IOU = 0.5, 0.1
# What is wrong with a detection, in the order in which it is asked; a missed object has no detection.
_KINDS = ("Loc", "Cls", "Dupe", "Bkg", "Both")
_RIGHT, _WRONG, _IGNORED = 1, 0, -1
_RECALLS = np.arange(101) / 100


@dataclasses.dataclass(frozen=True)
class TideErrors:
    """How much AP at IoU 0.5 rises if all errors of one kind, and no others, are corrected.

    Attributes:
        ap: AP at IoU 0.5 as TIDE counts it: the best detections of an image count over all classes together, and a
            class without objects that has detections counts with an AP of 0.
        main: dAP by kind of error. Cls: the wrong class on an object (IoU of at least 0.5). Loc: the right class, but
            off the object (IoU from 0.1 to 0.5). Both: off it and of the wrong class. Dupe: an object found before.
            Bkg: nothing is there (IoU of at most 0.1). Miss: an object that no Cls or Loc error can be corrected to.
        special: dAP without any false positives (FalsePos), and without any missed objects (FalseNeg).
    """

    ap: float
    main: dict[str, float]
    special: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Image:
    """One image's detections by decreasing score, (D,) each, and its objects, (G,)."""

    classes: np.ndarray
    scores: np.ndarray
    states: np.ndarray  # _RIGHT, _WRONG or _IGNORED
    kinds: np.ndarray  # what is wrong, an index of _KINDS; -1 where nothing is
    corrected: np.ndarray  # the class that a correction makes it right for; -1 where it is left out
    object_classes: np.ndarray
    found: np.ndarray
    missed: np.ndarray


def tide_errors(
    ground_truth: dict,
    results: Sequence[dict],
    kind: str,
    max_detections: int = 100,
    image_ids: Sequence[int] | None = None,
) -> TideErrors:
    """Tell the errors of detections apart, as the authors' package `tidecv` does at its defaults.

    Args:
        ground_truth: a COCO instances dict; crowds take detections without counting them.
        results: detections as COCO results; those of other categories are left out.
        kind: "box" or "mask", whose IoU counts.
        max_detections: detections per image that count, the best ones of all classes together.
        image_ids: only these images; default: all.
    """
    position = {c["id"]: i for i, c in enumerate(ground_truth["categories"])}
    objects, found = collections.defaultdict(list), collections.defaultdict(list)
    for annotation in ground_truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    for result in results:
        if result["category_id"] in position:
            found[result["image_id"]].append(result)
    records = {image["id"]: image for image in ground_truth["images"]}
    images = []
    for image_id in records if image_ids is None else map(int, image_ids):
        best = sorted(found[image_id], key=lambda r: -ranking_score(r, kind))[:max_detections]
        images.append(_examine(records[image_id], objects[image_id], best, position, kind))
    return _costs(images, len(position))


def _examine(record: dict, annotations: list[dict], results: list[dict], position: dict[int, int], kind: str) -> _Image:
    crowds = [a for a in annotations if a.get("iscrowd")]
    objects = [a for a in annotations if not a.get("iscrowd")]

    def shapes(rows: Sequence[dict]) -> list:
        return [row["bbox"] if kind == "box" else to_rle(row, record) for row in rows]

    def classes_of(rows: Sequence[dict]) -> np.ndarray:
        return np.array([position[row["category_id"]] for row in rows], np.int64)

    def overlaps(others: list[dict], crowd: bool) -> np.ndarray:
        if not others or not results:
            return np.zeros((len(results), len(others)))
        return np.asarray(mask_utils.iou(shapes(results), shapes(others), [crowd] * len(others)))

    classes, object_classes = classes_of(results), classes_of(objects)
    iou, same = overlaps(objects, False), classes[:, None] == object_classes
    states, found = np.full(len(results), _WRONG), np.zeros(len(objects), bool)
    for i, row in enumerate(iou * same):
        free = np.where(found, 0.0, row)
        if free.max(initial=0.0) >= _FOREGROUND_IOU:
            found[free.argmax()] = True
            states[i] = _RIGHT
    of_crowd = (overlaps(crowds, True) > _FOREGROUND_IOU) & (classes[:, None] == classes_of(crowds))
    states[(states == _WRONG) & of_crowd.any(1)] = _IGNORED
    kinds, corrected = np.full(len(results), -1), np.full(len(results), -1)
    missed = ~found
    if not len(objects):
        kinds[:] = _KINDS.index("Bkg")
    elif len(results):
        own, others = iou * same, iou * ~same
        conditions = {
            "Loc": (own.max(1) >= _BACKGROUND_IOU) & (own.max(1) <= _FOREGROUND_IOU),
            "Cls": others.max(1) >= _FOREGROUND_IOU,
            "Dupe": own.max(1) >= _FOREGROUND_IOU,  # of a found object, or it would be right
            "Bkg": iou.max(1) <= _BACKGROUND_IOU,
        }
        kinds = np.select(list(conditions.values()), range(len(conditions)), _KINDS.index("Both"))
        kinds[states == _RIGHT] = -1
        target = np.where(kinds == _KINDS.index("Loc"), own.argmax(1), others.argmax(1))
        candidates = np.flatnonzero(((kinds == 0) | (kinds == 1)) & ~found[target])
        chosen, first = np.unique(target[candidates], return_index=True)  # the best score corrects, others are left out
        corrected[candidates[first]] = object_classes[chosen]
        missed[chosen] = False
    scores = np.array([ranking_score(r, kind) for r in results], np.float64)
    return _Image(classes, scores, states, kinds, corrected, object_classes, found, missed)


def _costs(images: Sequence[_Image], num_classes: int) -> TideErrors:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(image, name) for image in images]) if images else np.zeros(0, int)

    classes, scores, states, kinds, corrected = map(joined, ("classes", "scores", "states", "kinds", "corrected"))
    object_classes = joined("object_classes")

    def count(rows: np.ndarray) -> np.ndarray:
        return np.bincount(object_classes[rows.astype(bool)], minlength=num_classes)

    objects = count(np.ones(len(object_classes), bool))
    counted = states != _IGNORED
    ap = _mean_ap(classes[counted], scores[counted], states[counted] == _RIGHT, objects)
    # Errors come first among equal scores, as in tidecv.
    order = np.argsort(states == _RIGHT, kind="stable")
    main = {}
    for number, kind in enumerate(_KINDS):
        now = kinds == number
        keep = order[np.where(now, corrected >= 0, counted)[order]]
        fixed = np.where(now, corrected, classes)
        main[kind] = _mean_ap(fixed[keep], scores[keep], (now | (states == _RIGHT))[keep], objects) - ap
    keep = order[counted[order]]
    right = (states == _RIGHT)[keep]
    main["Miss"] = _mean_ap(classes[keep], scores[keep], right, objects - count(joined("missed"))) - ap
    special = {
        "FalsePos": _mean_ap(classes[keep], right.astype(float), right, objects) - ap,
        "FalseNeg": _mean_ap(classes[keep], scores[keep], right, count(joined("found"))) - ap,
    }
    # A correction can lower AP by a rounding of the 101 recalls; it costs nothing then.
    shown = {kind: max(main[kind], 0.0) for kind in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")}
    return TideErrors(ap, shown, special)


def _mean_ap(classes: np.ndarray, scores: np.ndarray, right: np.ndarray, objects: np.ndarray) -> float:
    """AP, the mean over the classes with an object or a detection; -1 where there is none."""
    values = []
    for number, total in enumerate(objects):
        own = np.flatnonzero(classes == number)
        if total:
            values.append(_ap(right[own[np.argsort(-scores[own], kind="stable")]], int(total)))
        elif len(own):
            values.append(0.0)
    return float(np.mean(values)) if values else -1.0


def _ap(right: np.ndarray, objects: int) -> float:
    """The mean precision at 101 recalls; right: (D,) bool by decreasing score."""
    true = np.cumsum(right)
    precision = true / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    rows = np.searchsorted(true / objects, _RECALLS)
    return float(np.sum(precision[rows[rows < len(right)]]) / len(_RECALLS))
