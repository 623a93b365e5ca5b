"""Decoding inside the graph, on real files."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kmaskrcnn.data import load_image
from kmaskrcnn.export import encoded_images
from tests.export.conftest import encode, picture

MAX_PIXELS = 10**6


@pytest.fixture(scope="module")
def decode():
    specification = tf.TensorSpec((), tf.string)
    function = tf.function(lambda x: encoded_images.decode(x, MAX_PIXELS), input_signature=[specification])

    def run(data):
        pixels, problem = function(tf.constant(data))
        return pixels.numpy(), problem.numpy().decode()

    return run


def variants():
    pixels = picture(40, 60)
    gray = np.asarray(Image.fromarray(pixels).convert("L"))
    yield "png", encode(pixels)
    yield "jpeg", encode(pixels, "JPEG")
    yield "progressive jpeg", encode(pixels, "JPEG", progressive=True)
    yield "bmp", encode(pixels, "BMP")
    yield "gray png", encode(gray)
    yield "gray jpeg", encode(gray, "JPEG")
    yield "16-bit png", encode((gray.astype(np.uint16) * 257), "PNG")
    alpha = np.concatenate([pixels, np.full((40, 60, 1), 128, np.uint8)], -1)
    yield "alpha png", encode(alpha)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE).save(buffer, "PNG")
    yield "palette png", buffer.getvalue()
    buffer = io.BytesIO()
    frames = [Image.fromarray(picture(40, 60, seed)).convert("P") for seed in (1, 2)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    yield "animated gif", buffer.getvalue()
    yield "one pixel", encode(pixels[:1, :1])


@pytest.mark.parametrize(("name", "data"), list(variants()), ids=[name for name, _ in variants()])
def test_formats_are_read_as_predict_does(name, data, decode, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(data)
    pixels, problem = decode(data)
    assert problem == ""
    np.testing.assert_array_equal(pixels, load_image(str(path)))
    assert tuple(encoded_images.image_size(tf.constant(data)).numpy()) == pixels.shape[:2]


def test_cmyk_jpeg_is_read_or_refused(decode):
    buffer = io.BytesIO()
    Image.fromarray(picture(40, 60)).convert("CMYK").save(buffer, "JPEG")
    pixels, problem = decode(buffer.getvalue())
    assert problem == encoded_images.UNDECODABLE or np.abs(pixels.astype(int) - picture(40, 60)).mean() < 20


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_exif_orientation_is_undone(orientation, byte_order, decode):
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F] = "somebody's camera"
    exif[0x0112] = orientation
    data = encode(picture(40, 60), "JPEG", exif=exif.tobytes(), quality=95)
    pixels, problem = decode(data)
    assert problem == ""
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 2  # two JPEG decoders; a wrong turn gives over 30


def bomb():
    """A PNG header that states 60,000 x 60,000 pixels."""
    data = bytearray(encode(picture(8, 8)))
    data[16:24] = (60000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", encoded_images.NOT_AN_IMAGE),
        (b"junk", encoded_images.NOT_AN_IMAGE),
        (b"\xff\xd8\xff", encoded_images.NOT_AN_IMAGE),
        (encode(picture(40, 60), "WEBP"), encoded_images.NOT_AN_IMAGE),
        (encode(picture(40, 60))[:200], encoded_images.UNDECODABLE),
        (bomb(), encoded_images.TOO_LARGE),
        (encode(np.zeros((1001, 1000, 3), np.uint8), "JPEG"), encoded_images.TOO_LARGE),
    ],
)
def test_what_cannot_be_decoded_says_so(data, expected, decode):
    pixels, problem = decode(data)
    assert problem == expected
    assert pixels.shape == (1, 1, 3)


@pytest.mark.parametrize("count", [300, pytest.param(12000, marks=pytest.mark.slow)])
def test_mutated_files_neither_crash_nor_raise(count, decode):
    random = np.random.default_rng(count)
    sources = [data for _, data in variants()]
    outcomes = dict.fromkeys(("", encoded_images.NOT_AN_IMAGE, encoded_images.TOO_LARGE, encoded_images.UNDECODABLE), 0)
    for i in range(count):
        data = bytearray(sources[random.integers(len(sources))])
        kind = i % 4
        if kind == 0:
            del data[random.integers(len(data)) :]
        elif kind == 1:
            for position in random.integers(0, len(data), random.integers(1, 20)):
                data[position] ^= 1 << random.integers(8)
        elif kind == 2:
            start = random.integers(0, 40)
            data[start : start + 8] = random.bytes(8)
        else:
            data = bytearray(bytes(data[:4]) + random.bytes(random.integers(0, 300)))
        pixels, problem = decode(bytes(data))
        outcomes[problem] += 1
        assert pixels.ndim == 3 and pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    print(f"{count} mutated files: {outcomes}")
    assert sum(outcomes.values()) == count and min(outcomes[""], outcomes[encoded_images.UNDECODABLE]) > 0
