"""Exports of CVAT (images 1.1) and Label Studio (JSON), as the tools write them."""

import json
import math

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.data import DataError, load_dataset
from kmaskrcnn.data.readers import recognize

HEIGHT, WIDTH = 40, 80


def _decoded(dataset, row):
    rle = dataset.segmentations[row]
    rle = mask_utils.merge(mask_utils.frPyObjects(rle, HEIGHT, WIDTH)) if isinstance(rle, list) else rle
    return mask_utils.decode(rle).astype(bool)


def _box(y0, x0, y1, x1):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def _iou(a, b):
    return (a & b).sum() / (a | b).sum()


# CVAT

POLYGON = (
    '<polygon label="cat" source="manual" occluded="0" points="10.0,5.0;30.0,5.0;30.0,25.0;10.0,25.0" z_order="0"/>'
)


def _cvat(folder, shapes, size=f'width="{WIDTH}" height="{HEIGHT}"', head="<annotations><version>1.1</version>"):
    (folder / "images").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / name)
    images = f'<image id="0" name="a.png" {size}>{shapes}</image>'
    images += f'<image id="1" name="b.png" width="{WIDTH}" height="{HEIGHT}"></image>'
    (folder / "annotations.xml").write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{head}{images}</annotations>')
    return str(folder / "annotations.xml")


def test_cvat_with_every_shape(tmp_path):
    box = '<box label="dog" occluded="0" xtl="40" ytl="10" xbr="60" ybr="20" z_order="0"{}/>'
    ellipse = '<ellipse label="dog" cx="40" cy="20" rx="20" ry="8" rotation="90.00" z_order="0"/>'
    mask = '<mask label="cat" rle="3, 2, 1, 4, 2" left="50" top="30" width="4" height="3" z_order="0"/>'
    group = POLYGON.replace("/>", ' group_id="3"/>') + mask.replace("/>", ' group_id="3"/>')
    turned = box.format(' rotation="90.00"')
    path = _cvat(tmp_path, POLYGON + box.format("") + turned + ellipse + mask + group + '<tag label="night"/>')
    assert recognize(path) == "cvat"
    dataset = load_dataset(path)
    assert len(dataset) == 2
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.classes.tolist() == [1, 2, 2, 2, 1, 1]
    placed = np.zeros((HEIGHT, WIDTH), bool)
    placed[30:33, 50:54] = np.array([0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0], bool).reshape(3, 4)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    disc = ((y - 20) / 20) ** 2 + ((x - 40) / 8) ** 2 <= 1
    for row, expected in enumerate([_box(5, 10, 25, 30), _box(10, 40, 20, 60), _box(5, 45, 25, 55)]):
        np.testing.assert_array_equal(_decoded(dataset, row), expected)
    assert _iou(_decoded(dataset, 3), disc) > 0.95
    np.testing.assert_array_equal(_decoded(dataset, 4), placed)
    np.testing.assert_array_equal(_decoded(dataset, 5), placed | _box(5, 10, 25, 30))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ('<points label="cat" points="1,2"/>', "a points has no area"),
        ('<polygon label="cat" points="1,2;3"/>', "'points' are not"),
        ('<polygon label="cat" points="1,2;3,4"/>', "2 points"),
        ('<polygon points="1,2;3,4;5,9"/>', "needs a label"),
        ('<polygon label="cat" points="1,2;nan,4;5,9"/>', "not finite"),
        ('<box label="cat" xtl="1"/>', "''"),
        ('<mask label="cat" rle="3, 4" left="0" top="0" width="4" height="3"/>', "do not add up"),
        ('<mask label="cat" rle="3" left="0" top="0" width="99999" height="99999"/>', "more than|does not fit"),
    ],
)
def test_cvat_errors_name_file_and_record(tmp_path, shape, words):
    path = _cvat(tmp_path, POLYGON + shape)
    with pytest.raises(DataError, match=words) as error:
        load_dataset(path)
    assert str(error.value).startswith(f"{path}: image 0 (a.png): ")
    assert len(load_dataset(path, on_bad_record="skip").classes) == 1


@pytest.mark.parametrize(
    "text", ["<annotations>", "<annotations/>", '<?xml version="1.0" encoding="x-9"?><annotations/>']
)
def test_damaged_cvat_files_are_named(tmp_path, text):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.xml: "):
        load_dataset(path)
    with pytest.raises(DataError, match="image 0"):
        load_dataset(_cvat(tmp_path, POLYGON, size='width="x" height="2"'))


