"""Paste of a detection's small mask into the image, and straight into COCO's run-length code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils


def _weights(start: float, stop: float, first: int, last: int, size: int) -> np.ndarray:
    """(last - first, size) matrix that samples a row of `size` cells over [start, stop) at pixel centers."""
    position = (np.arange(first, last) + 0.5 - start) / (stop - start) * size - 0.5
    return np.maximum(1.0 - np.abs(position[:, None] - np.arange(size)), 0.0).astype(np.float32)


def _resize_weights(cells: int, size: int) -> np.ndarray:
    """(size, cells) matrix that resizes a row of cells to `size` pixels, bilinear, going on with the ends' values."""
    position = np.clip((np.arange(size) + 0.5) * (cells / size) - 0.5, 0, cells - 1)
    return np.maximum(1.0 - np.abs(position[:, None] - np.arange(cells)), 0.0).astype(np.float32)


def _rounded_window(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> tuple[np.ndarray, int, int]:
    """`paste_window` with method="rounded_boxes"."""
    mask = np.pad(mask.astype(np.float32), 1)
    cells = mask.shape[0]
    box = box.astype(np.float32)
    center, half = (box[:2] + box[2:]) * np.float32(0.5), (box[2:] - box[:2]) * np.float32(0.5)
    half = half * np.float32(cells / (cells - 2))
    start, stop = (center - half).astype(np.int64), (center + half).astype(np.int64)
    size = np.maximum(stop - start + 1, 1)
    first, last = np.maximum(start, 0), np.minimum(stop + 1, (height, width))
    if (first >= last).any():
        return np.zeros((0, 0), bool), 0, 0
    (top, left), (bottom, right) = first, last
    rows = _resize_weights(cells, int(size[0]))[top - start[0] : bottom - start[0]]
    columns = _resize_weights(cells, int(size[1]))[left - start[1] : right - start[1]]
    return rows @ mask @ columns.T > 0.5, int(top), int(left)


def paste_window(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, method: str = "pixel_centers"
) -> tuple[np.ndarray, int, int]:
    """The part of the image that a mask can reach.

    Args:
        mask: (M, M) probabilities over the box.
        box: (4,) yxyx pixels, not rounded.
        height, width: of the image.
        method: "pixel_centers" samples the mask bilinearly at each pixel's center, 0 outside (Detectron2's
            paste_masks_in_image); "rounded_boxes" gives it a border of one empty cell, cuts the box that has grown with
            it to whole pixels and resizes (torchvision's paste_masks_in_image).

    Returns:
        A window (h, w) bool, set where the mask is at least one half (with rounded boxes, above it), and its top left
        corner (y, x).
    """
    y0, x0, y1, x1 = (float(v) for v in box)
    if not (y1 > y0 and x1 > x0 and np.isfinite((y0, x0, y1, x1)).all()):
        return np.zeros((0, 0), bool), 0, 0
    if method == "rounded_boxes":
        return _rounded_window(mask, np.asarray(box), height, width)
    top, bottom = max(int(np.floor(y0)), 0), min(int(np.ceil(y1)), height)
    left, right = max(int(np.floor(x0)), 0), min(int(np.ceil(x1)), width)
    if bottom <= top or right <= left:
        return np.zeros((0, 0), bool), 0, 0
    rows = _weights(y0, y1, top, bottom, mask.shape[0])
    columns = _weights(x0, x1, left, right, mask.shape[1])
    return rows @ mask.astype(np.float32) @ columns.T >= 0.5, top, left


def paste_mask(mask: np.ndarray, box: np.ndarray, height: int, width: int, method: str = "pixel_centers") -> np.ndarray:
    """The mask of one instance at full size, (height, width) bool; arguments as for `paste_window`."""
    window, top, left = paste_window(mask, box, height, width, method)
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


def rle_to_window(rle: Mapping[str, Any]) -> tuple[np.ndarray, int, int]:
    """The reverse of `window_to_rle`: the columns from the first to the last that hold a set pixel.

    Args:
        rle: COCO's compressed RLE.

    Returns:
        A window (h, w) bool of the image's height, and its top left corner (y, x); (0, 0) pixels of an empty mask. No
        array of the image's size is made.
    """
    height, counts = rle["size"][0], _run_lengths(rle["counts"])
    edges, filled = np.cumsum(counts), 2 * np.flatnonzero(counts[1::2]) + 1
    if not len(filled):
        return np.zeros((0, 0), bool), 0, 0
    left, right = int(edges[filled[0] - 1]) // height, -(-int(edges[filled[-1]]) // height)
    inside = np.diff(np.clip(edges, left * height, right * height), prepend=left * height)
    columns = np.repeat(np.arange(len(counts)) % 2 == 1, inside).reshape(right - left, height)
    return columns.T, 0, left


def _run_lengths(counts: str | bytes) -> np.ndarray:
    """(R,) int64 lengths of the runs of 0 and 1 in turn, from the text of COCO's compressed RLE.

    Five bits a character, low ones first, bit 5 set where a number goes on; from the fourth number on they are
    differences from the number two before.
    """
    codes = np.frombuffer(counts.encode() if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    last = np.flatnonzero(codes & 0x20 == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    shifts = 5 * (np.arange(len(codes)) - np.repeat(first, last - first + 1))
    lengths = np.add.reduceat((codes & 0x1F) << shifts, first)
    lengths -= np.where(codes[last] & 0x10, 1 << (shifts[last] + 5), 0)
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths


def paste_to_rle(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, method: str = "pixel_centers"
) -> dict[str, Any]:
    """`paste_mask` as COCO's compressed RLE, in memory of the box's size."""
    window, top, left = paste_window(mask, box, height, width, method)
    return window_to_rle(window, top, left, height, width)
