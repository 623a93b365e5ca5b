"""How images are resized, cropped and augmented."""

from __future__ import annotations

import numpy as np

from kmaskrcnn.config import ConfigError
from kmaskrcnn.recipe.given import Choice, Given, round_up, scale_of
from kmaskrcnn.recipe.orientation import find_orientation

# Sides in pixels. P2 has a cell every 4 pixels: an object needs two of them along each side to be told from its
# surroundings, and half of the objects should have the 8 that a mask of 14 x 14 cells is worth its cost for.
_LEAST_SIDE, _WANTED_SIDE = 8.0, 32.0
# Short side of an image: what two cores process in about a second, and what the published recipes take on GPUs.
_CPU_SHORT_SIDE, _GPU_SHORT_SIDE = 480, 800
_MOST_ENLARGED = 2.0
_SMALLEST_PERCENTILE = 5
# An image with more pixels than this is predicted in tiles of this side.
_TILE = 1536


def input_scale(given: Given) -> list[Choice]:
    """Size of the network's input: as large as the small objects need, no larger than the machine likes."""
    facts, train_sizes = given.facts, given.config.data.min_size_train
    if "resize_mode" in given.fixed:
        return []
    if "native_scale" in given.fixed:
        if others := {"min_size", "min_size_train", "max_size"} & given.fixed:
            raise ConfigError(f"native_scale and {min(others)} exclude each other: leave one out")
        return [Choice("resize_mode", "native", "native_scale is given, which the other mode does not read")]
    if {"min_size", "max_size"} & given.fixed or not len(facts.boxes):
        return []
    shorts = facts.image_sizes.min(axis=1)
    wanted = _GPU_SHORT_SIDE if given.on_gpu else _CPU_SHORT_SIDE
    most = _MOST_ENLARGED if given.on_gpu else 1.0  # what is enlarged costs time and shows no more
    usual = min(most, wanted / float(np.median(shorts)))
    # By the two ways of scaling: sides of the objects, and the factor that shows the small ones.
    native = _scale_for(facts.sides, usual)
    relative = facts.sides / shorts[facts.box_images] * float(np.median(shorts))
    fitted = _scale_for(relative, usual)
    # Pixels of the input for a pixel of a small object: the way that shows those with less of the rest is better.
    areas, small = facts.image_sizes.prod(axis=1), float(np.percentile(facts.sides, _SMALLEST_PERCENTILE))
    cost_native = float(areas.mean()) / small**2
    cost_fitted = float((areas / shorts**2).mean()) * float(np.median(shorts)) ** 2
    cost_fitted /= float(np.percentile(relative, _SMALLEST_PERCENTILE)) ** 2
    varied = float(np.percentile(shorts, 95) / np.percentile(shorts, 5)) > 1.5
    if not train_sizes and varied and cost_native < cost_fitted:  # native scaling would not read min_size_train
        reason = f"images of {shorts.min():.0f} to {shorts.max():.0f} pixels show their objects at about the same scale"
        why = f"5% of the objects are smaller than {small:.0f} pixels, {small * native:.0f} when resized"
        return [Choice("resize_mode", "native", reason), Choice("native_scale", round(native, 3), why)]
    # What the sizes of training are given for is evaluated at the largest of them, as in Detectron2's recipes.
    short = max(train_sizes) if train_sizes else max(32, round_up(fitted * float(np.median(shorts)), 16))
    if not train_sizes and not varied and float((areas * (short / shorts) ** 2).max()) > _TILE**2:
        # By its short side a tile would be scaled to the size of a whole image, and show its objects larger.
        scale = round(short / float(np.median(shorts)), 3)
        reason = "images have about the same size, and are predicted in tiles"
        why = f"5% of the objects are smaller than {small:.0f} pixels, {small * scale:.0f} when resized"
        return [Choice("resize_mode", "native", reason), Choice("native_scale", scale, why)]
    aspect = float(np.percentile(facts.image_sizes.max(axis=1) / shorts, 95))
    small = float(np.percentile(relative, _SMALLEST_PERCENTILE)) * short / float(np.median(shorts))
    why = "min_size_train is given" if train_sizes else "images have about the same size, or objects scale with them"
    what = "the largest of min_size_train" if train_sizes else f"the short sides are {np.median(shorts):.0f} pixels"
    reason = f"{what}; resized, 5% of the objects are below {small:.0f}"
    return [
        Choice("resize_mode", "short_side", why),
        Choice("min_size", short, reason),
        Choice(
            "max_size",
            round_up(short * max(aspect, 4 / 3), 32),
            f"long sides are up to {aspect:.2g} times the short ones",
        ),
    ]


