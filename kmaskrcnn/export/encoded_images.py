"""Encoded images to upright pixels inside a TensorFlow graph; what cannot be decoded is told apart, not raised.

Everything here is graph operations, so that a SavedModel can be served by a process without Python. What a file states
is read before it is decoded, and bounds the memory and the time that decoding takes.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from kmaskrcnn.data.image_files import upright
from kmaskrcnn.export import image_headers

OK = ""
NOT_AN_IMAGE = "not a JPEG, PNG, WebP, GIF or BMP image"
TOO_LARGE = "too large"
TOO_LONG = "more bytes than an image of its size can need"
TOO_MANY_SCANS = "a JPEG of too many scans"
UNDECODABLE = "damaged image, or a kind of its format that is not read"

# Every scan of a progressive JPEG is a pass over the whole image; the usual encoders make about ten. Images of the
# largest size may have fewer.
_MAX_SCANS, _MAX_SCANS_OF_LARGEST = 40, 16


class Header(NamedTuple):
    """What an encoded image states of itself.

    Attributes:
        size: (2,) int32 height and width, upright; 0 where `problem` is not OK.
        orientation: () int32 EXIF orientation 1..8.
        end: () int32 number of its first bytes to decode; 0: all.
        problem: () string, OK or why it must not be decoded.
    """

    size: tf.Tensor
    orientation: tf.Tensor
    end: tf.Tensor
    problem: tf.Tensor


def read_header(image: tf.Tensor, max_pixels: int) -> Header:
    """Judge one encoded image () by its header; nothing is decoded."""
    found = image_headers.read(image)
    pixels = tf.reduce_prod(tf.cast(found.size, tf.int64))
    too_long = tf.cast(tf.strings.length(image), tf.int64) > found.longest

    def many_scans() -> tf.Tensor:
        scans = tf.cast(image_headers.jpeg_scans(image), tf.int64)
        slow = (scans > _MAX_SCANS) | (scans * pixels > _MAX_SCANS_OF_LARGEST * max_pixels)
        return tf.where(slow, TOO_MANY_SCANS, OK)

    problem = tf.case(
        [
            (pixels == 0, lambda: tf.where(found.known, UNDECODABLE, NOT_AN_IMAGE)),
            (pixels > max_pixels, lambda: TOO_LARGE),
            (too_long, lambda: TOO_LONG),
        ],
        default=many_scans,
    )
    upright = tf.where(found.orientation >= 5, tf.reverse(found.size, [0]), found.size)
    return Header(tf.where(problem == OK, upright, 0), found.orientation, found.end, problem)


def decode(image: tf.Tensor, header: Header) -> tuple[tf.Tensor, tf.Tensor]:
    """One encoded image () to upright RGB.

    Gray and palette are spread to RGB, alpha is left out, 16 bits keep the high byte, of an animation the first frame
    is taken, CMYK is turned to RGB.

    Returns:
        Pixels (H, W, 3) uint8, and OK or what is wrong with the image; its pixels are then a single black one.
    """
    black = tf.zeros((1, 1, 3), tf.uint8)

    def decode_whole(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # The decoder of WebP gives the channels that there are, or fails.
        webp = tf.strings.substr(image, 8, 4) == b"WEBP"
        channels = tf.cond(webp, lambda: _decode(image, 0)[..., :3], lambda: _decode(image, 3))
        pixels = upright(tf.ensure_shape(channels, (None, None, 3)), header.orientation)
        # The canvas of the batch was made for the stated size.
        return pixels, tf.reduce_all(tf.shape(pixels)[:2] == header.size)

    def decoded() -> tuple[tf.Tensor, tf.Tensor]:
        # The mark that ends a GIF comes where its first frame does.
        part = tf.where(header.end > 0, tf.strings.substr(image, 0, header.end) + b";", image)
        # Only a data set turns the error of an operation into something that a graph can go on from.
        whole = tf.data.Dataset.from_tensors(part).map(decode_whole).ignore_errors()
        either = whole.concatenate(tf.data.Dataset.from_tensors((black, False)))
        pixels, good = either.take(1).get_single_element()
        return tf.cond(good, lambda: (pixels, OK), lambda: (black, UNDECODABLE))

    return tf.cond(header.problem == OK, decoded, lambda: (black, header.problem))


def _decode(image: tf.Tensor, channels: int) -> tf.Tensor:
    pixels = tf.cond(
        tf.strings.substr(image, 0, 2) == b"\xff\xd8",  # exact, as training decodes
        lambda: tf.io.decode_jpeg(image, channels=channels, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(image, channels=channels, expand_animations=False),
    )
    pixels.set_shape((None, None, channels or None))
    return pixels
