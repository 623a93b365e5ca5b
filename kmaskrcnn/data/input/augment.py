"""Augmentation: what happens to an image is drawn here, then done to its pixels (`augment_pixels`) and objects
(`augment_instances`).

The draw and the instances are NumPy, a few hundred numbers an image; the pixels are TensorFlow. Masks stay in the frame
they were cropped to, so that scaling and cropping only move frames and lose nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from kmaskrcnn.config import DataConfig
from kmaskrcnn.data.sizes import base_scale, network_size, scaled_size

# Share of the crops that are placed to hold the center of an object.
_CROP_ON_OBJECT = 0.9
# With crop_probability: sides of the window as shares of the image's, its longest aspect, the share of every object
# with its center inside that must be left, and the windows that are tried.
_WINDOW_SHARE, _WINDOW_ASPECT, _WINDOW_LEAST, _WINDOW_DRAWS = (0.35, 1.0), 2.0, 0.75, 20
# Blur (deviation in pixels) and JPEG quality that are drawn from; images with a smaller side are not blurred.
_BLUR, _JPEG_QUALITY, _LEAST_BLURRED = (0.4, 2.0), (25, 80), 16


@dataclasses.dataclass(frozen=True)
class Transform:
    """What is done to an image: cut out the window, resize, rotate, flip, turn, change colors, blur, compress.

    Attributes:
        window: (y, x, height, width) in whole source pixels.
        size: (height, width) that the window is resized to.
        angle: degrees, counter-clockwise about the middle; the size stays, corners that come in are gray.
        flip_x, flip_y: mirror left-right, top-bottom.
        turns: counter-clockwise quarter turns.
        gains: (3,) factors of R, G, B about the mean; contrast, brightness, saturation: factors, 1 for none.
        invert: take 255 - value.
        blur: deviation of a Gaussian in pixels, 0 for none.
        jpeg_quality: of a compression, 0 for none.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    angle: float = 0.0
    flip_x: bool = False
    flip_y: bool = False
    turns: int = 0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    brightness: float = 1.0
    saturation: float = 1.0
    invert: bool = False
    blur: float = 0.0
    jpeg_quality: int = 0

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width after the turns."""
        return self.size[::-1] if self.turns % 2 else self.size


def draw_transform(
    height: int, width: int, boxes: np.ndarray, config: DataConfig, rng: np.random.Generator
) -> Transform:
    """Draw what is done to a training image of this size whose objects have these boxes (N, 4)."""
    short_side = int(rng.choice(config.min_size_train)) if config.min_size_train else None
    scale = base_scale(height, width, config, short_side)
    if config.scale_jitter:
        scale *= float(np.exp(rng.uniform(*np.log(config.scale_jitter))))
    window, size = (0, 0, height, width), network_size(height, width, config, short_side)
    if config.crop_size:
        cut_height, cut_width = (min(side, max(1, round(config.crop_size / scale))) for side in (height, width))
        center = None
        if len(boxes) and rng.random() < _CROP_ON_OBJECT:
            box = boxes[rng.integers(len(boxes))]
            center = (box[:2] + box[2:]) / 2
        corner = []
        for axis, (side, cut) in enumerate(((height, cut_height), (width, cut_width))):
            low, high = 0, side - cut
            if center is not None:
                low = min(max(0, int(np.ceil(center[axis] - cut))), high)
                high = max(low, min(high, int(center[axis])))
            corner.append(int(rng.integers(low, high + 1)))
        y, x = corner
        window = (y, x, cut_height, cut_width)
        rows, columns = scaled_size(cut_height, cut_width, scale)
        size = (min(rows, config.crop_size), min(columns, config.crop_size))
    elif rng.random() < config.crop_probability:
        window = _draw_window(height, width, boxes, rng)
        # Magnified as far as the padded shape of the whole image allows; native pixels keep their size.
        fit = scale if config.resize_mode == "native" else min(size[0] / window[2], size[1] / window[3])
        rows, columns = scaled_size(window[2], window[3], fit)
        size = (min(rows, size[0]), min(columns, size[1]))
    strength, blurred = config.color_jitter, rng.random() < config.blur_probability

    def factor(share: float = 1.0) -> float:
        return float(rng.uniform(1 - share * strength, 1 + share * strength))

    return Transform(
        window=window,
        size=size,
        angle=float(rng.uniform(-config.max_rotation, config.max_rotation)),
        flip_x=config.horizontal_flip and bool(rng.random() < 0.5),
        flip_y=config.vertical_flip and bool(rng.random() < 0.5),
        turns=int(rng.integers(4)) if config.rotate90 else 0,
        gains=(factor(0.3), factor(0.3), factor(0.3)),
        contrast=factor(),
        brightness=factor(),
        saturation=factor(),
        invert=bool(rng.random() < config.invert_probability),
        blur=float(rng.uniform(*_BLUR)) if blurred and min(size) >= _LEAST_BLURRED else 0.0,
        jpeg_quality=int(rng.integers(*_JPEG_QUALITY)) if rng.random() < config.jpeg_probability else 0,
    )


def _draw_window(height: int, width: int, boxes: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A part (y, x, height, width) of the image that leaves most of each object with its center inside, and has one."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    for _ in range(_WINDOW_DRAWS):
        cut_height, cut_width = (max(1, round(side * rng.uniform(*_WINDOW_SHARE))) for side in (height, width))
        y, x = int(rng.integers(height - cut_height + 1)), int(rng.integers(width - cut_width + 1))
        if not 1 / _WINDOW_ASPECT <= (cut_height / cut_width) / (height / width) <= _WINDOW_ASPECT:
            continue
        low, high = np.array([y, x]), np.array([y + cut_height, x + cut_width])
        inside = ((centers > low) & (centers < high)).all(axis=1)
        left = np.clip(np.minimum(boxes[:, 2:], high) - np.maximum(boxes[:, :2], low), 0, None).prod(axis=1)
        if not len(boxes) or (inside.any() and (left >= _WINDOW_LEAST * areas)[inside].all()):
            return y, x, cut_height, cut_width
    return 0, 0, height, width


def as_arrays(transform: Transform) -> tuple[np.ndarray, np.ndarray]:
    """The geometry (9,) int32 and amounts (10,) float32 that `augment_pixels` takes."""
    t = transform
    geometry = (*t.window, *t.size, t.flip_x, t.flip_y, t.turns)
    amounts = (*t.gains, t.contrast, t.brightness, t.saturation, t.invert, t.angle, t.blur, t.jpeg_quality)
    return np.array(geometry, np.int32), np.array(amounts, np.float32)
