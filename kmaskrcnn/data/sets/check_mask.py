"""The one look at a segmentation that loader and doctor share: what is wrong with it, and what of it can be used."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.data.sets.check_record import brief, finite, is_integer
from kmaskrcnn.errors import Flaw

Note = Callable[[str, str], None]  # (code of a defect, what was found)

# Points may lie this far outside: annotation tools round.
_BORDER = 1.0
# pycocotools takes about 100 bytes a pixel of an outline's length, five steps for each.
_MOST_LENGTH = 2_000_000
_MOST_COORDINATE = 2.0**40
# An outline is drawn again at up to so many cells over its frame; one that is longer than this many times its frame
# would take too much memory then and is kept as the mask that it draws.
_CELLS = 1024
# Crossings of a polygon with more corners than this are not looked for; all pairs of edges are compared.
_MOST_CORNERS = 4000
# The stated area may differ by this many pixels and this share: an outline's area is not that of its pixels.
_AREA_PIXELS, _AREA_SHARE = 30.0, 0.25
_TINY_PIXELS = 4


class CheckedMask:
    """A segmentation that can be used.

    Attributes:
        segmentation: polygons as float64 arrays x0, y0, x1, y1, ..., or a compressed RLE with its counts as bytes.
        bounds: x0, y0, x1, y1 of it inside the image.
        outline_area: of the polygons by their corners; None of an RLE.
    """

    def __init__(self, segmentation: list[np.ndarray] | dict[str, Any], height: int, width: int):
        self.segmentation, self._size = segmentation, (height, width)
        self.outline_area: float | None = None
        self.bounds: tuple[float, float, float, float]
        if isinstance(segmentation, dict):
            x, y, w, h = (float(v) for v in mask_utils.toBbox(segmentation))
            self.bounds = x, y, x + w, y + h
        else:
            (x0, y0), (x1, y1) = _extent(segmentation)
            self.bounds = max(float(x0), 0.0), max(float(y0), 0.0), min(float(x1), width), min(float(y1), height)
            self.outline_area = sum(map(_area, segmentation))

    @functools.cached_property
    def rle(self) -> dict[str, Any]:
        """The compressed RLE that the segmentation draws, its counts as bytes."""
        return self.segmentation if isinstance(self.segmentation, dict) else draw(self.segmentation, *self._size)

    @functools.cached_property
    def pixels(self) -> int:
        """Number of pixels that it draws."""
        return int(mask_utils.area(self.rle))

    def as_json(self) -> Any:
        """Polygons, or an RLE with its counts as text."""
        return rle_as_json(self.rle) if isinstance(self.segmentation, dict) else [p.tolist() for p in self.segmentation]


def rle_as_json(rle: dict[str, Any]) -> dict[str, Any]:
    """A compressed RLE with its counts as text."""
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def draw(polygons: list[np.ndarray], height: int, width: int) -> dict[str, Any]:
    """The compressed RLE of the union of polygons; raises Flaw where an outline is too long to be drawn."""
    for polygon in polygons:
        _check_length(polygon)
    return mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))


def check_mask(segmentation: Any, height: int, width: int, note: Note, thorough: bool = False) -> CheckedMask | None:
    """Look at a segmentation of an image of this size; defects go to `note`.

    Args:
        segmentation: as a COCO file has it: polygons, or an RLE.
        height, width: of the image, in pixels.
        note: called with the code and the detail of each defect.
        thorough: look for crossings of outlines and draw every mask too, which takes time.

    Returns:
        What of it can be used; None where nothing can.
    """
    try:
        if isinstance(segmentation, dict):
            return CheckedMask(_parse_rle(segmentation, height, width), height, width)
        if not isinstance(segmentation, list):
            what = "missing" if segmentation is None else f"no polygon list or RLE: {brief(segmentation)}"
            raise Flaw("no-segmentation", f"segmentation is {what}")
        if not segmentation:
            raise Flaw("no-segmentation", "segmentation is empty")
        polygons = _usable(segmentation, height, width, note)
        return _checked_polygons(polygons, height, width, note, thorough) if polygons else None
    except Flaw as flaw:
        note(flaw.code, str(flaw))
        return None


def check_area(area: Any, mask: CheckedMask, note: Note, thorough: bool = False) -> float:
    """The area to use: the stated one where it fits the mask, else the mask's pixels."""
    try:
        stated = finite(area) if area is not None and not isinstance(area, str) else None
    except ValueError:
        stated = math.nan
    outline = mask.outline_area
    if (
        stated is not None
        and outline is not None
        and not thorough
        and abs(stated - outline) <= _AREA_SHARE / 2 * outline
    ):
        return stated  # near the area of the corners, so near that of the pixels: nothing to be drawn
    pixels = float(mask.pixels)
    if pixels < _TINY_PIXELS:
        note("tiny-mask", f"{pixels:g} pixels")
    if stated is None:
        return pixels
    if stated <= 0 or not abs(stated - pixels) <= max(_AREA_PIXELS, _AREA_SHARE * pixels):
        note("area-differs", f"area is {brief(area)}, the mask has {pixels:g} pixels")
        return pixels
    return stated


