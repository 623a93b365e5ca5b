"""What a model gets right and wrong, image by image: matches, confusions, misses, false positives, and calibration."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.progress import Progress

# IoU from which on a detection is an object, and the score from which on it is shown and counted.
MATCH_IOU, WORKING_SCORE = 0.5, 0.5
_BINS = 10


@dataclasses.dataclass(frozen=True)
class ImageMatches:
    """One image's objects and detections, and which of them match.

    Attributes:
        image: its COCO record.
        objects: its annotations but for crowds.
        results: detections of it as COCO results, by decreasing score.
        matched: (D,) the object that each detection is by class and mask IoU; -1 for none, -2 for inside a crowd.
        taken_for: (D,) the object of another class that a detection above the working score covers; -1 for none.
    """

    image: dict[str, Any]
    objects: list[dict]
    results: list[dict]
    matched: np.ndarray
    taken_for: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """(D,) whether a detection has the working score and is not inside a crowd."""
        scores = np.array([r["score"] for r in self.results])
        return (scores.reshape(-1) >= WORKING_SCORE) & (self.matched != -2)

    @property
    def found(self) -> np.ndarray:
        """(G,) whether a detection of the working score is the object."""
        found = np.zeros(len(self.objects), bool)
        found[self.matched[self.shown & (self.matched >= 0)]] = True
        return found

    @property
    def counts(self) -> tuple[int, int, int]:
        """TP, FP, FN at the working score."""
        right = int(self.found.sum())
        return right, int(self.shown.sum()) - right, len(self.objects) - right

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 for an image without objects where nothing was found."""
        right, false, missed = self.counts
        return 2 * right / total if (total := 2 * right + false + missed) else 1.0


def match_images(ground_truth: dict, results: Sequence[dict], image_ids: Sequence[int]) -> list[ImageMatches]:
    """Match detections with objects by mask IoU and decreasing score, class by class, then the rest across classes.

    Args:
        ground_truth: a COCO instances dict.
        results: detections with masks, as COCO results.
        image_ids: the images.
    """
    objects, found = collections.defaultdict(list), collections.defaultdict(list)
    for annotation in ground_truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    for result in results:
        found[result["image_id"]].append(result)
    images = {image["id"]: image for image in ground_truth["images"]}
    matches, progress = [], Progress("images matched", len(image_ids))
    for image_id in image_ids:
        by_score = sorted(found[image_id], key=lambda r: -r["score"])
        matches.append(_match(images[image_id], objects[image_id], by_score))
        progress.step()
    progress.clear()
    return matches


def ranking_score(result: dict, kind: str) -> float:
    """The score by which a result ranks as a "box", or as a mask: `mask_score` where it has one."""
    return result["score"] if kind == "box" else result.get("mask_score", result["score"])


def to_rle(annotation: dict, image: dict) -> dict[str, Any]:
    """The segmentation of an annotation or a result as compressed RLE."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return mask_utils.merge(mask_utils.frPyObjects(segmentation, image["height"], image["width"]))
    return segmentation


def _match(image: dict, annotations: list[dict], results: list[dict]) -> ImageMatches:
    crowds = [a for a in annotations if a.get("iscrowd")]
    objects = [a for a in annotations if not a.get("iscrowd")]
    matched, taken_for = np.full(len(results), -1), np.full(len(results), -1)
    if results and annotations:
        rles = [to_rle(a, image) for a in objects + crowds]
        flags = [0] * len(objects) + [1] * len(crowds)
        overlap = np.array(mask_utils.iou([to_rle(r, image) for r in results], rles, flags)).reshape(len(results), -1)
        theirs, own = (np.array([a["category_id"] for a in some]) for some in (objects + crowds, results))
        same = own[:, None] == theirs
        free = np.ones(len(objects), bool)
        for i in range(len(results)):
            values = np.where(same[i, : len(objects)] & free, overlap[i, : len(objects)], 0)
            if values.max(initial=0) >= MATCH_IOU:
                matched[i] = int(values.argmax())
                free[matched[i]] = False
            elif (same[i, len(objects) :] & (overlap[i, len(objects) :] >= MATCH_IOU)).any():
                matched[i] = -2
        above = np.array([r["score"] >= WORKING_SCORE for r in results])
        free = np.ones(len(objects), bool)
        free[matched[above & (matched >= 0)]] = False
        for i in np.flatnonzero(above & (matched == -1)).tolist():
            values = np.where(~same[i, : len(objects)] & free, overlap[i, : len(objects)], 0)
            if values.max(initial=0) >= MATCH_IOU:
                taken_for[i] = int(values.argmax())
                free[taken_for[i]] = False
    return ImageMatches(image, objects, results, matched, taken_for)


def confusion_matrix(matches: Sequence[ImageMatches], category_ids: Sequence[int]) -> np.ndarray:
    """(C + 1, C + 1) counts at the working score: rows true class, columns predicted class; the last is background.

    The last row holds false positives on the background, the last column missed objects.
    """
    position = {category: i for i, category in enumerate(category_ids)}
    nothing = len(position)
    matrix = np.zeros((nothing + 1, nothing + 1), np.int64)
    for image in matches:
        classes = [position[o["category_id"]] for o in image.objects]
        seen = image.found
        for i in np.flatnonzero(image.shown):
            column = position.get(image.results[i]["category_id"])
            if column is None:  # a class of the model that the data set lacks
                continue
            owner = image.matched[i] if image.matched[i] >= 0 else image.taken_for[i]
            matrix[classes[owner] if owner >= 0 else nothing, column] += 1
            if owner >= 0:
                seen[owner] = True
        for i in np.flatnonzero(~seen):
            matrix[classes[i], nothing] += 1
    return matrix


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How often detections of a score are correct.

    Attributes:
        counts: (bins,) number of detections with scores in 0..0.1, 0.1..0.2, ...
        mean_scores: (bins,) their mean score, NaN where there are none.
        precisions: (bins,) the share of them that is an object, NaN where there are none.
        error: mean distance of the two over all detections (expected calibration error).
    """

    counts: np.ndarray
    mean_scores: np.ndarray
    precisions: np.ndarray
    error: float


def scored_detections(matches: Sequence[ImageMatches]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) category ids, scores, and whether a detection is an object, of all but those inside crowds."""
    rows = [
        (result["category_id"], result["score"], owner >= 0)
        for m in matches
        for result, owner in zip(m.results, m.matched.tolist(), strict=True)
        if owner != -2
    ]
    categories, scores, right = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(categories, np.int64), np.array(scores, np.float64), np.array(right, bool)


def calibration(matches: Sequence[ImageMatches]) -> Calibration:
    """Scores compared with the share of correct detections; those inside crowds do not count."""
    _, scores, right = scored_detections(matches)
    return calibration_of(scores, right)


def calibration_of(scores: np.ndarray, right: np.ndarray) -> Calibration:
    """The calibration of detections with these scores (N,), of which some are right (N,) bool."""
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(bins, scores, _BINS) / counts
        precisions = np.bincount(bins, right, _BINS) / counts
    gaps = np.abs(mean_scores - precisions)[counts > 0]
    error = float(np.sum(gaps * counts[counts > 0]) / max(counts.sum(), 1))
    return Calibration(counts, mean_scores, precisions, error)
