"""Image files: cheap checks before training, and decoding to RGB."""

from __future__ import annotations

import io
from typing import IO, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from kmaskrcnn.data.files import open_binary, read_bytes

_EXIF_ORIENTATION = 0x0112
_TAIL_BYTES = 2048
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "MPO": b"\xff\xd9"}


class ImageHeader(NamedTuple):
    """What an image file says of itself, its size as stored.

    `orientation` is EXIF's (1 upright, 5..8 a quarter turn); `by_pillow` where TensorFlow's decoders do not read the
    format.
    """

    height: int
    width: int
    orientation: int
    by_pillow: bool


def read_header(path: str) -> ImageHeader:
    """Read the header, and see that the file reaches its end mark, without decoding it where that can be told.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: not an image, or cut short; the message says which.
    """
    with open_binary(path) as file:
        return header_of(file)


def header_of(file: IO[bytes]) -> ImageHeader:
    """`read_header` of an open file, from its start."""
    length = file.seek(0, io.SEEK_END) or file.tell()
    file.seek(0)
    try:
        with Image.open(file) as image:
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1) if image.format in ("JPEG", "MPO") else 1
            mark = _END_MARKS.get(image.format)
            position = file.tell()
            file.seek(max(length - _TAIL_BYTES, 0))
            ended = mark is not None and mark in file.read()
            file.seek(position)
            # Without an end mark near the end only decoding tells a cut file from one with an appendix.
            if not ended:
                image.load()
            by_pillow = image.format not in ("JPEG", "MPO", "PNG") or image.mode == "CMYK"
    except Image.UnidentifiedImageError:
        raise OSError("not an image in a format that can be read" if length else "the file is empty") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"truncated or damaged image ({error})") from None
    return ImageHeader(height, width, orientation, by_pillow)


def _read_span(path: bytes | np.ndarray, span: np.ndarray) -> bytes:
    path = np.asarray(path).item().decode()  # run eagerly, numpy_function gives an array of no dimensions
    return read_bytes(path, int(span[0]), int(span[1]))


def _decode_with_pillow(contents: bytes | np.ndarray) -> np.ndarray:
    data = contents if isinstance(contents, bytes) else contents.item()  # NumPy's own strings lose zeros at the end
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def decode_file(path: tf.Tensor, by_pillow: tf.Tensor, span: tf.Tensor | None = None) -> tf.Tensor:
    """(H, W, 3) uint8 RGB of a file, as stored: an EXIF orientation is not applied, as in the COCO tools.

    Gray and palette are spread to RGB, alpha is left out, 16 bits keep the high byte, of an animation the first
    frame is taken.

    Args:
        path: the file, local or behind tf.io.gfile.
        by_pillow: `ImageHeader.by_pillow`.
        span: (2,) int64 offset and length of the image in the file, as `CocoDataset.spans`; default: all of it.
    """
    if span is None:
        contents = tf.io.read_file(path)
    else:
        contents = tf.cond(
            span[1] < 0,
            lambda: tf.io.read_file(path),
            lambda: tf.ensure_shape(tf.numpy_function(_read_span, [path, span], tf.string), []),
        )

    def tensorflow() -> tf.Tensor:
        return tf.io.decode_image(contents, channels=3, expand_animations=False)

    image = tf.cond(by_pillow, lambda: tf.numpy_function(_decode_with_pillow, [contents], tf.uint8), tensorflow)
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
        with open_binary(path) as file, Image.open(file) as image:
            if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        return decode_file(tf.constant(path), tf.constant(header.by_pillow)).numpy()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (OSError, tf.errors.InvalidArgumentError) as error:
        raise OSError(f"{path}: {error}") from None
