"""What augmentation does to pixels, in TensorFlow. Each part is left out of the graph where its setting is off."""

from __future__ import annotations

import math

import tensorflow as tf

from kmaskrcnn.config import DataConfig
from kmaskrcnn.data.resize import resize, to_uint8

# What comes in at the corners of a rotated image: about the mean of photographs.
_GRAY = 116.0
_BLUR_RADIUS = 6  # three deviations of the strongest blur of `augment`


def move_pixels(image: tf.Tensor, geometry: tf.Tensor, amounts: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """Cut, resize, rotate, flip and turn an image as a transform says.

    Args:
        image: (H, W, 3) uint8.
        geometry, amounts: (9,) int32 and (10,) float32 of `augment.as_arrays`.
        config: which of the changes are on at all.
    """
    y, x, window_height, window_width, height, width, flip_x, flip_y, turns = tf.unstack(geometry)
    image = image[y : y + window_height, x : x + window_width]
    image = resize(image, height, width, config.resize_method)
    if image.dtype != tf.uint8:  # batches are of whole levels, a quarter of the bytes
        image = to_uint8(image)
    if config.max_rotation:
        image = tf.cond(amounts[7] != 0, lambda: _rotate(image, amounts[7]), lambda: image)
    # A slice of step -1 takes eight times as long as tf.reverse.
    if config.horizontal_flip:
        image = tf.cond(flip_x > 0, lambda: tf.reverse(image, [1]), lambda: image)
    if config.vertical_flip:
        image = tf.cond(flip_y > 0, lambda: tf.reverse(image, [0]), lambda: image)
    if config.rotate90:
        image = tf.image.rot90(image, turns)
    return image


def _rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Turn counter-clockwise about the middle, bilinear; the size stays."""
    shape = tf.shape(image)
    center = (tf.cast(shape[:2], tf.float32) - 1) / 2  # in pixel indices
    cos, sin = tf.cos(degrees * (math.pi / 180)), tf.sin(degrees * (math.pi / 180))
    # The source of the pixel at column u and row v is (cos u - sin v, sin u + cos v), about the middle.
    shift_x = center[1] - cos * center[1] + sin * center[0]
    shift_y = center[0] - sin * center[1] - cos * center[0]
    matrix = tf.stack([cos, -sin, shift_x, sin, cos, shift_y, 0.0, 0.0])[None]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=matrix,
        output_shape=shape[:2],
        fill_value=_GRAY,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]


def change_pixels(image: tf.Tensor, amounts: tf.Tensor, config: DataConfig) -> tf.Tensor:
    """Change colors, blur and compress an image (H, W, 3) uint8; arguments as for `move_pixels`."""
    if config.color_jitter or config.invert_probability:
        image = _recolor(image, amounts)
    if config.blur_probability:
        image = tf.cond(amounts[8] > 0, lambda: _blur(image, amounts[8]), lambda: image)
    if config.jpeg_probability:
        quality = tf.cast(amounts[9], tf.int32)
        image = tf.cond(quality > 0, lambda: tf.image.adjust_jpeg_quality(image, quality), lambda: image)
    return image


def _recolor(image: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Contrast and brightness about the mean, the gains, saturation about the gray value, then the inverse.

    All of them are linear, so one matrix and one offset do them in a single pass over the pixels.
    """
    contrast, brightness, saturation, invert = (amounts[i] for i in (3, 4, 5, 6))
    pixels = tf.cast(image, tf.float32)
    mean = tf.reduce_mean(pixels)
    scale, offset = contrast * amounts[:3], mean * (brightness - contrast) * amounts[:3]
    # gray + (p - gray) * saturation, gray the mean of the three channels of p = scale * pixel + offset
    mix = tf.eye(3) * saturation + (1 - saturation) / 3
    matrix, offset = scale[:, None] * mix, tf.linalg.matvec(mix, offset)
    flipped = tf.where(invert > 0, -1.0, 1.0)
    matrix, offset = matrix * flipped, offset * flipped + tf.where(invert > 0, 255.0, 0.0)
    shape = tf.shape(image)
    mixed = tf.matmul(tf.reshape(pixels, (-1, 3)), matrix) + offset
    return tf.ensure_shape(tf.reshape(to_uint8(mixed), shape), (None, None, 3))


def _blur(image: tf.Tensor, deviation: tf.Tensor) -> tf.Tensor:
    offsets = tf.range(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=tf.float32)
    weights = tf.exp(-tf.square(offsets / deviation) / 2)
    weights = tf.tile((weights / tf.reduce_sum(weights))[:, None], (1, 3))[..., None]  # (13, 3, 1)
    pixels = tf.cast(image[None], tf.float32)
    for axis in (0, 1):
        room = [(0, 0)] * 4
        room[1 + axis] = (_BLUR_RADIUS, _BLUR_RADIUS)
        padded = tf.pad(pixels, room, "SYMMETRIC")  # `augment` draws no blur for images smaller than this
        kernel = weights[:, None] if axis == 0 else weights[None]
        pixels = tf.nn.depthwise_conv2d(padded, kernel, (1, 1, 1, 1), "VALID")
    return to_uint8(pixels)[0]


def place(image: tf.Tensor, offset: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """An image (h, w, 3) laid on a black canvas of `shape` (2,), cut where it hangs over.

    Its corner comes to `offset` (2,), which may be negative.
    """
    start = tf.maximum(-offset, 0)
    stop = tf.minimum(tf.shape(image)[:2], shape - offset)
    part = image[start[0] : stop[0], start[1] : stop[1]]
    before = tf.maximum(offset, 0)
    after = shape - before - tf.shape(part)[:2]
    return tf.pad(part, [(before[0], after[0]), (before[1], after[1]), (0, 0)])
