"""Headers of image files, read with TensorFlow operations: size and orientation before anything is decoded.

Loops over the parts of a file are bounded, whatever it holds; numbers beyond its end read as 0. Only the first
HEADER_BYTES are looked at, but for the scans of a JPEG.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from kmaskrcnn.ops.tensor import Tensor

_HEAD_BYTES = 32
# Metadata and previews of cameras and editors come before the image; photographs have up to some hundred kilobytes.
HEADER_BYTES = 1 << 22
# A file may have this many bytes for each pixel that it states (16 bits RGBA), besides its metadata.
_BYTES_A_PIXEL = 8
# What may follow the pixels of a PNG. Its decoder unpacks all that stands there, to a thousand times its size.
_PNG_TAIL = 1 << 16
# Parts of a file that are looked at: segments of a JPEG, chunks of a PNG or WebP; photographs have tens.
_MAX_PARTS = 1024
# Blocks of 255 bytes in the first frame of a GIF.
_MAX_GIF_BLOCKS = 1 << 14
_MAX_EXIF_ENTRIES = 64
_ORIENTATION_TAG = 0x0112


class Found(NamedTuple):
    """What a file states.

    Attributes:
        known: () bool, it begins as a format that is read.
        size: (2,) int32 height and width as stored; 0 where that cannot be told.
        orientation: () int32 EXIF orientation 1..8.
        end: () int32 number of its first bytes that hold the image; 0: all.
        longest: () int64 bytes that a file with what it states can need.
    """

    known: Tensor
    size: Tensor
    orientation: Tensor
    end: Tensor
    longest: Tensor


def read(image: Tensor) -> Found:
    """What an encoded image () states of itself."""
    image = tf.strings.substr(image, 0, HEADER_BYTES)
    head = _bytes_of(tf.strings.substr(image, 0, _HEAD_BYTES))
    yes, zero, one = tf.constant(True), tf.constant(0), tf.constant(1)

    def room(size: Tensor) -> Tensor:
        pixels = tf.reduce_prod(tf.cast(size, tf.int64))
        return _BYTES_A_PIXEL * pixels + HEADER_BYTES

    def jpeg() -> Found:
        data = _bytes_of(image)
        size, exif = _jpeg_parts(data)
        return Found(yes, size, _orientation(data, exif), zero, room(size))

    def png() -> Found:
        data = _bytes_of(image)
        exif = _find_chunk(data, 8, b"eXIf", b"IDAT", _png_chunk)
        start = _find_chunk(data, 8, b"IDAT", b"IEND", _png_chunk)
        size = tf.where(start > 0, _number(head, tf.constant([20, 16]), 4, False), 0)
        longest = tf.cast(start, tf.int64) + _png_bytes(head, size) + _PNG_TAIL
        return Found(yes, size, _orientation(data, exif), zero, longest)

    def webp() -> Found:
        data = _bytes_of(image)
        exif = _find_chunk(data, 12, b"EXIF", b"none", _webp_chunk)
        exif += tf.where(_holds(data, exif, b"Exif\0\0"), 6, 0)
        size = _webp_size(head)
        return Found(yes, size, _orientation(data, exif), zero, room(size))

    def gif() -> Found:
        size, end = _gif_first_frame(_bytes_of(image))
        # Of any length: all but the first frame is cut off.
        return Found(yes, size, one, end, tf.constant(tf.int64.max))

    def bmp() -> Found:
        size = _bmp_size(_bytes_of(image))
        return Found(yes, size, one, zero, room(size))

    found = tf.case(
        [
            (_holds(head, 0, b"\xff\xd8\xff"), jpeg),
            (_holds(head, 0, b"\x89PNG\r\n\x1a\n"), png),
            (_holds(head, 0, b"RIFF") & _holds(head, 8, b"WEBP"), webp),
            (_holds(head, 0, b"GIF87a") | _holds(head, 0, b"GIF89a"), gif),
            (_holds(head, 0, b"BM"), bmp),
        ],
        default=lambda: Found(tf.constant(False), tf.zeros((2,), tf.int32), one, zero, tf.constant(tf.int64.max)),
    )
    return found._replace(size=tf.where(tf.reduce_all(found.size > 0), found.size, 0))


def jpeg_scans(image: Tensor) -> Tensor:
    """() int32: how many scans an encoded image () has at most if it is a JPEG, else 0."""

    def count() -> Tensor:
        data = _bytes_of(image)
        # Places instead of a sum, which would first be four bytes for each of the file.
        return tf.shape(tf.where((data[:-1] == 0xFF) & (data[1:] == 0xDA)))[0]

    return tf.cond(tf.strings.substr(image, 0, 2) == b"\xff\xd8", count, lambda: tf.constant(0))


def _png_bytes(head: Tensor, size: Tensor) -> Tensor:
    """() int64: the most bytes that a PNG of this size can need from its first pixels to its last."""
    bits, kind = _number(head, 24, 1, False), _number(head, 25, 1, False)
    # Gray, RGB, palette, gray with alpha, RGBA; interlaced rows begin with their filter eight times.
    channels = tf.gather(tf.constant([1, 4, 3, 1, 2, 4, 4], tf.int64), tf.minimum(kind, 6))
    height, width = tf.unstack(tf.cast(size, tf.int64))
    rows = height * (width * channels * tf.cast(tf.minimum(bits, 16), tf.int64) // 8 + 9)
    return rows + rows // 16


def _bytes_of(image: Tensor) -> Tensor:
    """() string -> its bytes (N + 1,) uint8, the last one 0."""
    return tf.concat([tf.io.decode_raw(image, tf.uint8), tf.zeros((1,), tf.uint8)], axis=0)


def _number(data: Tensor, start: Tensor | int, count: int, little: Tensor | bool) -> Tensor:
    """Numbers of `count` bytes at the positions start (...) of what `_bytes_of` gave, int32: 4 bytes may be below 0."""
    positions = tf.expand_dims(start, -1) + tf.range(count)
    last = tf.shape(data)[0] - 1
    bytes_ = tf.cast(tf.gather(data, tf.where((positions >= 0) & (positions < last), positions, last)), tf.int32)
    powers = tf.constant([1 << 8 * i for i in range(count)])
    return tf.reduce_sum(bytes_ * tf.where(little, powers, tf.reverse(powers, [0])), axis=-1)


def _holds(data: Tensor, start: Tensor | int, text: bytes) -> Tensor:
    """Whether a text stands at a position."""
    positions = tf.convert_to_tensor(start) + tf.range(len(text))
    return tf.reduce_all(_number(data, positions, 1, False) == tf.constant(list(text)))


def _jpeg_parts(data: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width (2,) from the frame header of a JPEG, and where its EXIF data begin; 0 for what is not there."""

    def is_frame(marker: Tensor) -> Tensor:
        # SOF0..SOF15 but for DHT, JPG and DAC.
        return (marker >= 0xC0) & (marker <= 0xCF) & (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)

    def going_on(position: Tensor, exif: Tensor) -> Tensor:
        del exif
        at_marker = _number(data, position, 1, False) == 0xFF
        return at_marker & ~is_frame(_number(data, position + 1, 1, False))

    def step(position: Tensor, exif: Tensor) -> tuple[Tensor, Tensor]:
        marker = _number(data, position + 1, 1, False)
        length = tf.maximum(_number(data, position + 2, 2, False), 2)
        first = (exif == 0) & (marker == 0xE1) & _holds(data, position + 4, b"Exif\0\0")
        # Any number of FF may come before a marker.
        return position + tf.where(marker == 0xFF, 1, 2 + length), tf.where(first, position + 10, exif)

    start = (tf.constant(2), tf.constant(0))
    position, exif = tf.while_loop(going_on, step, start, parallel_iterations=1, maximum_iterations=_MAX_PARTS)
    size = _number(data, position + tf.constant([5, 7]), 2, False)
    return tf.where(going_on(position, exif) | (_number(data, position, 1, False) != 0xFF), 0, size), exif


