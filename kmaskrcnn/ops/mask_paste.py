"""Paste of a detection's small mask into the image, and straight into COCO's run-length code."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_utils


def _weights(start: float, stop: float, first: int, last: int, size: int) -> np.ndarray:
    """(last - first, size) matrix that samples a row of `size` cells over [start, stop) at pixel centres."""
    position = (np.arange(first, last) + 0.5 - start) / (stop - start) * size - 0.5
    return np.maximum(1.0 - np.abs(position[:, None] - np.arange(size)), 0.0).astype(np.float32)


def paste_window(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """The part of the image that a mask can reach.

    Args:
        mask: (M, M) probabilities over the box.
        box: (4,) yxyx pixels, not rounded.
        height, width: of the image.

    Returns:
        A window (h, w) bool and its top left corner (y, x). A pixel is set where the mask, sampled bilinearly at the
        pixel's centre and 0 outside, is at least one half (Detectron2's paste_masks_in_image).
    """
    y0, x0, y1, x1 = (float(v) for v in box)
    if not (y1 > y0 and x1 > x0 and np.isfinite((y0, x0, y1, x1)).all()):
        return np.zeros((0, 0), bool), 0, 0
    top, bottom = max(int(np.floor(y0)), 0), min(int(np.ceil(y1)), height)
    left, right = max(int(np.floor(x0)), 0), min(int(np.ceil(x1)), width)
    if bottom <= top or right <= left:
        return np.zeros((0, 0), bool), 0, 0
    rows = _weights(y0, y1, top, bottom, mask.shape[0])
    columns = _weights(x0, x1, left, right, mask.shape[1])
    return rows @ mask.astype(np.float32) @ columns.T >= 0.5, top, left


def paste_mask(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask of one instance at full size, (height, width) bool; arguments as of `paste_window`."""
    window, top, left = paste_window(mask, box, height, width)
    image = np.zeros((height, width), bool)
    image[top : top + window.shape[0], left : left + window.shape[1]] = window
    return image


def window_to_rle(window: np.ndarray, top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """COCO's compressed RLE of an image that is empty but for a window; no array of the image's size is made.

    Args:
        window: (h, w) bool.
        top, left: where it lies in the image.
        height, width: of the image.

    Returns:
        {"size": [height, width], "counts": bytes}, as pycocotools makes them.
    """
    counts = [height * width]
    if window.any():
        h, w = window.shape
        # Column by column, each with one empty row above and below so that every run ends inside it.
        columns = np.zeros((w, h + 2), np.int8)
        columns[:, 1:-1] = window.T
        column, row = np.nonzero(np.diff(columns, axis=1))
        edges = (left + column) * height + top + row  # positions in the column-major image where the value changes
        # A run that ends at the bottom of a column and goes on at the top of the next is one run.
        same = np.flatnonzero(edges[1:] == edges[:-1])
        edges = np.delete(edges, np.concatenate([same, same + 1]))
        counts = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
        if counts[-1] == 0:
            counts.pop()
    return mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def paste_to_rle(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """`paste_mask` as COCO's compressed RLE, in memory of the box's size."""
    window, top, left = paste_window(mask, box, height, width)
    return window_to_rle(window, top, left, height, width)
