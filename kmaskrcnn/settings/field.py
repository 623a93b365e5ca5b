"""What a setting is: a dataclass field with its help and the values that it accepts."""

from __future__ import annotations

import dataclasses
from typing import Any


def setting(
    default: Any,
    help: str,
    choices: tuple | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    lengths: tuple[int, ...] = (),
) -> Any:
    """A field with what it accepts: one of choices, or a number (each number of a tuple) within the bounds.

    low and high are accepted themselves, above and below are not; lengths are how many numbers a tuple may have.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "lengths": lengths, **bounds})


POSITIVE: dict[str, Any] = {"above": 0}
SHARE: dict[str, Any] = {"low": 0, "high": 1}