def _png_chunk(data: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Where the name of a chunk stands, and where the next chunk begins."""
    return position + 4, position + 12 + _number(data, position, 4, False)


def _webp_chunk(data: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    length = _number(data, position + 4, 4, True)
    return position, position + 8 + length + length % 2


def _find_chunk(
    data: Tensor,
    start: int,
    name: bytes,
    last: bytes,
    chunk: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Tensor:
    """Where the data of the first chunk of a name begin, looked for as far as the chunk `last`; 0: there is none."""
    size = tf.shape(data)[0]

    def going_on(position: Tensor) -> Tensor:
        at = chunk(data, position)[0]
        return (position < size) & ~_holds(data, at, name) & ~_holds(data, at, last)

    def step(position: Tensor) -> tuple[Tensor]:
        following = chunk(data, position)[1]
        return (tf.where(following > position, following, size),)

    (position,) = tf.while_loop(
        going_on, step, (tf.constant(start),), parallel_iterations=1, maximum_iterations=_MAX_PARTS
    )
    return tf.where(_holds(data, chunk(data, position)[0], name), position + 8, 0)


def _webp_size(head: Tensor) -> Tensor:
    """Height and width (2,) of a WebP file by its first chunk; 0 where it is none that is known, or an animation."""

    def lossy() -> Tensor:
        return tf.bitwise.bitwise_and(_number(head, tf.constant([28, 26]), 2, True), 0x3FFF)

    def lossless() -> Tensor:
        bits = _number(head, 21, 4, True)
        width = tf.bitwise.bitwise_and(bits, 0x3FFF)
        height = tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, 14), 0x3FFF)
        return tf.stack([height, width]) + 1

    def extended() -> Tensor:
        animated = tf.bitwise.bitwise_and(_number(head, 20, 1, True), 2) > 0
        return tf.where(animated, 0, _number(head, tf.constant([27, 24]), 3, True) + 1)

    return tf.case(
        [
            (_holds(head, 12, b"VP8 "), lossy),
            (_holds(head, 12, b"VP8L"), lossless),
            (_holds(head, 12, b"VP8X"), extended),
        ],
        default=lambda: tf.zeros((2,), tf.int32),
    )


def _bmp_size(data: Tensor) -> Tensor:
    """Height and width (2,) of a BMP; 0 for packed ones and those with a palette, which the decoder takes for gray."""
    size = tf.abs(_number(data, tf.constant([22, 18]), 4, True))  # a negative height means rows from the top
    bits, packing = _number(data, 28, 2, True), _number(data, 30, 4, True)
    palette = _number(data, 14 + _number(data, 14, 4, True) + 4 * tf.range(256), 3, True)
    gray = tf.reduce_all(palette == 0x010101 * tf.range(256))
    good = (packing == 0) & ((bits == 24) | (bits == 32) | ((bits == 8) & gray)) | (packing == 3) & (bits == 32)
    return tf.where(good, size, 0)


def _gif_first_frame(data: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width (2,) of a GIF, and where its first frame ends.

    The decoder would unpack every frame of the file and make the image as large as the largest of them. The size is
    0 where the first frame is cut short, too long or does not cover the image.
    """
    at_block, in_extension, in_frame, done, broken = range(5)

    def color_table(flags: Tensor) -> Tensor:
        there = tf.bitwise.bitwise_and(flags, 0x80) > 0
        return tf.where(there, 3 * tf.bitwise.left_shift(2, tf.bitwise.bitwise_and(flags, 7)), 0)

    def step(position: Tensor, state: Tensor, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        byte = _number(data, position, 1, False)
        is_frame, is_extension = byte == 0x2C, byte == 0x21
        # At a block: extensions begin with a label, a frame with its place, its colors and the width of its codes.
        skip = tf.where(is_frame, 11 + color_table(_number(data, position + 9, 1, False)), 2)
        entered = tf.where(is_frame, in_frame, tf.where(is_extension, in_extension, broken))
        # Within one: sub-blocks, until one of length 0.
        left = tf.where(state == in_frame, done, at_block)
        outside = state == at_block
        return (
            position + tf.where(outside, skip, byte + 1),
            tf.where(outside, entered, tf.where(byte == 0, left, state)),
            tf.where(outside & is_frame, position, frame),
        )

    start = 13 + color_table(_number(data, 10, 1, False))
    position, state, frame = tf.while_loop(
        lambda position, state, frame: state < done,
        step,
        (start, tf.constant(at_block), tf.constant(0)),
        parallel_iterations=1,
        maximum_iterations=_MAX_GIF_BLOCKS,
    )
    screen = _number(data, tf.constant([8, 6]), 2, True)
    place = _number(data, frame + tf.constant([3, 1, 7, 5]), 2, True)  # top, left, height, width
    covers = tf.reduce_all(place == tf.concat([[0, 0], screen], axis=0))
    good = (state == done) & (position < tf.shape(data)[0]) & covers
    return tf.where(good, screen, 0), tf.where(good, position, 0)


def _orientation(data: Tensor, start: Tensor) -> Tensor:
    """The orientation 1..8 in EXIF data (a TIFF header and directory) at a position; 1 where there is none."""
    little = _holds(data, start, b"II")
    directory = start + _number(data, start + 4, 4, little)
    entries = tf.minimum(_number(data, directory, 2, little), _MAX_EXIF_ENTRIES)
    positions = directory + 2 + 12 * tf.range(_MAX_EXIF_ENTRIES)
    right = (_number(data, positions, 2, little) == _ORIENTATION_TAG) & (tf.range(_MAX_EXIF_ENTRIES) < entries)
    value = tf.reduce_max(tf.where(right, _number(data, positions + 8, 2, little), 0))
    known = (start > 0) & (little | _holds(data, start, b"MM")) & (value >= 1) & (value <= 8)
    return tf.where(known, value, 1)
