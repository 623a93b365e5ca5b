"""Checks of single COCO records, and the collection of what was found wrong with them."""

from __future__ import annotations

import collections
import math
import numbers
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.errors import DataError

# More lines than this help nobody; the total is stated besides.
MAX_LINES = 20


class Problems:
    """Bad records: counted by reason, kept as lines of text, raised or skipped as the caller asked.

    Args:
        source: the annotation file, named in the message.
        skip: leave bad records out instead of raising.
    """

    def __init__(self, source: str, skip: bool):
        self.source, self.skip = source, skip
        self.counts: collections.Counter[str] = collections.Counter()
        self.lines: list[str] = []

    def add(self, reason: str, record: str, detail: str) -> None:
        """Note that `record` is bad for `reason`; `detail` says what was found."""
        self.counts[reason] += 1
        if len(self.lines) < MAX_LINES:
            self.lines.append(f"{self.source}: {record}: {detail}")

    def finish(self) -> None:
        """Raise DataError on what was found, unless bad records are skipped."""
        if self.counts and not self.skip:
            more = self.counts.total() - len(self.lines)
            tail = [f"... and {more} more"] if more else []
            hint = f"{self.counts.total()} bad records; on_bad_record=skip leaves them out"
            raise DataError("\n".join([*self.lines, *tail, hint]))


def is_integer(value: Any) -> bool:
    """Whether a JSON value is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def parse_box(bbox: Any, height: int, width: int) -> tuple[float, float, float, float]:
    """COCO xywh to yxyx clipped to the image; raises ValueError saying what is wrong with it."""
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(isinstance(v, numbers.Real) for v in bbox):
        raise ValueError(f"bbox {bbox!r} is not four numbers x, y, width, height")
    x, y, w, h = map(float, bbox)
    if not all(map(math.isfinite, (x, y, w, h))):
        raise ValueError(f"bbox {bbox} is not finite")
    if w <= 0 or h <= 0:
        raise ValueError(f"bbox {bbox} has no area")
    y0, x0, y1, x1 = max(y, 0.0), max(x, 0.0), min(y + h, float(height)), min(x + w, float(width))
    if y1 <= y0 or x1 <= x0:
        raise ValueError(f"bbox {bbox} lies outside the image of {width} x {height}")
    return y0, x0, y1, x1


def rle_counts(text: str | bytes) -> np.ndarray:
    """Run lengths of a compressed COCO RLE (groups of 5 bits, differences from the run two before).

    Returns: (R,) int64. Raises ValueError on characters or groups that are not of this code.
    """
    data = text.encode("ascii", "replace") if isinstance(text, str) else text
    code = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not code.size or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise ValueError("RLE text is malformed")
    ends = np.flatnonzero(code & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 12:
        raise ValueError("RLE text is malformed")
    shift = 5 * (np.arange(code.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((code & 31) << shift, starts)
    values -= np.where(code[ends] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _parse_rle(segmentation: dict, height: int, width: int) -> dict[str, Any]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ValueError(f"RLE size {size!r} differs from the image's [height, width] = {[height, width]}")
    if isinstance(counts, str | bytes):
        runs = rle_counts(counts)
        rle = {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
    elif isinstance(counts, list) and all(map(is_integer, counts)):
        runs = np.asarray(counts, np.int64)
        rle = None
    else:
        raise ValueError("RLE counts are neither text nor a list of integers")
    if runs.size == 0 or runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(f"RLE runs do not add up to the image's {height} x {width} pixels")
    if runs[1::2].sum() == 0:
        raise ValueError("segmentation has no area")
    return rle or mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _parse_polygons(segmentation: list) -> list[np.ndarray]:
    if not segmentation:
        raise ValueError("segmentation is empty")
    polygons, area = [], 0.0
    for polygon in segmentation:
        if not isinstance(polygon, list):
            raise ValueError("segmentation is not a list of polygons [x0, y0, x1, y1, ...]")
        if len(polygon) % 2:
            raise ValueError(f"polygon has an odd number of coordinates ({len(polygon)})")
        if len(polygon) < 6:
            raise ValueError(f"polygon has {len(polygon) // 2} points, needs at least 3")
        try:
            points = np.array(polygon, np.float64)
        except (TypeError, ValueError):
            raise ValueError("polygon coordinates are not numbers") from None
        if points.ndim != 1 or not np.isfinite(points).all():
            raise ValueError("polygon coordinates are not finite numbers")
        x, y = points[0::2], points[1::2]
        area += abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))
        polygons.append(points)
    if area == 0:
        raise ValueError("segmentation has no area")
    return polygons


def parse_segmentation(segmentation: Any, height: int, width: int) -> list[np.ndarray] | dict[str, Any]:
    """Polygons as arrays of x0, y0, x1, y1, ... or a compressed RLE; raises ValueError saying what is wrong."""
    if isinstance(segmentation, dict):
        return _parse_rle(segmentation, height, width)
    if isinstance(segmentation, list):
        return _parse_polygons(segmentation)
    raise ValueError("segmentation is missing" if segmentation is None else "segmentation is no polygon list or RLE")
