"""Encoded images to one padded batch inside a TensorFlow graph; what cannot be decoded is told apart, not raised.

Everything here is graph operations, so that a SavedModel can be served by a process without Python.
"""

from __future__ import annotations

import tensorflow as tf

OK, NOT_AN_IMAGE, TOO_LARGE, UNDECODABLE = "", "not a JPEG, PNG, GIF or BMP image", "too large", "damaged image"

# Marker segments are looked for in this much of a JPEG file; a larger preamble than this is not a photograph's.
_JPEG_HEAD_BYTES = 1 << 18
_EXIF_HEAD_BYTES = 1 << 16
_MAX_IFD_ENTRIES = 64


def _at(data: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Bytes (int32) of data (N,) at positions, 0 beyond its end."""
    size = tf.shape(data)[0]
    padded = tf.concat([data, [0]], axis=0)
    inside = (positions >= 0) & (positions < size)
    return tf.gather(padded, tf.where(inside, positions, size))


def _number(data: tf.Tensor, start: tf.Tensor, count: int, little: tf.Tensor | bool) -> tf.Tensor:
    """Unsigned numbers of `count` bytes at the positions start (...), int32."""
    bytes_ = _at(data, tf.expand_dims(start, -1) + tf.range(count))  # (..., count)
    powers = 256 ** tf.range(count)
    return tf.reduce_sum(bytes_ * tf.where(little, powers, tf.reverse(powers, [0])), axis=-1)


def _starts_with(image: tf.Tensor, prefix: bytes) -> tf.Tensor:
    return tf.strings.substr(image, 0, len(prefix)) == prefix


def _jpeg_size(data: tf.Tensor) -> tf.Tensor:
    """(height, width) from the frame header of a JPEG file; (0, 0) where there is none."""

    def is_frame(marker: tf.Tensor) -> tf.Tensor:
        # SOF0..SOF15 but for DHT, JPG and DAC.
        return (marker >= 0xC0) & (marker <= 0xCF) & (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)

    def going_on(position: tf.Tensor) -> tf.Tensor:
        at_marker = _number(data, position, 1, False) == 0xFF
        return at_marker & ~is_frame(_number(data, position + 1, 1, False))

    def step(position: tf.Tensor) -> tuple[tf.Tensor]:
        fill = _number(data, position + 1, 1, False) == 0xFF  # any number of FF may come before a marker
        length = tf.maximum(_number(data, position + 2, 2, False), 2)
        return (position + tf.where(fill, 1, 2 + length),)

    (position,) = tf.while_loop(going_on, step, (tf.constant(2),))
    size = _number(data, position + tf.constant([5, 7]), 2, False)
    return tf.where(_number(data, position, 1, False) == 0xFF, size, 0)


def image_size(image: tf.Tensor) -> tf.Tensor:
    """(height, width) int32 that the header of an encoded image () states; (0, 0) where it is no known format."""
    data = tf.cast(tf.io.decode_raw(tf.strings.substr(image, 0, 32), tf.uint8), tf.int32)

    def jpeg() -> tf.Tensor:
        return _jpeg_size(tf.cast(tf.io.decode_raw(tf.strings.substr(image, 0, _JPEG_HEAD_BYTES), tf.uint8), tf.int32))

    def png() -> tf.Tensor:
        return _number(data, tf.constant([20, 16]), 4, False)

    def gif() -> tf.Tensor:
        return _number(data, tf.constant([8, 6]), 2, True)

    def bmp() -> tf.Tensor:
        return tf.abs(_number(data, tf.constant([22, 18]), 4, True))  # a negative height means rows from the top

    size = tf.case(
        [
            (_starts_with(image, b"\xff\xd8\xff"), jpeg),
            (_starts_with(image, b"\x89PNG\r\n\x1a\n"), png),
            (_starts_with(image, b"GIF8"), gif),
            (_starts_with(image, b"BM"), bmp),
        ],
        default=lambda: tf.zeros([2], tf.int32),
    )
    return tf.where(tf.reduce_all(size > 0), size, 0)


def exif_orientation(image: tf.Tensor) -> tf.Tensor:
    """The orientation 1..8 that the EXIF block of an encoded JPEG () states; 1 where there is none."""
    head = tf.strings.substr(image, 0, _EXIF_HEAD_BYTES)
    data = tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int32)
    mark = tf.constant(list(b"Exif\0\0"))
    matches = tf.reduce_all(tf.stack([tf.roll(data, -i, 0) == mark[i] for i in range(6)]), axis=0)
    start = tf.cast(tf.argmax(tf.concat([matches, [True]], axis=0)), tf.int32) + 6  # of the TIFF header
    little = _number(data, start, 1, False) == ord("I")
    directory = start + _number(data, start + 4, 4, little)
    entries = tf.minimum(_number(data, directory, 2, little), _MAX_IFD_ENTRIES)
    positions = directory + 2 + 12 * tf.range(_MAX_IFD_ENTRIES)
    right = (_number(data, positions, 2, little) == 0x0112) & (tf.range(_MAX_IFD_ENTRIES) < entries)
    values = _number(data, positions + 8, 2, little)
    value = tf.reduce_max(tf.where(right, values, 0))
    known = tf.reduce_any(matches) & (value >= 1) & (value <= 8) & _starts_with(image, b"\xff\xd8")
    return tf.where(known, value, 1)


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Undo an EXIF orientation of an (H, W, 3) image."""
    # Orientations 5..8 are those of 1..4 with rows and columns exchanged.
    turned = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    flip_x = tf.reduce_any(orientation == [2, 3, 6, 7])
    flip_y = tf.reduce_any(orientation == [3, 4, 7, 8])
    turned = tf.cond(flip_x, lambda: turned[:, ::-1], lambda: turned)
    return tf.cond(flip_y, lambda: turned[::-1], lambda: turned)


def decode(image: tf.Tensor, max_pixels: int) -> tuple[tf.Tensor, tf.Tensor]:
    """One encoded image () to upright RGB.

    Returns:
        Pixels (H, W, 3) uint8, and "" or what is wrong with the image; its pixels are then a single black one. An image
        whose header states more than max_pixels is not decoded.
    """
    size = tf.cast(image_size(image), tf.int64)
    problem = tf.case(
        [(size[0] * size[1] == 0, lambda: NOT_AN_IMAGE), (size[0] * size[1] > max_pixels, lambda: TOO_LARGE)],
        default=lambda: OK,
    )
    black = tf.zeros((1, 1, 3), tf.uint8)

    def decoded() -> tuple[tf.Tensor, tf.Tensor]:
        # Only a data set turns the error of an operation into something that a graph can go on from.
        whole = tf.data.Dataset.from_tensors(image).map(_decode_whole).ignore_errors()
        either = whole.concatenate(tf.data.Dataset.from_tensors((black, False)))
        pixels, good = either.take(1).get_single_element()
        return pixels, tf.where(good, OK, UNDECODABLE)

    return tf.cond(problem == OK, decoded, lambda: (black, problem))


def _decode_whole(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
    pixels.set_shape((None, None, 3))
    return _upright(pixels, exif_orientation(image)), True