def _usable(segmentation: list, height: int, width: int, note: Note) -> list[np.ndarray]:
    """The polygons of a list that can be drawn and lie in the image, at least in part."""
    polygons: list[np.ndarray] = []
    flat: list[Flaw] = []
    for polygon in segmentation:
        try:
            points = _parse_polygon(polygon)
        except Flaw as flaw:
            if flaw.code == "flat-polygon":
                flat.append(flaw)
            else:
                note(flaw.code, str(flaw))
            continue
        polygons.append(points)
    for needless in flat:
        note("needless-polygon" if polygons else needless.code, str(needless))
    inside = [p for p in polygons if _overlaps(p, height, width)]
    if polygons and not inside:
        raise Flaw("mask-outside", f"the mask lies outside the image: {_where(polygons, height, width)}")
    if len(inside) < len(polygons):
        note("polygon-over-border", f"{len(polygons) - len(inside)} of {len(polygons)} polygons lie outside the image")
    return inside


def _checked_polygons(polygons: list[np.ndarray], height: int, width: int, note: Note, thorough: bool) -> CheckedMask:
    (x0, y0), (x1, y1) = _extent(polygons)
    length = max(map(_check_length, polygons))
    mask = CheckedMask(polygons, height, width)
    redraw = False
    if min(x0, y0) < -_BORDER or x1 > width + _BORDER or y1 > height + _BORDER:
        note("polygon-over-border", f"{_where(polygons, height, width)}")
        redraw = True
    elif thorough:
        crossings = (find_crossing(polygon.reshape(-1, 2)) for polygon in polygons)
        if (crossing := next((c for c in crossings if c is not None), None)) is not None:
            note("crossing-polygon", f"near x {crossing[0]:.0f}, y {crossing[1]:.0f}")
            redraw = True
    sides = max(x1 - x0, y1 - y0), min(x1 - x0, y1 - y0)
    # An outline whose area is that of a strip of one pixel along it draws pixels for certain.
    certain = not redraw and mask.outline_area >= max(16.0, 2 * sides[0])
    if not certain and not mask.pixels:
        points = sum(map(len, polygons)) // 2
        raise Flaw("empty-mask", f"the polygon of {points} points covers no pixel")
    if redraw or length * _CELLS > _MOST_LENGTH * max(sides[1], 1e-3):
        return CheckedMask(mask.rle, height, width)
    return mask


