"""LabelMe's groups, moved and embedded images; mask files that were smoothed or hold other numbers; XML of any kind."""

import base64
import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.data import DataError, load_dataset
from kmaskrcnn.data.doctor.examine import examine
from kmaskrcnn.data.doctor.repair import write_repaired
from kmaskrcnn.data.readers import read_raw
from kmaskrcnn.data.readers.write_tfrecord import write_shards
from kmaskrcnn.data.sets.raw_set import encode_mask, encode_part

SIDE = 64


def _image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def _polygon(x, group=1, label="a"):
    points = [[x, 5], [x + 10, 5], [x + 10, 15], [x, 15]]
    return {"label": label, "points": points, "group_id": group, "shape_type": "polygon", "flags": {}}


def _mask(x, group=1, label="a"):
    buffer = io.BytesIO()
    Image.new("L", (10, 10), 255).save(buffer, "PNG")
    shape = {"label": label, "points": [[x, 5], [x + 9, 14]], "group_id": group, "shape_type": "mask", "flags": {}}
    return {**shape, "mask": base64.b64encode(buffer.getvalue()).decode()}


def _labelme(folder, shapes, name="x.json", **changes):
    tree = {"shapes": shapes, "imagePath": "a.png", "imageData": None, "imageHeight": SIDE, "imageWidth": SIDE}
    (folder / name).write_text(json.dumps({**tree, **changes}))


def _decoded(dataset, row):
    rle = dataset.segmentations[row]
    rle = mask_utils.merge(mask_utils.frPyObjects(rle, SIDE, SIDE)) if isinstance(rle, list) else rle
    return mask_utils.decode(rle).astype(bool)


@pytest.mark.parametrize("kinds", [(_polygon, _polygon), (_mask, _mask), (_polygon, _mask), (_mask, _polygon)])
def test_a_group_of_any_shapes_is_one_object(tmp_path, kinds):
    _image(tmp_path / "a.png")
    _labelme(tmp_path, [kinds[0](5), kinds[1](40), _mask(20, None), _polygon(20, 1, "b"), kinds[0](20, 2)])
    dataset = load_dataset(tmp_path)
    assert dataset.classes.tolist() == [1, 1, 2, 1]
    expected = np.zeros((SIDE, SIDE), bool)
    expected[5:15, 5:15] = expected[5:15, 40:50] = True
    np.testing.assert_array_equal(_decoded(dataset, 0), expected)
    np.testing.assert_allclose(dataset.boxes[0], [5, 5, 15, 50])


@pytest.mark.parametrize("group", [[], {}, [1]])
def test_a_group_that_is_no_number_is_named(tmp_path, group):
    _image(tmp_path / "a.png")
    _labelme(tmp_path, [_polygon(5, group), _polygon(40)])
    with pytest.raises(DataError, match=r"x\.json: shapes\[0\] \(a\): group_id .* is not a number"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("image_path", "images"),
    [("C:\\data\\a.png", ""), ("../images/a.png", ""), ("../gone/a.png", "pictures"), ("/home/me/a.png", "")],
)
def test_a_moved_image_is_found_by_its_bare_name(tmp_path, image_path, images):
    pixels = _image(tmp_path / images / "a.png")
    _labelme(tmp_path, [_polygon(5)], imagePath=image_path)
    dataset = load_dataset(tmp_path, str(tmp_path / images) if images else "")
    np.testing.assert_array_equal(dataset.image(0), pixels)


def test_an_embedded_image_is_read_where_there_is_no_other(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    pixels = _image(folder / "a.png")
    data = base64.b64encode((folder / "a.png").read_bytes()).decode()
    os.remove(folder / "a.png")
    _labelme(folder, [_polygon(5)], imageData=data)
    dataset = load_dataset(folder)
    np.testing.assert_array_equal(dataset.image(0), pixels)
    copy = load_dataset(write_repaired(examine(read_raw(str(folder))), str(tmp_path / "copy")))
    np.testing.assert_array_equal(copy.image(0), pixels)
    write_shards(dataset, str(tmp_path / "shards"))
    np.testing.assert_array_equal(load_dataset(tmp_path / "shards").image(0), pixels)
    for bad, words in (("!" * 40, "not an image|not base64"), (data[:-400], "truncated")):
        _labelme(folder, [_polygon(5)], imageData=bad)
        with pytest.raises(DataError, match=words):
            load_dataset(folder)


def test_sizes_beyond_any_image_take_no_memory(tmp_path):
    _image(tmp_path / "a.png")
    _labelme(tmp_path, [_mask(5)], imageHeight=10**6, imageWidth=10**6)
    with pytest.raises(DataError, match=r"x\.json: imageHeight and imageWidth: .* more than"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (3, 60), (-4, -3), (60, 2), (-20, 5), (70, 70)])
