"""Anchors for the boxes of a set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kmaskrcnn.config import DataConfig
from kmaskrcnn.data.doctor.statistics import boxes_in_training, training_iou

# Sides on P2 that are tried, up to eight cells as in FPN; they double from level to level, as the strides do.
_SMALLEST = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
_RATIOS = ((0.5, 1.0, 2.0), (0.33, 1.0, 3.0), (0.33, 0.5, 1.0, 2.0, 3.0))
# Other ratios than the published ones must raise the mean IoU by this; more of them, which cost time, by twice as much.
_WORTH = 0.01


class FittedAnchors(NamedTuple):
    """Sides on P2..P6, height / width, and their `training_iou`."""

    sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    mean: float


def fit_anchors(
    boxes: np.ndarray,
    image_sizes: np.ndarray,
    config: DataConfig,
    sizes: tuple[float, ...] | None = None,
    ratios: tuple[float, ...] | None = None,
) -> FittedAnchors:
    """The anchors that meet boxes best.

    Args:
        boxes: (N, 4) yxyx network pixels, before the crop.
        image_sizes: (N, 2) height and width of the image of each in network pixels.
        config: its crop_size cuts boxes and limits anchors, its scale_jitter scales boxes, and with rotate90 boxes are
            as often high as wide.
        sizes, ratios: those that are fixed already.
    """
    boxes, image_sizes = boxes_in_training(boxes, image_sizes, config)
    limit = float(config.crop_size or image_sizes.max())
    tried = []
    for own_ratios in (ratios,) if ratios else (*_RATIOS, *(() if config.rotate90 else (_quantile_ratios(boxes),))):
        longest = float(np.sqrt(max(*own_ratios, *(1 / r for r in own_ratios))))  # longer side of an anchor of side 1
        for own_sizes in (sizes,) if sizes else _candidates(limit / longest):
            mean = training_iou(boxes, image_sizes, own_sizes, own_ratios)
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
