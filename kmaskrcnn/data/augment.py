"""Augmentation: what happens to an image is drawn first, then done to the image and to its instances.

The draw and the instances are NumPy, a few hundred numbers an image; the pixels are TensorFlow. Masks stay in the frame
they were cropped to, so that scaling and cropping only move frames and lose nothing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from kmaskrcnn.config import DataConfig

# Share of the crops that are placed to hold the centre of an object.
_CROP_ON_OBJECT = 0.9
# Instances of which a crop leaves less than this share are dropped.
_LEAST_VISIBLE = 0.1


@dataclasses.dataclass(frozen=True)
class Transform:
    """What is done to an image, in this order: cut out the window, resize it, flip, turn, change colours.

    Attributes:
        window: (y, x, height, width) in whole source pixels.
        size: (height, width) that the window is resized to.
        flip_x, flip_y: mirror left-right, top-bottom.
        turns: counter-clockwise quarter turns.
        gains: (3,) factors of R, G, B about the mean; contrast, brightness, saturation: factors, 1 for none.
        invert: take 255 - value.
    """

    window: tuple[int, int, int, int]
    size: tuple[int, int]
    flip_x: bool = False
    flip_y: bool = False
    turns: int = 0
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    brightness: float = 1.0
    saturation: float = 1.0
    invert: bool = False

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width after the turns."""
        return self.size[::-1] if self.turns % 2 else self.size


def base_scale(height: int, width: int, config: DataConfig, short_side: int | None = None) -> float:
    """Network pixels a source pixel by resize_mode, min_size (or short_side) and max_size, or native_scale."""
    if config.resize_mode == "native":
        return config.native_scale
    return min((short_side or config.min_size) / min(height, width), config.max_size / max(height, width))


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width in whole pixels after scaling, at least 1."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def draw_transform(
    height: int, width: int, boxes: np.ndarray, config: DataConfig, rng: np.random.Generator
) -> Transform:
    """Draw what is done to a training image of this size whose objects have these boxes (N, 4)."""
    short_side = int(rng.choice(config.min_size_train)) if config.min_size_train else None
    scale = base_scale(height, width, config, short_side)
    if config.scale_jitter:
        scale *= float(np.exp(rng.uniform(*np.log(config.scale_jitter))))
    window, size = (0, 0, height, width), scaled_size(height, width, scale)
    if config.crop_size:
        window_size = [min(side, max(1, round(config.crop_size / scale))) for side in (height, width)]
        center = None
        if len(boxes) and rng.random() < _CROP_ON_OBJECT:
            box = boxes[rng.integers(len(boxes))]
            center = (box[:2] + box[2:]) / 2
        corner = []
        for axis, (side, cut) in enumerate(zip((height, width), window_size, strict=True)):
            low, high = 0, side - cut
            if center is not None:
                low = min(max(0, int(np.ceil(center[axis] - cut))), high)
                high = max(low, min(high, int(center[axis])))
            corner.append(int(rng.integers(low, high + 1)))
        window = (*corner, *window_size)
        size = tuple(min(side, config.crop_size) for side in scaled_size(*window_size, scale))
    strength = config.color_jitter

    def factor(share: float = 1.0) -> float:
        return float(rng.uniform(1 - share * strength, 1 + share * strength))

    return Transform(
        window=window,
        size=size,
        flip_x=config.horizontal_flip and bool(rng.random() < 0.5),
        flip_y=config.vertical_flip and bool(rng.random() < 0.5),
        turns=int(rng.integers(4)) if config.rotate90 else 0,
        gains=(factor(0.3), factor(0.3), factor(0.3)),
        contrast=factor(),
        brightness=factor(),
        saturation=factor(),
        invert=bool(rng.random() < config.invert_probability),
    )


