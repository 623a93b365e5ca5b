"""Image files: cheap checks before training, and the one rule by which they become RGB."""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import os
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from kmaskrcnn.data.files import open_binary, read_bytes
from kmaskrcnn.data.sizes import MAX_PIXELS
from kmaskrcnn.errors import Flaw, printable
from kmaskrcnn.results import rgb

_EXIF_ORIENTATION = 0x0112
_TAIL_BYTES = 2048
_END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "MPO": b"\xff\xd9"}
# TensorFlow's decoders refuse images of more bytes.
_TENSORFLOW_BYTES = 2**29


class ImageError(OSError):
    """An image file that cannot be used; `code` is a name in `defects.DEFECTS`, the message what was found."""

    def __init__(self, code: str, message: str):
        super().__init__(printable(message))
        self.code = code


def code_of(error: OSError) -> str:
    """The defect that an error in reading an image shows."""
    if isinstance(error, FileNotFoundError):
        return "missing-image"
    return getattr(error, "code", "not-an-image")


class ImageHeader(NamedTuple):
    """What an image file says of itself, its size as stored.

    `orientation` is EXIF's (1 upright, 5..8 a quarter turn); `by_pillow` where TensorFlow's decoders do not read the
    format.
    """

    height: int
    width: int
    orientation: int
    by_pillow: bool

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width once the EXIF orientation is undone."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)

    def turn_for(self, height: int, width: int) -> int | None:
        """The orientation to undo so that the image has the size that its annotations state; None: it never has.

        Images are turned upright wherever that fits; annotations that fit the pixels as stored alone mean these.
        """
        if self.upright == (height, width):
            return self.orientation
        return 1 if (self.height, self.width) == (height, width) else None


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
    if not length:
        raise ImageError("empty-image-file", "the file is empty")
    with open_image(file) as image:
        width, height = image.size
        position = file.tell()
        file.seek(max(length - _TAIL_BYTES, 0))
        tail = file.read()
        file.seek(position)
        orientation = _orientation(image, tail)
        mark = _END_MARKS.get(image.format or "")
        # Without an end mark near the end only decoding tells a cut file from one with an appendix.
        if mark is None or mark not in tail:
            to_rgb(image) if image.mode in ("I", "F") else image.load()
        elif image.mode not in _PLAIN_MODES:
            to_rgb(image)
        of_tensorflow = image.format in ("JPEG", "MPO", "PNG") and image.mode != "CMYK"
        by_pillow = not of_tensorflow or height * width * 3 >= _TENSORFLOW_BYTES
    return ImageHeader(height, width, orientation, by_pillow)


@contextlib.contextmanager
def open_image(file: IO[bytes]) -> Iterator[Image.Image]:
    """An image file opened by Pillow, at most MAX_PIXELS large; errors in the block become ImageError, too.

    Pillow's own limit calls sound images damaged from 179 megapixels on.
    """
    try:
        image = _identify(file)
        if image.width * image.height > MAX_PIXELS:
            size = f"{image.width} x {image.height}"
            raise ImageError("huge-image", f"{size} are more than the {MAX_PIXELS} pixels that an image may have")
        with image:
            yield image
    except (ImageError, Flaw):
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ImageError("truncated-image", f"truncated or damaged image ({error})") from None
    except (TypeError, KeyError, IndexError, OverflowError, ZeroDivisionError, AttributeError) as error:
        # What Pillow's readers of rare formats raise on damaged files.
        raise ImageError("truncated-image", f"truncated or damaged image ({type(error).__name__}: {error})") from None


def _identify(file: IO[bytes]) -> Image.Image:
    """What Image.open does, without its limit."""
    Image.init()
    file.seek(0)
    prefix, said = file.read(16), ""
    for name in Image.ID:
        factory, accept = Image.OPEN[name]
        file.seek(0)
        try:
            accepted = not accept or accept(prefix)
            if accepted and not isinstance(accepted, str):
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, struct.error) as error:
            said = said or str(error) if accept else said
    if "pixel mode" in said or "unsupported" in said.lower():
        raise ImageError("unreadable-pixels", f"an unsupported pixel format ({said})")
    raise ImageError("not-an-image", "not an image in a format that can be read")


def _orientation(image: Image.Image, tail: bytes) -> int:
    """EXIF's orientation 1..8, which Pillow has carried out in TIFF already; 1 where there is none or no such."""
    if image.format == "TIFF":
        return 1
    data = image.info.get("exif")
    if data is None and image.format == "PNG" and (place := tail.find(b"eXIf")) >= 4:  # it may follow the pixels
        data = tail[place + 4 : place + 4 + int.from_bytes(tail[place - 4 : place])]
    if not data:
        return 1
    exif = Image.Exif()
    try:
        exif.load(data)
        value = exif.get(_EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError, struct.error):
        return 1
    return value if value in range(1, 9) else 1


