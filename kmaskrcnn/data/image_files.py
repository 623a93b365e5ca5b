"""Image files: cheap checks before training, and decoding to RGB."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

_EXIF_ORIENTATION = 0x0112
_TAIL_BYTES = 2048
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "MPO": b"\xff\xd9"}


class ImageHeader(NamedTuple):
    """What an image file says of itself; `by_pillow` where TensorFlow's decoders do not read the format."""

    height: int
    width: int
    turned: bool
    by_pillow: bool


def read_header(path: str) -> ImageHeader:
    """Read the header, and see that the file reaches its end mark, without decoding it where that can be told.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: not an image, or cut short; the message says which.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1) if image.format in ("JPEG", "MPO") else 1
            mark = _END_MARKS.get(image.format)
            with open(path, "rb") as file:
                file.seek(max(os.path.getsize(path) - _TAIL_BYTES, 0))
                ended = mark is not None and mark in file.read()
            # Without an end mark near the end only decoding tells a cut file from one with an appendix.
            if not ended:
                image.load()
            by_pillow = image.format not in ("JPEG", "MPO", "PNG") or image.mode == "CMYK"
    except FileNotFoundError:
        raise
    except Image.UnidentifiedImageError:
        empty = os.path.getsize(path) == 0
        raise OSError("the file is empty" if empty else "not an image in a format that can be read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"truncated or damaged image ({error})") from None
    return ImageHeader(height, width, orientation >= 5, by_pillow)


def _read_with_pillow(path: bytes | np.ndarray) -> np.ndarray:
    path = np.asarray(path).item()  # run eagerly, numpy_function gives an array of no dimensions
    with Image.open(os.fsdecode(path)) as image:
        return np.asarray(image.convert("RGB"))


def decode_file(path: tf.Tensor, by_pillow: tf.Tensor) -> tf.Tensor:
    """(H, W, 3) uint8 RGB of a file, as stored: an EXIF orientation is not applied, as in the COCO tools.

    Gray and palette are spread to RGB, alpha is left out, 16 bits keep the high byte, of an animation the first
    frame is taken. `by_pillow` is `ImageHeader.by_pillow`.
    """

    def tensorflow() -> tf.Tensor:
        return tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)

    image = tf.cond(by_pillow, lambda: tf.numpy_function(_read_with_pillow, [path], tf.uint8), tensorflow)
    image.set_shape([None, None, 3])
    return image


def load_image(path: str) -> np.ndarray:
    """Read a picture for prediction: (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be decoded; the message names it.
    """
    try:
        header = read_header(path)
        with Image.open(path) as image:
            if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        return decode_file(tf.constant(path), tf.constant(header.by_pillow)).numpy()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (OSError, tf.errors.InvalidArgumentError) as error:
        raise OSError(f"{path}: {error}") from None