def _scale_for(sides: np.ndarray, usual: float) -> float:
    """The usual scale, or a larger one where small objects need it; 1 where it is hardly less."""
    small, median = np.percentile(sides, [_SMALLEST_PERCENTILE, 50])
    scale = max(usual, min(1.0, _WANTED_SIDE / median))
    scale = max(scale, min(_MOST_ENLARGED, _LEAST_SIDE / small))
    return 1.0 if 0.85 < scale < 1 else float(scale)


def training_crop(given: Given) -> list[Choice]:
    """Side of the training crops: room for the large objects and for the surroundings of most, no more."""
    facts = given.facts
    if "crop_size" in given.fixed or given.config.data.crop_probability or not len(facts.boxes):
        return []
    scales = scale_of(facts, given.config)
    longs = facts.long_sides * scales[facts.box_images]
    large, most = np.percentile(longs, [95, 75])
    least, limit = (512, 1024) if given.on_gpu else (256, 448)
    image = float((facts.image_sizes.max(axis=1) * scales).max())
    side = min(max(1.25 * large, 2.5 * most, least), limit, max(image, 32))
    reason = f"resized, 95% of the objects are at most {large:.0f} pixels long, 75% at most {most:.0f}"
    return [Choice("crop_size", round_up(side, 32), reason)]


def scale_jitter(given: Given) -> list[Choice]:
    """Random scale: down as far as half of the objects stay visible, up as far as the large ones fit the crop."""
    facts, crop = given.facts, given.config.data.crop_size
    if not crop or not len(facts.boxes):
        return []
    scales = scale_of(facts, given.config)[facts.box_images]
    median = float(np.median(facts.sides * scales))
    large = float(np.percentile(facts.long_sides * scales, 95))
    low = min(1.0, max(0.6, 2 * _LEAST_SIDE / median))
    high = min(1.6, max(1.25, crop / max(large, 1.0)))
    reason = f"resized, the median object has {median:.0f} pixels, the 95th percentile {large:.0f}, the crop {crop}"
    return [Choice("scale_jitter", (round(low, 2), round(high, 2)), reason)]


def flips(given: Given) -> list[Choice]:
    """Mirror images, turns and colors: what leaves the statistics of the annotations as they are."""
    crop = given.config.data.crop_size
    found = find_orientation(given.facts)
    return [
        Choice("horizontal_flip", not found.one_sided, found.left_right),
        Choice("vertical_flip", found.upside_down_free, found.up_down),
        Choice("rotate90", bool(found.turn_free and crop), found.turns),
    ]


def colors(given: Given) -> list[Choice]:
    """Random colors: the fewer images there are, the less is known of other light."""
    images = given.facts.images
    strength = 0.3 if images < 2000 else 0.2 if images < 20000 else 0.0
    return [Choice("color_jitter", strength, f"{images} images")]


def tiles(given: Given) -> list[Choice]:
    """In which pieces large images are predicted, at the scale of training: not where images are scaled to a size."""
    if given.config.data.resize_mode != "native":
        return []
    facts, scales = given.facts, scale_of(given.facts, given.config)
    if float((facts.image_sizes.prod(axis=1) * scales**2).max(initial=0)) <= _TILE**2:
        return []
    side = round_up(_TILE / float(np.median(scales)), 32)
    length = float(np.percentile(facts.long_sides, 95)) if len(facts.boxes) else 0.0
    overlap = min(side // 2, max(32, round_up(1.5 * length, 32)))
    return [
        Choice("tile_size", side, "images are too large to predict in one piece"),
        Choice("tile_overlap", overlap, "objects fit into the overlap"),
    ]