def transform_instances(instances: dict[str, np.ndarray], transform: Transform) -> dict[str, np.ndarray]:
    """The instances of an image (as of `CocoDataset.instances`) after the transform.

    Boxes are clipped to the window and tightened to what is visible of the mask; instances of which too little or less
    than a pixel is left are dropped. A crowd region is only clipped.
    """
    y, x, height, width = transform.window
    corner = np.array([y, x, y, x], np.float32)
    scale = np.array([transform.size[0] / height, transform.size[1] / width] * 2, np.float32)
    limit = np.array([*transform.size] * 2, np.float32)
    frames = (instances["mask_frames"] - corner) * scale
    boxes = np.clip((instances["boxes"] - corner) * scale, 0, limit)
    masks, crowd = instances["masks"], instances["is_crowd"]
    keep = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(axis=1)
    cut = ((frames < 0) | (frames > limit)).any(axis=1) & keep & ~crowd
    for i in np.flatnonzero(cut):
        visible = _visible_part(masks[i], frames[i], transform.size)
        if visible is None:
            keep[i] = False
            continue
        boxes[i, :2] = np.maximum(boxes[i, :2], visible[:2])
        boxes[i, 2:] = np.minimum(boxes[i, 2:], visible[2:])
        keep[i] = ((boxes[i, 2:] - boxes[i, :2]) >= 1).all()
    result = {name: value[keep] for name, value in instances.items()}
    boxes, frames, masks = boxes[keep], frames[keep], result["masks"]
    height, width = transform.size
    if transform.flip_x:
        boxes, frames = (_mirror(b, 1, width) for b in (boxes, frames))
        masks = masks[:, :, ::-1]
    if transform.flip_y:
        boxes, frames = (_mirror(b, 0, height) for b in (boxes, frames))
        masks = masks[:, ::-1]
    for _ in range(transform.turns):
        boxes, frames = (_mirror(b, 1, width)[:, [1, 0, 3, 2]] for b in (boxes, frames))
        masks = np.rot90(masks, axes=(1, 2))
        height, width = width, height
    return {**result, "boxes": boxes, "mask_frames": frames, "masks": np.ascontiguousarray(masks)}


def _mirror(boxes: np.ndarray, axis: int, side: int) -> np.ndarray:
    mirrored = boxes.copy()
    mirrored[:, axis], mirrored[:, axis + 2] = side - boxes[:, axis + 2], side - boxes[:, axis]
    return mirrored


def _visible_part(mask: np.ndarray, frame: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """Tight box of the mask's cells inside an image of this size, or None where too little of it is left."""
    inside = mask >= 128
    total = inside.sum()
    bounds = []
    for axis in (0, 1):
        cells = np.linspace(frame[axis], frame[axis + 2], mask.shape[axis] + 1)
        centres = (cells[1:] + cells[:-1]) / 2
        visible = (centres > 0) & (centres < size[axis])
        inside = inside & np.expand_dims(visible, 1 - axis)
        bounds.append(cells)
    if inside.sum() < max(_LEAST_VISIBLE * total, 1):
        return None
    box = np.zeros(4, np.float32)
    for axis in (0, 1):
        filled = np.flatnonzero(inside.any(axis=1 - axis))
        box[axis], box[axis + 2] = bounds[axis][filled[0]], bounds[axis][filled[-1] + 1]
    return box


def resize(image: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """(..., H, W, 3) uint8 -> (..., height, width, 3) uint8, bilinear.

    Smaller images are made with a low-pass filter, as Pillow does and torchvision's tensors do not: without it thin
    structures alias.
    """
    shape = tf.shape(image)[-3:]

    def scaled(antialias: bool) -> tf.Tensor:
        pixels = tf.image.resize(image, (height, width), antialias=antialias)
        return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)

    same = (shape[0] == height) & (shape[1] == width)
    smaller = (height < shape[0]) | (width < shape[1])
    return tf.case([(same, lambda: image), (smaller, lambda: scaled(True))], default=lambda: scaled(False))


def transform_image(image: tf.Tensor, geometry: tf.Tensor, colors: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """The pixels after a transform.

    Args:
        image: (H, W, 3) uint8.
        geometry: (9,) int32: window, size, flip_x, flip_y, turns.
        colors: (7,) float32: gains, contrast, brightness, saturation, invert.
        config: which of the changes are on at all.
    """
    y, x, window_height, window_width, height, width, flip_x, flip_y, turns = tf.unstack(geometry)
    image = image[y : y + window_height, x : x + window_width]
    image = resize(image, height, width)
    if config.horizontal_flip:
        image = tf.cond(flip_x > 0, lambda: image[:, ::-1], lambda: image)
    if config.vertical_flip:
        image = tf.cond(flip_y > 0, lambda: image[::-1], lambda: image)
    if config.rotate90:
        image = tf.image.rot90(image, turns)
    if config.color_jitter or config.invert_probability:
        pixels = tf.cast(image, tf.float32)
        mean = tf.reduce_mean(pixels)
        pixels = ((pixels - mean) * colors[3] + mean * colors[4]) * colors[:3]
        gray = tf.reduce_mean(pixels, axis=-1, keepdims=True)
        pixels = tf.clip_by_value(gray + (pixels - gray) * colors[5], 0.0, 255.0)
        pixels = tf.where(colors[6] > 0, 255.0 - pixels, pixels)
        image = tf.cast(tf.round(pixels), tf.uint8)
    return image


def as_arrays(transform: Transform) -> tuple[np.ndarray, np.ndarray]:
    """The geometry and colors that `transform_image` takes."""
    flags = (transform.flip_x, transform.flip_y, transform.turns)
    colors = (*transform.gains, transform.contrast, transform.brightness, transform.saturation, transform.invert)
    return np.array([*transform.window, *transform.size, *flags], np.int32), np.array(colors, np.float32)
