"""The doctor's look at one segmentation: what is wrong with it, and what of it can be used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.data.sets.check_record import parse_segmentation

Note = Callable[[str, str], None]  # (code, detail)

# Points may lie this far outside: annotation tools round.
_BORDER = 1.0
# Crossings of a polygon with more corners than this are not looked for; all pairs of edges are compared.
_MOST_CORNERS = 4000
_RLE_CODES = (("RLE size", "rle-size-differs"), ("no area", "empty-mask"))


def examine_mask(segmentation: Any, height: int, width: int, note: Note) -> tuple[Any, dict[str, Any]] | None:
    """Look at a segmentation of an image of this size; defects go to `note`.

    Returns:
        The segmentation to keep, polygons or RLE as JSON, and the RLE (compressed, bytes) that it draws; None where
        nothing can be used.
    """
    if isinstance(segmentation, dict):
        try:
            rle = parse_segmentation(segmentation, height, width)
        except ValueError as error:
            code = next((code for words, code in _RLE_CODES if words in str(error)), "bad-rle")
            note(code, str(error))
            return None
        return as_json(rle), rle
    if not isinstance(segmentation, list) or not segmentation:
        note("no-segmentation", f"segmentation is {segmentation!r}"[:80])
        return None
    polygons = [p for p in (_polygon(polygon, note) for polygon in segmentation) if p is not None]
    if not polygons:
        return None
    rle = mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))
    points = np.concatenate(polygons).reshape(-1, 2)
    (x0, y0), (x1, y1) = points.min(axis=0), points.max(axis=0)
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        note("mask-outside", f"x {x0:g}..{x1:g}, y {y0:g}..{y1:g} in an image of {width} x {height}")
        return None
    redraw = False
    if min(x0, y0) < -_BORDER or x1 > width + _BORDER or y1 > height + _BORDER:
        note("polygon-over-border", f"x {x0:g}..{x1:g}, y {y0:g}..{y1:g} in an image of {width} x {height}")
        redraw = True
    for polygon in polygons:
        if (crossing := find_crossing(polygon.reshape(-1, 2))) is not None:
            note("crossing-polygon", f"near x {crossing[0]:.0f}, y {crossing[1]:.0f}")
            redraw = True
            break
    if not mask_utils.area(rle):
        note("empty-mask", f"the polygon of {len(points)} points covers no pixel")
        return None
    return (as_json(rle) if redraw else [p.tolist() for p in polygons]), rle


def as_json(rle: dict[str, Any]) -> dict[str, Any]:
    """A compressed RLE with its counts as text."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def _polygon(polygon: Any, note: Note) -> np.ndarray | None:
    """One polygon as floats, or None after a note."""
    try:
        points = np.asarray(polygon, np.float64)
    except (TypeError, ValueError):
        note("bad-polygon", f"{polygon!r}"[:80])
        return None
    if points.ndim != 1 or not np.isfinite(points).all():
        note("bad-polygon", f"{polygon!r}"[:80])
        return None
    if len(points) % 2:
        note("odd-polygon", f"{len(points)} numbers")
        return None
    if len(points) < 6:
        note("short-polygon", f"{len(points) // 2} points")
        return None
    x, y = points[0::2], points[1::2]
    if (
        math.isclose(np.dot(x, np.roll(y, -1)), np.dot(y, np.roll(x, -1)))
        and find_crossing(points.reshape(-1, 2)) is None
    ):
        note("flat-polygon", f"{len(x)} points on a line")
        return None
    return points


def find_crossing(points: np.ndarray) -> np.ndarray | None:
    """Where a closed polygon (n, 2) first crosses itself, (2,), or None; touching is no crossing."""
    n = len(points)
    if n < 4 or n > _MOST_CORNERS:
        return None
    a, b = points, np.roll(points, -1, axis=0)
    d = b - a

    def side(of: np.ndarray) -> np.ndarray:
        """(n, n) on which side of edge i lies point j."""
        return d[:, None, 0] * (of[None, :, 1] - a[:, None, 1]) - d[:, None, 1] * (of[None, :, 0] - a[:, None, 0])

    apart = side(a) * side(b) < 0  # edge j's ends on both sides of edge i
    crosses = np.triu(apart & apart.T, 1)
    if not crosses.any():
        return None
    i, j = np.argwhere(crosses)[0]
    e = d[j]
    share = ((a[j, 0] - a[i, 0]) * e[1] - (a[j, 1] - a[i, 1]) * e[0]) / (d[i, 0] * e[1] - d[i, 1] * e[0])
    return a[i] + share * d[i]