def _extent(polygons: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    points = (polygons[0] if len(polygons) == 1 else np.concatenate(polygons)).reshape(-1, 2)
    return points.min(axis=0), points.max(axis=0)


def _overlaps(polygon: np.ndarray, height: int, width: int) -> bool:
    (x0, y0), (x1, y1) = _extent([polygon])
    return x1 > 0 and y1 > 0 and x0 < width and y0 < height


def _where(polygons: list[np.ndarray], height: int, width: int) -> str:
    (x0, y0), (x1, y1) = _extent(polygons)
    return f"x {x0:g}..{x1:g}, y {y0:g}..{y1:g} in an image of {width} x {height}"


def _check_length(polygon: np.ndarray) -> float:
    """The length of an outline as pycocotools steps along it, in pixels; raises Flaw where it cannot be drawn."""
    points = polygon.reshape(-1, 2)
    length = float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())
    if not length <= _MOST_LENGTH:
        raise Flaw("long-polygon", f"an outline of {length:.3g} pixels; {_MOST_LENGTH} are the most that is drawn")
    return length


def _area(polygon: np.ndarray) -> float:
    """Of a polygon by its corners, about its first so that large coordinates lose nothing."""
    x, y = polygon[0::2] - polygon[0], polygon[1::2] - polygon[1]
    return 0.5 * abs(float(np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:])))


def _parse_polygon(polygon: Any) -> np.ndarray:
    if not isinstance(polygon, list | tuple):
        raise Flaw("bad-polygon", "segmentation is not a list of polygons [x0, y0, x1, y1, ...]")
    try:
        points = np.array(polygon, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise Flaw("bad-polygon", f"polygon coordinates are not numbers: {brief(polygon)}") from None
    if points.ndim != 1 or not np.isfinite(points).all():
        raise Flaw("bad-polygon", f"polygon coordinates are not finite numbers: {brief(polygon)}")
    if np.abs(points).max(initial=0) > _MOST_COORDINATE:
        raise Flaw("bad-polygon", f"polygon coordinates lie beyond any image: {brief(polygon)}")
    if len(points) % 2:
        raise Flaw("odd-polygon", f"polygon has an odd number of coordinates ({len(points)})")
    if len(points) < 6:
        raise Flaw("short-polygon", f"polygon has {len(points) // 2} points, needs at least 3")
    scale = float(np.abs(points - np.tile(points[:2], len(points) // 2)).max())
    if _area(points) <= 1e-9 * scale * scale and find_crossing(points.reshape(-1, 2)) is None:
        raise Flaw("flat-polygon", f"the polygon of {len(points) // 2} points on a line has no area")
    return points


def rle_counts(text: str | bytes) -> np.ndarray:
    """Run lengths of a compressed COCO RLE (groups of 5 bits, differences from the run two before).

    Returns: (R,) int64. Raises ValueError on characters or groups that are not of this code, and on numbers past 2^40.
    """
    data = text.encode("ascii", "replace") if isinstance(text, str) else text
    code = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    if not code.size or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise ValueError("RLE text is malformed")
    ends = np.flatnonzero(code & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 8:
        raise ValueError("RLE text is malformed: a run beyond any image")
    shift = 5 * (np.arange(code.size) - np.repeat(starts, lengths))
    values = np.add.reduceat((code & 31) << shift, starts)
    values -= np.where(code[ends] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _parse_rle(segmentation: dict, height: int, width: int) -> dict[str, Any]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        detail = f"RLE size {brief(size)} differs from the image's [height, width] = {[height, width]}"
        raise Flaw("rle-size-differs", detail)
    if isinstance(counts, str | bytes):
        try:
            runs = rle_counts(counts)
        except ValueError as error:
            raise Flaw("bad-rle", str(error)) from None
    elif isinstance(counts, list) and all(map(is_integer, counts)):
        sound = all(0 <= run <= height * width for run in counts)
        runs = np.array(counts if sound else [-1], np.int64)
    else:
        raise Flaw("bad-rle", "RLE counts are neither text nor a list of integers")
    # Each alone first: sums of larger ones would run over.
    if runs.size == 0 or runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
        raise Flaw("bad-rle", f"RLE runs do not add up to the image's {height} x {width} pixels")
    if runs[1::2].sum() == 0:
        raise Flaw("empty-mask", "segmentation has no area")
    if isinstance(counts, list):
        return mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}


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
