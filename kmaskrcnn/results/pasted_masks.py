"""Masks at the size of an image, held in memory of the size of their objects."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from .mask_paste import window_to_rle

# A part of an image: (h, w) bool, and the y and x of its top left pixel.
Window = tuple[np.ndarray, int, int]


def trim_window(window: Window) -> Window:
    """The smallest window that holds the same mask; (0, 0) pixels of an empty one."""
    mask, top, left = window
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros((0, 0), bool), top, left
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return mask, top + int(rows[0]), left + int(columns[0])


def union_window(windows: Iterable[Window]) -> Window:
    """The pixels that are set in any of some windows."""
    windows = [window for window in windows if window[0].size]
    if not windows:
        return np.zeros((0, 0), bool), 0, 0
    top, left = min(w[1] for w in windows), min(w[2] for w in windows)
    bottom, right = max(w[1] + w[0].shape[0] for w in windows), max(w[2] + w[0].shape[1] for w in windows)
    union = np.zeros((bottom - top, right - left), bool)
    for mask, y, x in windows:
        union[y - top : y - top + mask.shape[0], x - left : x - left + mask.shape[1]] |= mask
    return union, top, left


def cut_window(window: Window, top: int, left: int, bottom: int, right: int) -> np.ndarray:
    """(bottom - top, right - left) bool, a window seen through that rectangle of the image."""
    mask, y, x = window
    view = np.zeros((bottom - top, right - left), bool)
    y0, x0 = max(top, y), max(left, x)
    y1, x1 = min(bottom, y + mask.shape[0]), min(right, x + mask.shape[1])
    if y1 > y0 and x1 > x0:
        view[y0 - top : y1 - top, x0 - left : x1 - left] = mask[y0 - y : y1 - y, x0 - x : x1 - x]
    return view


class PastedMasks:
    """N masks of one image, each the run-length code of its own rectangle: no array of the image's size is made.

    Args:
        windows: the masks; empty borders are cut off.
    """

    def __init__(self, windows: Iterable[Window] = ()):
        self._rles: list[dict[str, Any]] = []
        corners: list[tuple[int, int]] = []
        for window in windows:
            mask, top, left = trim_window(window)
            self._rles.append(mask_utils.encode(np.asfortranarray(mask, np.uint8)) if mask.size else {})
            corners.append((top, left))
        self.corners = np.array(corners, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._rles)

    def __getitem__(self, rows: np.ndarray) -> PastedMasks:
        """Those at an array of indices, or where an array of bool is set."""
        chosen = np.arange(len(self))[rows]
        part = PastedMasks()
        part._rles, part.corners = [self._rles[i] for i in chosen], self.corners[chosen]
        return part

    def window(self, index: int) -> Window:
        """One mask and where it lies."""
        rle, (top, left) = self._rles[index], self.corners[index]
        mask = mask_utils.decode(rle).astype(bool) if rle else np.zeros((0, 0), bool)
        return mask, int(top), int(left)

    def rle(self, index: int, height: int, width: int) -> dict[str, Any]:
        """COCO's compressed RLE of one mask in an image of this size."""
        return window_to_rle(*self.window(index), height, width)
