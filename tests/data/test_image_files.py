"""Image files of many kinds, against Pillow."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kmaskrcnn.data.image_files import decode_file, load_image, read_header

RNG = np.random.default_rng(0)
PIXELS = np.repeat(np.repeat(RNG.integers(0, 255, (6, 8, 3), np.uint8), 8, 0), 8, 1)


def _save(path, image, **options):
    image.save(path, **options)
    return str(path)


@pytest.mark.parametrize(
    ("name", "mode", "tolerance"),
    [
        ("rgb.png", "RGB", 0),
        ("gray.png", "L", 0),
        ("palette.png", "P", 0),
        ("alpha.png", "RGBA", 0),
        ("rgb.bmp", "RGB", 0),
        ("palette.gif", "P", 0),
        ("rgb.webp", "RGB", 0),
        ("rgb.tif", "RGB", 0),
        ("rgb.jpg", "RGB", 6),
        ("gray.jpg", "L", 6),
        ("cmyk.jpg", "CMYK", 6),
    ],
)
def test_kinds_of_files(tmp_path, name, mode, tolerance):
    path = _save(tmp_path / name, Image.fromarray(PIXELS).convert(mode))
    header = read_header(path)
    assert (header.height, header.width) == (48, 64)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    for result in (load_image(path), decode_file(tf.constant(path), tf.constant(header.by_pillow)).numpy()):
        assert result.dtype == np.uint8
        assert np.abs(result.astype(int) - expected).max() <= tolerance


def test_sixteen_bits_keep_the_high_byte(tmp_path):
    values = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 21
    path = _save(tmp_path / "deep.png", Image.fromarray(values))
    np.testing.assert_allclose(load_image(path)[..., 0], values >> 8, atol=1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_prediction_turns_pictures_upright_and_training_leaves_them(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / "turned.jpg", Image.fromarray(PIXELS), exif=exif, quality=95)
    with Image.open(path) as image:
        upright, stored = np.asarray(ImageOps.exif_transpose(image)).astype(int), np.asarray(image).astype(int)
    assert np.abs(load_image(path).astype(int) - upright).max() <= 6
    assert np.abs(decode_file(tf.constant(path), tf.constant(False)).numpy().astype(int) - stored).max() <= 6
    assert read_header(path).orientation == orientation


@pytest.mark.parametrize("name", ["cut.jpg", "cut.png", "cut.webp"])
def test_cut_files_are_named(tmp_path, name):
    path = tmp_path / name
    _save(path, Image.fromarray(RNG.integers(0, 255, (200, 200, 3), np.uint8)))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(OSError, match="truncated or damaged"):
        read_header(str(path))
    with pytest.raises(OSError, match=name):
        load_image(str(path))


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(OSError, match=r"text\.jpg: not an image"):
        load_image(str(tmp_path / "text.jpg"))
    with pytest.raises(FileNotFoundError, match=r"none\.jpg: no such file"):
        load_image(str(tmp_path / "none.jpg"))