_PLAIN_MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "PA", "RGBX", "YCbCr", "I;16", "I;16L", "I;16B")


def to_rgb(image: Image.Image) -> np.ndarray:
    """As `kmaskrcnn.results.rgb.to_rgb`; raises ImageError."""
    try:
        return rgb.to_rgb(image)
    except rgb.PixelError as error:
        raise ImageError("unreadable-pixels", str(error)) from None


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undo an EXIF orientation () int32 of an (H, W, 3) image."""
    # Orientations 5..8 are those of 1..4 with rows and columns exchanged.
    turned = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    flip_x = tf.reduce_any(orientation == [2, 3, 6, 7])
    flip_y = tf.reduce_any(orientation == [3, 4, 7, 8])
    turned = tf.cond(flip_x, lambda: turned[:, ::-1], lambda: turned)
    return tf.cond(flip_y, lambda: turned[::-1], lambda: turned)


def read_encoded(path: str, offset: int = 0, length: int = -1) -> bytes:
    """The bytes of an image: a file, a part of a TFRecord shard, or a text in base64 inside a LabelMe file."""
    data = read_bytes(path, offset, length)
    if length < 0 or not path.lower().endswith(".json"):
        return data
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ImageError("truncated-image", f"imageData is not base64 ({error})") from None


def _read_span(path: bytes | np.ndarray, span: np.ndarray) -> bytes:
    name = np.asarray(path).item().decode()  # run eagerly, numpy_function gives an array of no dimensions
    return read_encoded(name, int(span[0]), int(span[1]))


def _decode_with_pillow(contents: bytes | np.ndarray) -> np.ndarray:
    data = contents if isinstance(contents, bytes) else contents.item()  # NumPy's own strings lose zeros at the end
    with open_image(io.BytesIO(data)) as image:
        return to_rgb(image)


def decode_contents(contents: tf.Tensor, by_pillow: tf.Tensor, orientation: tf.Tensor | int = 1) -> tf.Tensor:
    """(H, W, 3) uint8 RGB of an encoded image () string, by the rule of `to_rgb` whichever decoder reads it.

    Args:
        contents: the bytes of the file.
        by_pillow: () bool, `ImageHeader.by_pillow`.
        orientation: () int32 EXIF orientation to undo; 1: the pixels as stored.
    """

    def tensorflow() -> tf.Tensor:
        # The exact transform is Pillow's; TensorFlow's fast one is off by up to 21 levels.
        return tf.cond(
            tf.strings.substr(contents, 0, 2) == b"\xff\xd8",
            lambda: tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE"),
            lambda: tf.io.decode_png(contents, channels=3),
        )

    image = tf.cond(by_pillow, lambda: tf.numpy_function(_decode_with_pillow, [contents], tf.uint8), tensorflow)
    image.set_shape([None, None, 3])
    return upright(image, tf.convert_to_tensor(orientation, tf.int32))


def decode_file(
    path: tf.Tensor, by_pillow: tf.Tensor, span: tf.Tensor | None = None, orientation: tf.Tensor | int = 1
) -> tf.Tensor:
    """`decode_contents` of a file.

    Args:
        path: the file, local or behind tf.io.gfile.
        by_pillow, orientation: as for `decode_contents`.
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
    return decode_contents(contents, by_pillow, orientation)


def load_pixels(data: bytes, turn: int | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB of the bytes of an image, as training and prediction decode it.

    `turn` is the EXIF orientation to undo; default: the image's own. Raises ImageError, also where only decoding shows
    the damage.
    """
    header = header_of(io.BytesIO(data))
    turn = header.orientation if turn is None else turn
    if header.by_pillow:
        return upright(tf.constant(_decode_with_pillow(data)), tf.constant(turn)).numpy()
    try:
        return decode_contents(tf.constant(data), tf.constant(False), turn).numpy()
    except tf.errors.InvalidArgumentError as error:
        reason = error.message.partition(" [Op:")[0].splitlines()[0]
        raise ImageError("truncated-image", f"truncated or damaged image ({reason})") from None


# What telephones and cameras write and Pillow cannot read; of RAW, which looks like TIFF, it reads a thumbnail.
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
RAW_SUFFIXES = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".pef", ".srw")


def load_image(path: str) -> np.ndarray:
    """Read an image for prediction: (H, W, 3) uint8 RGB, rotated upright by its EXIF orientation.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be decoded; the message names it.
    """
    ending = os.path.splitext(path)[1].lower()
    try:
        data = read_bytes(path)
        if ending in RAW_SUFFIXES:
            raise ImageError("not-an-image", f"a RAW file ({ending}), which cannot be read: convert it to JPEG")
        try:
            return load_pixels(data)
        except ImageError:
            if ending in HEIF_SUFFIXES:  # some are JPEG in truth
                raise ImageError("not-an-image", "HEIC, which cannot be read: convert it to JPEG") from None
            raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise OSError(f"{path}: {error}") from None
