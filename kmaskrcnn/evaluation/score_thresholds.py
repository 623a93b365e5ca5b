"""The score threshold of each class with the best F1, and how far its scores can be trusted."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from kmaskrcnn.evaluation.error_kinds import WORKING_SCORE, ImageMatches, calibration_of, scored_detections


@dataclasses.dataclass(frozen=True)
class ScoreThreshold:
    """What a class gains by a threshold of its own; masks match at an IoU of 0.5.

    Attributes:
        objects: number of objects of the class.
        threshold: detections of at least this score have the best F1; None where no detection is right.
        precision: at the threshold, TP / (TP + FP).
        recall: at the threshold, TP / (TP + FN).
        f1: at the threshold, 2 TP / (2 TP + FP + FN).
        f1_at_working_score: F1 at a score of 0.5.
        calibration_error: the expected calibration error (ECE) of the class; None without detections.
    """

    objects: int
    threshold: float | None
    precision: float
    recall: float
    f1: float
    f1_at_working_score: float
    calibration_error: float | None


def best_thresholds(matches: Sequence[ImageMatches], names: Mapping[int, str]) -> dict[str, ScoreThreshold]:
    """The thresholds by class name.

    Args:
        matches: of the evaluation set; what lies inside crowds does not count.
        names: class names by COCO category id.
    """
    categories, scores, right = scored_detections(matches)
    objects = collections.Counter(o["category_id"] for m in matches for o in m.objects)
    order = np.argsort(-scores, kind="stable")
    own = {category: order[categories[order] == category] for category in names}
    return {name: _best(scores[own[c]], right[own[c]], objects[c]) for c, name in names.items()}


def _best(scores: np.ndarray, right: np.ndarray, objects: int) -> ScoreThreshold:
    """The threshold of one class; scores (N,) decreasing, right (N,) bool."""
    true, taken = np.cumsum(right), np.arange(1, len(scores) + 1)
    f1 = 2 * true / (taken + objects)
    working = int(np.sum(scores >= WORKING_SCORE))
    at_working = float(f1[working - 1]) if working else 0.0
    error = calibration_of(scores, right).error if len(scores) else None
    if not right.any():
        return ScoreThreshold(objects, None, 0.0, 0.0, 0.0, at_working, error)
    ends = np.flatnonzero(np.append(scores[1:] < scores[:-1], True))  # equal scores are kept or dropped together
    best = int(ends[f1[ends].argmax()])  # the highest threshold of several that are as good
    below = float(scores[best + 1]) if best + 1 < len(scores) else 0.0
    return ScoreThreshold(
        objects,
        _between(below, float(scores[best])),
        float(true[best] / taken[best]),
        float(true[best] / objects),
        float(f1[best]),
        at_working,
        error,
    )


def _between(low: float, high: float) -> float:
    """About the middle of low < t <= high, in as few decimals as lie between."""
    middle = (low + high) / 2
    return next((t for t in (round(middle, n) for n in range(2, 10)) if low < t <= high), math.nextafter(low, high))
