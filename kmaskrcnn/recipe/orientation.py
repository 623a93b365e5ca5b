"""Whether the objects of a set have an up and a left, by their outlines, boxes and places."""

from __future__ import annotations

import dataclasses

import numpy as np

from kmaskrcnn.recipe.facts import Facts

# Fewer objects tell nothing; of a class alone, fewer of its own.
_LEAST, _LEAST_OF_CLASS = 100, 20
# Two samples differ where their distribution functions are apart by this (Kolmogorov-Smirnov at 0.001), or at least by
# the second number, below which the difference is too small to matter.
_CRITICAL, _MATTERS = 1.95, 0.25
# Smaller offsets are the roundings of an outline: of a lean and a place in sides of the box and the image, of an aspect
# as a logarithm.
_LEAST_LEAN, _LEAST_PLACE, _LEAST_ASPECT = 0.01, 0.01, 0.05
# A shape that nearly always leans to the same side is another one in the mirror.
_ONE_SIDED = 0.6


@dataclasses.dataclass(frozen=True)
class Orientation:
    """What may be mirrored and turned, each with the fact that says so."""

    one_sided: bool
    upside_down_free: bool
    turn_free: bool
    left_right: str
    up_down: str
    turns: str


def find_orientation(facts: Facts) -> Orientation:
    """Compare the annotations with their own mirror images and quarter turns, all together and class by class.

    Where the orientation is free, outlines lean up as often as down, boxes are as often high as wide, objects lie as
    often in the upper half as in the lower, and those below are no larger (as those nearer to a camera would be).
    """
    count = len(facts.outlined)
    if count < _LEAST:
        few = f"{count} objects are too few to tell whether they have a top and a bottom"
        return Orientation(False, False, False, "a mirrored object is still an object", few, few)
    boxes = facts.boxes[facts.outlined]
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-9)
    places = (boxes[:, :2] + boxes[:, 2:]) / 2 / facts.image_sizes[facts.box_images[facts.outlined]] - 0.5
    sizes, aspects = np.log(sides.prod(axis=1)), np.log(sides[:, 0] / sides[:, 1])
    classes = facts.classes[facts.outlined]
    groups = []
    for number, name in enumerate(facts.class_names):
        members = classes == number
        if len(facts.class_names) > 1 and members.sum() >= _LEAST_OF_CLASS:
            groups.append((name, members))
    groups.append(("objects", np.ones(count, bool)))
    up_down = turns = left_right = ""
    for name, members in groups:
        lean, place = facts.lean[members], places[members]
        if not up_down and _differs(lean[:, 0], _LEAST_LEAN):
            up_down = f"the outlines of {name} differ from their upside-down mirror image"
        if not up_down and _differs(place[:, 0], _LEAST_PLACE):
            up_down = f"objects of {name} lie mostly in the upper or the lower half of the images"
        if not up_down and _correlated(sizes[members], place[:, 0]):
            up_down = f"objects of {name} are larger toward one edge, as things near the camera are"
        if not turns and _differs(aspects[members], _LEAST_ASPECT):
            turns = f"the boxes of {name} are {'tall' if np.median(aspects[members]) > 0 else 'wide'}"
        if not left_right and mirror_distance(_rounded(lean[:, 1], _LEAST_LEAN)) > _ONE_SIDED:
            left_right = f"the outlines of {name} differ from their mirror image"
    free = f"{count} outlines and boxes look the same"
    return Orientation(
        bool(left_right),
        not up_down,
        not up_down and not turns,
        left_right or "a mirrored object is still an object",
        up_down or f"{free} upside down",
        turns or up_down or f"{free} rotated by 90 degrees",
    )


def mirror_distance(values: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of a sample from its negative, 0 for a symmetrical one to 1."""
    own, mirrored = np.sort(values), np.sort(-values)
    at = np.concatenate([own, mirrored])
    below = [np.searchsorted(sample, at, "right") / len(sample) for sample in (own, mirrored)]
    return float(np.abs(below[0] - below[1]).max())


def _rounded(values: np.ndarray, least: float) -> np.ndarray:
    return np.where(np.abs(values) < least, 0.0, values)


def _differs(values: np.ndarray, least: float) -> bool:
    return mirror_distance(_rounded(values, least)) > max(_MATTERS, _CRITICAL * np.sqrt(2 / len(values)))


def _correlated(first: np.ndarray, second: np.ndarray) -> bool:
    if first.std() < 1e-6 or second.std() < 1e-6:
        return False
    return abs(float(np.corrcoef(first, second)[0, 1])) > max(0.3, 4 / np.sqrt(len(first)))
