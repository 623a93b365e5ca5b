"""Outlines of round shapes as polygons."""

from __future__ import annotations

import math

_CORNERS = 64


def circle(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0.0) -> list[float]:
    """A polygon [x0, y0, x1, y1, ...] of the area of an ellipse about (x, y) whose first axis is turned by `angle`.

    Radii in pixels; the angle in radians, from the x axis towards the y axis (clockwise as pictures are seen).
    """
    # A polygon with its corners on the ellipse would be smaller by 0.16 %.
    grow = math.sqrt(2 * math.pi / _CORNERS / math.sin(2 * math.pi / _CORNERS))
    points = []
    for i in range(_CORNERS):
        turn = 2 * math.pi * i / _CORNERS
        dx, dy = grow * radius_x * math.cos(turn), grow * radius_y * math.sin(turn)
        points += [x + dx * math.cos(angle) - dy * math.sin(angle), y + dx * math.sin(angle) + dy * math.cos(angle)]
    return points
