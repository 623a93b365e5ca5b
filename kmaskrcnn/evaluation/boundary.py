"""Boundary IoU (Cheng, Girshick, Dollar, Berg, Kirillov 2021): how well the edges of masks agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.evaluation.sparse_eval import SparseCOCOeval
from kmaskrcnn.results.mask_paste import rle_to_window, window_to_rle
from kmaskrcnn.results.pasted_masks import trim_window

# Width of the boundary as a share of the image's diagonal.
DILATION_RATIO = 0.02
# The lowest IoU at which AP counts a match; what lies below needs no boundary.
_LEAST_IOU = 0.5


class BoundaryEval(SparseCOCOeval):
    """COCO's evaluation of masks with the smaller of mask IoU and boundary IoU; crowds by mask IoU alone.

    IoUs below 0.5, at which nothing matches, are those of the masks.
    """

    def overlaps(self, imgId: int, catId: int) -> Any:
        ious = super().overlaps(imgId, catId)
        if not len(ious):
            return ious
        objects, detections = self._gts[imgId, catId], self._dts[imgId, catId]
        order = np.argsort([-d["score"] for d in detections], kind="mergesort")[: len(ious)]
        near = (ious >= _LEAST_IOU) & ~np.array([bool(o["iscrowd"]) for o in objects])
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        if len(rows):
            found = [boundary(detections[order[row]]["segmentation"]) for row in rows]
            true = [boundary(objects[column]["segmentation"]) for column in columns]
            block = np.ix_(rows, columns)
            ious[block] = np.where(near[block], np.minimum(ious[block], _iou(found, true)), ious[block])
        return ious


def boundary(rle: dict[str, Any]) -> dict[str, Any]:
    """The pixels of a mask that are nearer to its outside than the boundary is wide.

    Distance is along rows, columns or diagonals, and what lies beyond the image is outside. The width is
    DILATION_RATIO of the image's diagonal, in whole pixels, at least one. Memory is that of the mask's columns.

    Args:
        rle: COCO's compressed RLE.

    Returns:
        The same for the boundary.
    """
    height, width = rle["size"]
    distance = max(1, round(DILATION_RATIO * math.sqrt(height**2 + width**2)))
    mask, top, left = trim_window(rle_to_window(rle))
    return window_to_rle(mask & ~_erode(mask, distance), top, left, height, width)


def _erode(mask: np.ndarray, distance: int) -> np.ndarray:
    """(h, w) bool, set where the square of this many pixels to each side is set and inside the array."""
    side = 2 * distance + 1
    eroded = np.zeros_like(mask)
    if min(mask.shape) >= side:
        inner = _all_of(_all_of(mask, side).T, side).T
        eroded[distance:-distance, distance:-distance] = inner
    return eroded


def _all_of(mask: np.ndarray, length: int) -> np.ndarray:
    """(h, w) to (h - length + 1, w) bool, whether this many rows from each on are set."""
    covered = 1
    while covered < length:  # each step up to doubles the rows that an element stands for
        step = min(covered, length - covered)
        mask = mask[:-step] & mask[step:]
        covered += step
    return mask


def _iou(found: Sequence[dict], true: Sequence[dict]) -> np.ndarray:
    return np.asarray(mask_utils.iou(found, true, [False] * len(true)))
