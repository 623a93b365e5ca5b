"""Images at the network's size, in TensorFlow: the one resizing of training, evaluation, prediction and serving."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from PIL import Image

from kmaskrcnn.config import DataConfig
from kmaskrcnn.data.sizes import bucket_shape, network_size, whole_images


def resize(image: tf.Tensor, height: tf.Tensor, width: tf.Tensor, method: str = "antialias") -> tf.Tensor:
    """(..., H, W, 3) uint8 -> (..., height, width, 3) of `pixel_dtype(method)`, bilinear.

    Args:
        image: pixels.
        height, width: to resize to.
        method: "antialias": smaller images are made with a low-pass filter, as Pillow does and torchvision's tensors do
            not: without it thin structures alias. "torchvision": never filtered, and not rounded to whole levels.
            "detectron2": by Pillow itself, whose fixed-point sums differ from the first by a level at most; one image
            (H, W, 3), and not for exported graphs.
    """
    if method == "detectron2":
        resized = tf.numpy_function(_pillow_resize, [image, height, width], tf.uint8, stateful=False)
        return tf.ensure_shape(resized, (None, None, 3))
    shape = tf.shape(image)[-3:]

    def scaled(antialias: bool) -> tf.Tensor:
        # Of float32 the kernel loads a pixel at once, of uint8 channel by channel; the results are the same.
        pixels = tf.image.resize(tf.cast(image, tf.float32), (height, width), antialias=antialias)
        return to_uint8(pixels) if method == "antialias" else pixels

    if method == "torchvision":
        return scaled(False)
    same = (shape[0] == height) & (shape[1] == width)
    smaller = (height < shape[0]) | (width < shape[1])
    return tf.case([(same, lambda: image), (smaller, lambda: scaled(True))], default=lambda: scaled(False))


def pixel_dtype(method: str) -> tf.DType:
    """What `resize` gives: uint8, but float32 for "torchvision", which resizes floats.

    Rounded to levels a quarter of the detections of a random R18 differed from torchvision's (docs/results/parity.md).
    """
    return tf.float32 if method == "torchvision" else tf.uint8


def _pillow_resize(image: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((int(width), int(height)), Image.Resampling.BILINEAR))


def to_uint8(pixels: tf.Tensor) -> tf.Tensor:
    """Round half to even and clip to 0..255, in one pass over the pixels."""
    # By tf.quantization.quantize the same, with a warning that tf.quantize_v2 is deprecated.
    rounded = tf.raw_ops.QuantizeV2(
        input=pixels, min_range=0.0, max_range=255.0, T=tf.quint8, mode="SCALED", round_mode="HALF_TO_EVEN"
    )
    return tf.bitcast(rounded.output, tf.uint8)


def prepare_image(image: np.ndarray, config: DataConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One image, resized and padded as for evaluation.

    Args:
        image: (H, W, 3) uint8 RGB.
        config: as for `evaluation_dataset`.

    Returns:
        The padded image (H', W', 3) of `pixel_dtype`, the height and width (2,) int32 of its valid part, and the scales
        (2,) float32, network pixels per pixel of the image.

    Raises:
        ValueError: not (H, W, 3) uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"expected an RGB image (H, W, 3) of uint8, got {image.shape} of {image.dtype}")
    config = whole_images(config)
    height, width = image.shape[:2]
    shape = network_size(height, width, config)
    padded = np.zeros((*bucket_shape(height, width, config), 3), pixel_dtype(config.resize_method).as_numpy_dtype)
    padded[: shape[0], : shape[1]] = resize(tf.constant(image), *shape, config.resize_method).numpy()
    scales = np.array([shape[0] / height, shape[1] / width], np.float32)
    return padded, np.array(shape, np.int32), scales
