"""Anchors for the boxes of a set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kmaskrcnn.data.doctor.statistics import best_anchor_iou

# Sides on P2 that are tried, up to eight cells as in FPN; they double from level to level, as the strides do.
_SMALLEST = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
_RATIOS = ((0.5, 1.0, 2.0), (0.33, 1.0, 3.0), (0.33, 0.5, 1.0, 2.0, 3.0))
# An anchor of this IoU is a positive; to meet a box better brings nothing.
_POSITIVE = 0.7
# Other ratios than the published ones must raise the mean IoU by this; more of them, which cost time, by twice as much.
_WORTH = 0.01
_MOST_BOXES = 5000


class FittedAnchors(NamedTuple):
    """Sides on P2..P6, height / width, and the mean IoU of a box with its best anchor, counted up to 0.7."""

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    mean: float


def fit_anchors(
    boxes: np.ndarray,
    image_sizes: np.ndarray,
    crop_size: int,
    turned: bool = False,
    sizes: tuple[float, ...] | None = None,
    ratios: tuple[float, ...] | None = None,
) -> FittedAnchors:
    """The anchors that meet boxes best.

    Args:
        boxes: (N, 4) yxyx network pixels, before the crop.
        image_sizes: (N, 2) height and width of the image of each in network pixels.
        crop_size: side of the training crops, which cuts boxes and limits anchors; 0: whole images.
        turned: training turns images by quarters, so boxes are as often high as wide.
        sizes, ratios: those that are fixed already.
    """
    every = max(1, -(-len(boxes) // _MOST_BOXES))
    boxes, image_sizes = boxes[::every], image_sizes[::every].astype(np.float64)
    if crop_size:
        boxes, image_sizes = _cropped(boxes, image_sizes, crop_size)
    limit = float(crop_size or image_sizes.max())
    tried = []
    for own_ratios in (ratios,) if ratios else (*_RATIOS, *(() if turned else (_quantile_ratios(boxes),))):
        longest = float(np.sqrt(max(*own_ratios, *(1 / r for r in own_ratios))))  # longer side of an anchor of side 1
        for own_sizes in (sizes,) if sizes else _candidates(limit / longest):
            mean = float(np.minimum(best_anchor_iou(boxes, image_sizes, own_sizes, own_ratios), _POSITIVE).mean())
            tried.append(FittedAnchors(own_sizes, own_ratios, mean))
    return max(tried, key=lambda f: f.mean - _WORTH * (f.ratios != _RATIOS[0]) - _WORTH * (len(f.ratios) > 3))


def _candidates(limit: float) -> list[tuple[float, ...]]:
    """Sides that grow from level to level, none above the limit."""
    found = {}
    for smallest in _SMALLEST:
        if smallest < limit:
            found[tuple(float(min(smallest * 2**i, int(limit))) for i in range(5))] = None
    return list(found) or [(float(max(1, int(limit))),) * 5]


def _quantile_ratios(boxes: np.ndarray) -> tuple[float, ...]:
    """Height / width of a low, a middle and a high box."""
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ratios = np.percentile(height / np.maximum(width, 1e-9), [17, 50, 83])
    low, middle, high = (float(np.clip(r, 0.2, 5.0)) for r in ratios)
    low, high = min(low, middle / 1.4), max(high, middle * 1.4)  # shapes nearer to each other say the same twice
    return tuple(round(r, 2) for r in (low, middle, high))


def _cropped(boxes: np.ndarray, image_sizes: np.ndarray, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in crops about them: cut to the crop's side, at a place of the crop that is each box's own."""
    sides = np.minimum(boxes[:, 2:] - boxes[:, :2], crop)
    room = crop - sides
    places = np.random.default_rng(0).random(sides.shape) * room
    return np.concatenate([places, places + sides], axis=1), np.full_like(image_sizes, crop)