def test_a_part_of_a_mask_is_placed_without_the_whole(top, left):
    part = np.random.default_rng(1).random((9, 12)) > 0.4
    whole = np.zeros((SIDE + 40, SIDE + 40), bool)
    if top > -20:
        whole[20 + top : 29 + top, 20 + left : 32 + left] = part[: max(SIDE + 20 - top, 0)][
            :, : max(SIDE + 20 - left, 0)
        ]
    assert encode_part(part, top, left, SIDE, SIDE) == encode_mask(whole[20:-20, 20:-20])


# Mask files


def _mask_set(folder, array, ending="png"):
    _image(folder / "images" / "a.png")
    (folder / "masks").mkdir(exist_ok=True)
    Image.fromarray(array).save(folder / "masks" / f"a.{ending}")


def _two_squares(value):
    array = np.zeros((SIDE, SIDE), type(value))
    array[5:15, 5:15], array[40:50, 40:50] = value, 2 * value
    return array


@pytest.mark.parametrize("times", [1, 2])
def test_smoothed_masks_are_named_and_not_dozens_of_objects(tmp_path, times):
    image = Image.fromarray(((_two_squares(np.uint8(1)) > 0) * 255).astype(np.uint8))
    for _ in range(times):
        image = image.resize((37, 37), Image.Resampling.BILINEAR).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    _mask_set(tmp_path, np.asarray(image))
    with pytest.raises(DataError, match=r"masks/a\.png: .* a smoothed mask"):
        load_dataset(tmp_path)
    assert "smooth-mask" in examine(read_raw(str(tmp_path))).findings.counts()


def test_smoothed_masks_of_single_objects_are_cut_at_half(tmp_path):
    sharp = (_two_squares(np.uint8(1)) == 1).astype(np.uint8) * 255
    small = Image.fromarray(sharp).resize((45, 45), Image.Resampling.BILINEAR)
    _image(tmp_path / "images" / "a.png")
    (tmp_path / "masks" / "a").mkdir(parents=True)
    small.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(tmp_path / "masks" / "a" / "0.png")
    dataset = load_dataset(tmp_path)
    assert len(dataset.classes) == 1
    found = _decoded(dataset, 0)
    assert (found & (sharp > 0)).sum() / (found | (sharp > 0)).sum() > 0.8


def test_many_small_objects_are_no_smoothed_mask(tmp_path):
    array = np.zeros((SIDE, SIDE), np.uint8)
    for number in range(1, 40):
        y, x = divmod(number, 8)
        array[8 * y : 8 * y + 1 + number % 3, 8 * x : 8 * x + 1 + number % 2] = number
    _mask_set(tmp_path, array)
    assert len(load_dataset(tmp_path).classes) == 39


@pytest.mark.parametrize("value", [np.float32(1), np.float32(300), np.int32(70000), np.uint16(30000)])
def test_label_images_of_any_whole_numbers_keep_their_objects(tmp_path, value):
    _mask_set(tmp_path, _two_squares(value), "tif")
    dataset = load_dataset(tmp_path)
    assert len(dataset.classes) == 2
    np.testing.assert_array_equal(_decoded(dataset, 1), _two_squares(value) == 2 * value)


@pytest.mark.parametrize("value", [np.float32(0.4), np.float32(np.nan), np.int32(-3)])
def test_label_images_of_other_numbers_are_named(tmp_path, value):
    _mask_set(tmp_path, _two_squares(value), "tif")
    with pytest.raises(DataError, match=r"masks/a\.tif: the mask cannot be read \(holds"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder link"])
def test_masks_that_are_no_files_are_not_waited_for(tmp_path, kind):
    _mask_set(tmp_path, _two_squares(np.uint8(1)))
    path = tmp_path / "masks" / "a.png"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else path)
    with pytest.raises(DataError, match=r"a\.png"):
        load_dataset(tmp_path, data_format="masks")


@pytest.mark.parametrize(
    "xml",
    [
        '<?xml version="1.0" encoding="utf-99"?><a/>',
        '<?xml version="1.0" encoding="big5"?><a/>',
        '<?xml version="1.0" encoding="rot13"?><a/>',
        "<a>" * 3000,
        '<!DOCTYPE a [<!ENTITY e "x"><!ENTITY f "' + "&e;" * 50000 + '">]><a>' + "&f;" * 9000 + "</a>",
    ],
)
def test_xml_of_any_kind_is_named(tmp_path, xml):
    _image(tmp_path / "JPEGImages" / "a.jpg")
    for name in ("Annotations", "SegmentationObject"):
        (tmp_path / name).mkdir()
    Image.fromarray(_two_squares(np.uint8(1))).save(tmp_path / "SegmentationObject" / "a.png")
    (tmp_path / "Annotations" / "a.xml").write_text(xml)
    with pytest.raises(DataError, match=r"Annotations/a\.xml"):
        load_dataset(tmp_path)
