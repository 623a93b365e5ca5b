"""Decoding inside the graph, on real files."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kmaskrcnn.data import load_image
from kmaskrcnn.export import encoded_images
from kmaskrcnn.export.encoded_images import NOT_AN_IMAGE, TOO_LARGE, TOO_LONG, TOO_MANY_SCANS, UNDECODABLE
from tests.export.images import encode, formats, picture, with_exif

MAX_PIXELS = 10**6


@pytest.fixture(scope="module")
def decode():
    @tf.function(input_signature=[tf.TensorSpec((), tf.string)])
    def function(image):
        header = encoded_images.read_header(image, MAX_PIXELS)
        return (header.size, *encoded_images.decode(image, header))

    def run(data):
        size, pixels, problem = (x.numpy() for x in function(tf.constant(data)))
        assert tuple(size) == (pixels.shape[:2] if not problem else (0, 0)) or problem.decode() == UNDECODABLE
        return pixels, problem.decode()

    return run


@pytest.mark.parametrize(("name", "data"), list(formats()), ids=[name for name, _ in formats()])
def test_formats_are_read_as_predict_does(name, data, decode, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(data)
    pixels, problem = decode(data)
    assert problem == ""
    np.testing.assert_array_equal(pixels, load_image(str(path)))


def test_cmyk_jpeg_is_turned_to_rgb(decode):
    pixels, problem = decode(encode(picture(40, 60), "JPEG", mode="CMYK", quality=95))
    assert problem == ""
    assert np.abs(pixels.astype(int) - picture(40, 60)).mean() < 3


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_exif_orientation_is_undone(orientation, image_format, byte_order, decode):
    data = with_exif(picture(40, 60), orientation, image_format, byte_order)
    pixels, problem = decode(data)
    assert problem == ""
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 2  # two JPEG decoders; a wrong turn gives over 30


def test_exif_after_large_metadata_is_found(decode):
    """As cameras write it behind an ICC profile and a preview, of 900 kB here."""
    data = with_exif(picture(40, 60), 6)
    segment = b"\xff\xe2\xff\xff" + bytes(0xFFFD)
    pixels, problem = decode(data[:2] + segment * 14 + data[2:])
    assert problem == "" and pixels.shape == (60, 40, 3)


def test_file_turned_by_exif_is_what_predict_reads(decode, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(with_exif(picture(40, 60), 8))
    pixels, expected = decode(path.read_bytes())[0], load_image(str(path))
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 2


def png_stating(width, height):
    data = bytearray(encode(picture(8, 8)))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(data)


def gif_with_a_larger_frame():
    """A second frame of 60,000 x 60,000, which the decoder would make room for."""
    data = encode(picture(8, 8), "GIF")
    frame = data.index(b",\0\0\0\0")
    large = bytearray(data[frame:-1])
    large[5:9] = (60000).to_bytes(2, "little") * 2
    return data[:-1] + bytes(large) + b";"


def test_first_frame_of_a_gif_is_all_that_is_decoded(decode):
    pixels, problem = decode(gif_with_a_larger_frame())
    assert problem == "" and pixels.shape == (8, 8, 3)


def many_scans():
    data = encode(picture(40, 60), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * 50 + data[-2:]


REFUSED = {
    "empty": (b"", NOT_AN_IMAGE),
    "junk": (b"junk", NOT_AN_IMAGE),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NOT_AN_IMAGE),
    "tiff": (encode(picture(40, 60), "TIFF"), NOT_AN_IMAGE),
    "jpeg mark alone": (b"\xff\xd8\xff", UNDECODABLE),
    "jpeg of fill bytes": (b"\xff\xd8" + b"\xff" * 500_000, UNDECODABLE),
    "jpeg cut": (encode(picture(40, 60), "JPEG")[:-100], UNDECODABLE),
    "png cut": (encode(picture(40, 60))[:200], UNDECODABLE),
    "gif cut": (encode(picture(40, 60), "GIF")[:-50], UNDECODABLE),
    "webp cut": (encode(picture(40, 60), "WEBP")[:-50], UNDECODABLE),
    "animated webp": (
        encode(picture(40, 60), "WEBP", save_all=True, append_images=[Image.fromarray(picture(40, 60, 1))]),
        UNDECODABLE,
    ),
    "bmp cut": (encode(picture(40, 60), "BMP")[:-50], UNDECODABLE),
    "bmp with a palette": (encode(picture(40, 60), "BMP", mode="P"), UNDECODABLE),
    "bmp of one bit": (encode(picture(40, 60), "BMP", mode="1"), UNDECODABLE),
    "png bomb": (png_stating(60000, 60000), TOO_LARGE),
    "png bomb past 31 bits": (png_stating(2**31, 2**31), UNDECODABLE),
    "one pixel too wide": (encode(np.zeros((1, 10**6 + 1, 3), np.uint8)), TOO_LARGE),
    "jpeg a little too large": (encode(np.zeros((1001, 1000, 3), np.uint8), "JPEG"), TOO_LARGE),
    "long file": (encode(picture(8, 8)) + bytes(8 * MAX_PIXELS), TOO_LONG),
    "scans": (many_scans(), TOO_MANY_SCANS),
}


@pytest.mark.parametrize(("data", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_decoded_says_so(data, expected, decode):
    pixels, problem = decode(data)
    assert problem == expected
    assert pixels.shape == (1, 1, 3)


def test_a_header_that_lies_is_damage(decode):
    """A JPEG of two frame headers: the size that is checked must be the size that comes."""
    data = encode(picture(40, 60), "JPEG")
    frame = data.index(b"\xff\xc0")
    other = bytearray(data[frame : frame + 19])
    other[5:7] = (20).to_bytes(2, "big")
    pixels, problem = decode(data[:frame] + bytes(other) + data[frame:])
    assert problem == UNDECODABLE and pixels.shape == (1, 1, 3)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(megabytes, piece):
    """A PNG of 64 x 64 pixels whose data go on, packed, in chunks of `piece` bytes."""
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()
    chunks = b"".join(png_chunk(b"IDAT", data[i : i + piece]) for i in range(0, len(data), piece))
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + chunks + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("piece", [1 << 30, 8192])
def test_a_png_that_unpacks_to_more_than_its_pixels_is_refused_unread(piece, decode):
    """Its decoder would unpack all of it: 1 GB takes it seconds."""
    data = bomb(200, piece)
    assert len(data) < 300_000
    assert decode(data)[1] == TOO_LONG
    assert decode(bomb(1, piece))[1] == ""  # a little more is no harm


@pytest.mark.parametrize(("name", "data"), list(formats()), ids=[name for name, _ in formats()])
def test_bytes_behind_an_image_are_refused_or_cut_off(name, data, decode):
    assert decode(data + bytes(10_000_000))[1] == ("" if "gif" in name else TOO_LONG)


def test_the_largest_files_that_encoders_make_are_read(decode):
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 4), np.uint8)
    for pixels in (
        noise,
        noise[..., :3],
        noise[..., 0],
        noise[..., 0].astype(np.uint16) * 257,
        noise[:, :1],
        noise[:1],
    ):
        assert decode(encode(pixels, compress_level=0))[1] == ""
    assert decode(encode(noise[..., :3], "BMP"))[1] == ""
    assert decode(encode(noise[..., :3], "JPEG", quality=100, subsampling=0, comment=bytes(60_000)))[1] == ""
    note = b"a" * 3_000_000
    data = encode(noise[..., :3])
    assert decode(data[:33] + png_chunk(b"tEXt", note) + data[33:])[1] == ""