# Label Studio


def _encode_brush(mask):
    """RGBA pixels in Label Studio's run-length code: runs of one value where the mask's rows have them."""
    values = np.repeat(np.where(mask, 255, 0).reshape(-1), 4)
    bits = f"{len(values):032b}" + f"{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    ends = np.concatenate([np.flatnonzero(np.diff(values)) + 1, [len(values)]])
    start = 0
    for end in ends.tolist():
        if end - start == 4:  # one pixel: its values one by one
            bits += "0" + "00" + f"{3:03b}" + "".join(f"{v:08b}" for v in values[start:end])
        else:
            bits += "1" + "11" + f"{end - start - 1:016b}" + f"{values[start]:08b}"
        start = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def _result(kind, value, labels=("cat",)):
    sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {
        "id": "x",
        "type": kind,
        "from_name": "l",
        "to_name": "image",
        **sizes,
        "value": {**value, kind: list(labels)},
    }


SQUARE = _result("polygonlabels", {"points": [[12.5, 12.5], [37.5, 12.5], [37.5, 62.5], [12.5, 62.5]]})


def _task(results, image="/data/upload/1/0123abcd-a.png"):
    return {"id": 1, "data": {"image": image}, "annotations": [{"was_cancelled": False, "result": results}]}


def _label_studio(folder, *tasks):
    for name in ("a.png", "b.png", "c d.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    (folder / "export.json").write_text(json.dumps(tasks))
    return str(folder / "export.json")


def test_label_studio_with_every_shape(tmp_path):
    brushed = _box(30, 50, 36, 70)
    brushed[2, 3] = True
    results = [
        SQUARE,
        _result("rectanglelabels", {"x": 50, "y": 25, "width": 25, "height": 25, "rotation": 0}, ["dog"]),
        _result("rectanglelabels", {"x": 50, "y": 25, "width": 25, "height": 25, "rotation": 90}, ["dog"]),
        _result("ellipselabels", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 20, "rotation": 0}, ["dog"]),
        _result("brushlabels", {"format": "rle", "rle": _encode_brush(brushed)}),
        {"type": "choices", "value": {"choices": ["day"]}},
    ]
    tasks = [
        _task(results),
        _task([], "b.png"),
        _task([SQUARE], "/data/local-files/?d=set/c%20d.png"),
    ]
    path = _label_studio(tmp_path, *tasks)
    assert recognize(path) == "label_studio"
    dataset = load_dataset(path)
    assert [len(dataset.instances(i)["boxes"]) for i in range(3)] == [5, 0, 1]
    assert dataset.classes.tolist() == [1, 2, 2, 2, 1, 1]
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for row, expected in enumerate([_box(5, 10, 25, 30), _box(10, 40, 20, 60), _box(10, 30, 30, 40)]):
        np.testing.assert_array_equal(_decoded(dataset, row), expected)
    assert _iou(_decoded(dataset, 3), ((y - 20) / 8) ** 2 + ((x - 40) / 20) ** 2 <= 1) > 0.95
    np.testing.assert_array_equal(_decoded(dataset, 4), brushed)
    assert dataset.file_names[2] == "c d.png"


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (_result("polygonlabels", {"points": [[1, 2], [3, 4]]}), "2 points"),
        (_result("polygonlabels", {"points": [[1, 2, 3]]}), "unpack"),
        (_result("polygonlabels", {}), "lacks 'points'"),
        (_result("polygonlabels", {"points": []}, ["a", "b"]), "not one class"),
        (_result("ellipselabels", {"x": 1, "y": 1, "radiusX": math.inf, "radiusY": 2}), "not finite"),
        (_result("brushlabels", {"rle": [0, 0]}), "ends too early"),
        (_result("brushlabels", {"rle": _encode_brush(np.zeros((3, 3), bool))}), "not the 4 a pixel"),
        (_result("keypointlabels", {"x": 1}), "no area"),
    ],
)
def test_label_studio_errors_name_file_and_record(tmp_path, result, words):
    path = _label_studio(tmp_path, _task([SQUARE, result]))
    with pytest.raises(DataError, match=words) as error:
        load_dataset(path)
    assert str(error.value).startswith(f"{path}: tasks[0] (a.png)")
    assert len(load_dataset(path, on_bad_record="skip").classes) == 1
