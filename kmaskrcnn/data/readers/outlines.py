"""Outlines of simple shapes as polygons, and several shapes as one object."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.data.sets.check_mask import draw, rle_as_json

Part = list[list[float]] | dict[str, Any]  # polygons, or a compressed RLE
_CORNERS = 64


def union(parts: list[Part], height: int, width: int) -> Part:
    """Shapes of one object as one segmentation: polygons, or an RLE where one of them is a mask.

    Raises Flaw where an outline is too long to be drawn.
    """
    polygons = [polygon for part in parts if isinstance(part, list) for polygon in part]
    masks = [{**part, "counts": part["counts"].encode()} for part in parts if isinstance(part, dict)]
    if not masks:
        return polygons
    areas = [np.asarray(polygon) for polygon in polygons if len(polygon) > 4]
    drawn = [draw(areas, height, width)] if areas else []
    return rle_as_json(mask_utils.merge(masks + drawn))


def turned_rectangle(x: float, y: float, width: float, height: float, angle: float) -> list[float]:
    """A polygon of a rectangle about (x, y), turned by an angle in radians as for `circle`."""
    points = []
    for dx, dy in ((-width, -height), (width, -height), (width, height), (-width, height)):
        points += [x + (dx * math.cos(angle) - dy * math.sin(angle)) / 2]
        points += [y + (dx * math.sin(angle) + dy * math.cos(angle)) / 2]
    return points


def circle(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0.0) -> list[float]:
    """A polygon [x0, y0, x1, y1, ...] of the area of an ellipse about (x, y) whose first axis is turned by `angle`.

    Radii in pixels; the angle in radians, from the x axis towards the y axis (clockwise as images are seen).
    """
    # A polygon with its corners on the ellipse would be smaller by 0.16 %.
    grow = math.sqrt(2 * math.pi / _CORNERS / math.sin(2 * math.pi / _CORNERS))
    points = []
    for i in range(_CORNERS):
        turn = 2 * math.pi * i / _CORNERS
        dx, dy = grow * radius_x * math.cos(turn), grow * radius_y * math.sin(turn)
        points += [x + dx * math.cos(angle) - dy * math.sin(angle), y + dx * math.sin(angle) + dy * math.cos(angle)]
    return points
