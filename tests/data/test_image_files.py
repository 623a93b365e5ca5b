"""Image files of many kinds, against Pillow."""

import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kmaskrcnn.config import DataConfig
from kmaskrcnn.data import DataError, evaluation_dataset, load_coco
from kmaskrcnn.data.image_files import decode_file, load_image, read_header
from kmaskrcnn.export import answers
from kmaskrcnn.export.litert_client import decode_image

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
        ("rgb.jpg", "RGB", 0),
        ("gray.jpg", "L", 0),
        ("cmyk.jpg", "CMYK", 0),
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


@pytest.mark.parametrize(("values", "photometric"), [(np.uint16, 1), (np.uint16, 0), (np.int32, 1), (np.float32, 1)])
def test_deep_tiff_keeps_its_high_byte(tmp_path, values, photometric):
    ramp = np.linspace(0, 1, 48 * 64).reshape(48, 64)
    pixels = (ramp if values == np.float32 else ramp * 65535).astype(values)
    path = _save(tmp_path / "deep.tif", Image.fromarray(pixels), tiffinfo={262: photometric})
    expected = ramp * 255 if photometric else 255 - ramp * 255
    np.testing.assert_allclose(load_image(path)[..., 0], expected, atol=1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.linspace(0, 255, 64, dtype=np.float32), "floating-point pixels of 0..255"),
        (np.full(64, np.nan, np.float32), "floating-point"),
        (np.arange(64, dtype=np.int32), "32-bit integers of 0..63"),
        (np.arange(64, dtype=np.int32) * 9999, "32-bit integers"),
    ],
)
def test_pixels_without_a_sure_reading_are_named_and_not_black(tmp_path, values, words):
    path = _save(tmp_path / "odd.tif", Image.fromarray(values.reshape(8, 8)))
    for read in (load_image, read_header):
        with pytest.raises(OSError, match=words):
            read(path)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"optimize": True, "quality": 98}])
def test_jpeg_has_the_pixels_of_pillow(tmp_path, subsampling, options):
    y, x = np.mgrid[:61, :83]
    colors = np.stack([3 * x, 4 * y, 128 + 100 * np.sin(x * y / 50)], -1) + RNG.normal(0, 20, (61, 83, 3))
    image = Image.fromarray(colors.clip(0, 255).astype(np.uint8))
    for name, kind in (("color.jpg", image), ("gray.jpg", image.convert("L"))):
        more = {"subsampling": subsampling} if name == "color.jpg" else {}
        path = _save(tmp_path / name, kind, **more, **options)
        with Image.open(path) as stored:
            np.testing.assert_array_equal(load_image(path), np.asarray(stored.convert("RGB")))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_in_training_evaluation_and_prediction(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / f"turned.{ending}", Image.fromarray(PIXELS), exif=exif, quality=95)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    dataset = load_coco(_coco_of(path, *upright.shape[:2]))
    config = dataclasses.replace(DataConfig(), resize_mode="native", native_scale=1.0)
    batch = next(iter(evaluation_dataset(dataset, config)))
    height, width = upright.shape[:2]
    assert read_header(path).orientation == orientation
    for pixels in (load_image(path), dataset.image(0), batch["images"].numpy()[0, :height, :width]):
        np.testing.assert_array_equal(pixels, upright)


def test_annotations_of_the_pixels_as_stored_are_obeyed_and_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _save(tmp_path / "turned.png", Image.fromarray(PIXELS), exif=exif)
    dataset = load_coco(_coco_of(path, 48, 64))
    np.testing.assert_array_equal(dataset.image(0), PIXELS)
    assert dataset.warnings == {"exif-rotation-ignored": 1}
    assert "would rotate" in dataset.summary()
    with pytest.raises(DataError, match="64 x 48, the annotations 64 x 47"):
        load_coco(_coco_of(path, 47, 64))


def _coco_of(path, height, width):
    box = {"bbox": [4, 4, 8, 8], "segmentation": [[4, 4, 12, 4, 12, 12, 4, 12]]}
    tree = {
        "images": [{"id": 1, "file_name": path, "height": height, "width": width}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, **box}],
        "categories": [{"id": 1, "name": "a"}],
    }
    target = path + ".json"
    with open(target, "w") as file:
        json.dump(tree, file)
    return target


def test_images_beyond_the_limit_of_pillow_are_sound(tmp_path):
    path = _save(tmp_path / "large.png", Image.new("1", (20000, 10000)))
    assert read_header(path) == (10000, 20000, 1, True)  # TensorFlow's decoders refuse such
    with pytest.raises(OSError, match="more than the"):
        read_header(_save(tmp_path / "huge.png", Image.new("1", (40000, 30000))))


def test_what_is_no_regular_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("pipe.jpg", "a\0b.jpg", "/dev/zero"):
        with pytest.raises(OSError, match=r"not a file name|not a regular file"):
            read_header(os.path.join(tmp_path, name))


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


@pytest.mark.parametrize(
    "name", ["deep.png", "deep.tif", "inverted.tif", "long.tif", "float.tif", "turned.jpg", "cmyk.jpg"]
)
def test_clients_read_the_pixels_that_training_reads(tmp_path, name):
    """A client without TensorFlow has another decoder, and must not make a 16-bit image white."""
    ramp = np.linspace(0, 1, 48 * 64).reshape(48, 64)
    options = {}
    if name.startswith(("deep", "inverted")):
        image = Image.fromarray((ramp * 65535).astype(np.uint16))
        options = {"tiffinfo": {262: 0}} if name.startswith("inverted") else {}
    elif name.startswith(("long", "float")):
        image = Image.fromarray((ramp * 65535).astype(np.int32) if name.startswith("long") else ramp.astype(np.float32))
    else:
        image = Image.fromarray(PIXELS).convert("CMYK" if name.startswith("cmyk") else "RGB")
        if name.startswith("turned"):
            options = {"exif": Image.Exif()}
            options["exif"][0x0112] = 6
    path = _save(tmp_path / name, image, **options)
    expected = load_image(path)
    assert expected.shape == ((64, 48, 3) if name.startswith("turned") else (48, 64, 3)) and expected.std() > 10
    np.testing.assert_array_equal(decode_image(Path(path).read_bytes()), expected)


def test_clients_refuse_pixels_of_no_known_brightness():
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(-3, 900, 4096, dtype=np.float32).reshape(64, 64)).save(buffer, "TIFF")
    with pytest.raises(answers.ImageError, match=r"floating-point pixels of -3\.\.900, not 0\.\.1"):
        decode_image(buffer.getvalue())
