"""The size that an image has in the network, and the padded shape that it lies in. Plain numbers, no TensorFlow."""

from __future__ import annotations

import dataclasses
import math

from kmaskrcnn.config import DataConfig

# Pixels that an image may have: the run lengths of masks are counted in 32 bits.
MAX_PIXELS = 2**30
_MULTIPLE = 32  # the stride of C5
# Step that padded sides are rounded up to below and above a side, with resize_mode=native: small, large, turning point.
NATIVE_STEPS = (64, 256, 512)


def base_scale(height: int, width: int, config: DataConfig, short_side: int | None = None) -> float:
    """Network pixels a source pixel by resize_mode, min_size (or short_side) and max_size, or native_scale."""
    if config.resize_mode == "native":
        return config.native_scale
    return min((short_side or config.min_size) / min(height, width), config.max_size / max(height, width))


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width in whole pixels after scaling, at least 1."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def network_size(height: int, width: int, config: DataConfig, short_side: int | None = None) -> tuple[int, int]:
    """Height and width that a whole image is resized to.

    With resize_mode=short_side as resize_method says: rounded, or as torchvision's GeneralizedRCNNTransform (rounded
    down) or Detectron2's ResizeShortestEdge (the short side as it is, the long one rounded half up) has it.
    """
    scale = base_scale(height, width, config, short_side)
    if config.resize_mode == "native" or config.resize_method == "antialias":
        return scaled_size(height, width, scale)
    if config.resize_method == "torchvision":
        return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))
    short = float(short_side or config.min_size)
    scale = short / min(height, width)
    sides = (short, scale * width) if height < width else (scale * height, short)
    if max(sides) > config.max_size:
        factor = config.max_size / max(sides)
        sides = (sides[0] * factor, sides[1] * factor)
    return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


def _round_up(value: float, multiple: int = _MULTIPLE) -> int:
    return math.ceil(value / multiple) * multiple


def long_sides(config: DataConfig) -> tuple[int, int, int, int]:
    """With resize_mode=short_side, the padded short side and the three padded long sides that there are."""
    short_side = max((config.min_size, *config.min_size_train)) if config.min_size_train else config.min_size
    short, longest = _round_up(short_side), _round_up(config.max_size)
    return short, short, _round_up((short + longest) / 2), longest


def bucket_shape(height: int, width: int, config: DataConfig) -> tuple[int, int]:
    """The padded height and width of a whole image: one of a short list, so that few graphs are traced.

    With resize_mode=short_side three long sides, landscape or portrait; with native sides rounded up to multiples of 64
    up to 512 pixels and of 256 beyond.
    """
    short_side = max((config.min_size, *config.min_size_train)) if config.min_size_train else config.min_size
    scaled = network_size(height, width, config, short_side)
    if config.resize_mode == "native":
        small, large, turn = NATIVE_STEPS
        rows, columns = (_round_up(side, small if side <= turn else large) for side in scaled)
        return rows, columns
    short, *longs = long_sides(config)
    long = next(side for side in longs if max(scaled) <= side)
    return (short, long) if height <= width else (long, short)


def whole_images(config: DataConfig) -> DataConfig:
    return dataclasses.replace(config, min_size_train=())
