"""Checks of single numbers, names and boxes, and the error that names what is wrong with a data set."""

from __future__ import annotations

import math
import reprlib
from typing import Any, TypeGuard

from kmaskrcnn.data.sizes import MAX_PIXELS
from kmaskrcnn.errors import Flaw

# Ids are kept in 64 bits.
_MOST_ID = 2**63


_brief = reprlib.Repr()
_brief.maxlevel, _brief.maxlist, _brief.maxdict, _brief.maxstring = 3, 8, 4, 60


def brief(value: Any) -> str:
    """A JSON value for a message, cut where it is long or deep."""
    return _brief.repr(value)


def is_integer(value: Any) -> bool:
    """Whether a JSON value is an integer; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is an integer of 64 bits."""
    return is_integer(value) and -_MOST_ID <= value < _MOST_ID


def plain_integer(value: Any) -> Any:
    """17.0 and "17" as 17, anything else as it is."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and len(value) < 20 and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    return value


def finite(value: Any) -> float:
    """A number, or the text of one, as a finite float; raises ValueError."""
    if type(value) is float and math.isfinite(value):  # nearly all
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{brief(value)} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{brief(value)} is not finite")
    return number


def parse_box(bbox: Any) -> tuple[float, float, float, float]:
    """COCO x, y, width, height as floats; raises Flaw."""
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(isinstance(v, int | float) for v in bbox):
        raise Flaw("bad-box", f"bbox {brief(bbox)} is not four numbers x, y, width, height")
    try:
        x, y, w, h = map(finite, bbox)
    except ValueError:
        raise Flaw("bad-box", f"bbox {brief(bbox)} is not finite") from None
    return x, y, w, h


def size_flaw(height: Any, width: Any) -> str:
    """What is wrong with the height and width that a record states; empty if nothing."""
    if not is_integer(height) or not is_integer(width) or min(height, width) < 1:
        return f"height {brief(height)} and width {brief(width)} are not positive integers"
    if height * width > MAX_PIXELS:
        return f"{brief(width)} x {brief(height)} are more than the {MAX_PIXELS} pixels that an image may have"
    return ""
