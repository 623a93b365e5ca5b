"""Readers of people's own annotations, on files written here as the tools write them."""

import base64
import io
import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.config import fields
from kmaskrcnn.data import DataError, load_dataset
from kmaskrcnn.data.readers import FORMATS, recognize
from kmaskrcnn.data.sets.class_names import parse_class_map, parse_class_names
from kmaskrcnn.results.labels import Labels

HEIGHT, WIDTH = 48, 64
POLYGON = [(5.0, 6.0), (30.0, 6.0), (30.0, 20.0), (5.0, 20.0)]


def _picture(path, size=(HEIGHT, WIDTH), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(path)


def _full_mask(dataset, row, size=(HEIGHT, WIDTH)):
    segmentation = dataset.segmentations[row]
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, *size))
    return mask_utils.decode(segmentation).astype(bool)


def _disc(y, x, radius_y, radius_x, angle=0.0):
    """(HEIGHT, WIDTH) bool, pixels whose center lies in an ellipse."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    u = (columns - x) * math.cos(angle) + (rows - y) * math.sin(angle)
    v = -(columns - x) * math.sin(angle) + (rows - y) * math.cos(angle)
    return (u / radius_x) ** 2 + (v / radius_y) ** 2 <= 1


def _iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_every_form_is_a_choice_of_the_setting():
    assert set(fields()["data_format"][0].metadata["choices"]) == {"auto", *FORMATS}


# LabelMe


def _labelme(folder, name="one.json", **changes):
    _picture(folder / "one.jpg")
    part = np.zeros((8, 10), bool)
    part[2:, :7] = True
    png = io.BytesIO()
    Image.fromarray(part).save(png, "PNG")

    def shape(label, kind, points, **more):
        return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}

    tree = {
        "version": "5.4.1",
        "flags": {},
        "shapes": [
            shape("cat", "polygon", POLYGON),
            shape("dog", "rectangle", [[60.0, 40.0], [40.0, 30.0]]),
            shape("dog", "circle", [[20.0, 30.0], [20.0, 38.0]]),
            shape("cat", "mask", [[50.0, 2.0], [59.0, 9.0]], mask=base64.b64encode(png.getvalue()).decode()),
            shape("cat", "polygon", [[1, 1], [4, 1], [4, 4]], group_id=7),
            shape("cat", "polygon", [[1, 40], [4, 40], [4, 44]], group_id=7),
        ],
        "imagePath": "one.jpg",
        "imageData": None,
        "imageHeight": HEIGHT,
        "imageWidth": WIDTH,
    }
    (folder / name).write_text(json.dumps(tree | changes))
    return tree


def test_labelme(tmp_path):
    _labelme(tmp_path)
    assert recognize(str(tmp_path)) == "labelme"
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.classes.tolist() == [1, 2, 2, 1, 1]
    np.testing.assert_allclose(dataset.boxes[:2], [[6, 5, 20, 30], [30, 40, 40, 60]])
    assert _iou(_full_mask(dataset, 2), _disc(30, 20, 8, 8)) > 0.95
    placed = np.zeros((HEIGHT, WIDTH), bool)
    placed[4:10, 50:57] = True
    np.testing.assert_array_equal(_full_mask(dataset, 3), placed)
    assert len(dataset.segmentations[4]) == 2  # one instance in two parts
    np.testing.assert_allclose(dataset.boxes[4], [1, 1, 44, 4])


def test_labelme_with_a_large_photograph_in_its_first_file(tmp_path, monkeypatch):
    """Files of megabytes are not parsed to recognize them."""
    _labelme(tmp_path)
    monkeypatch.setattr("kmaskrcnn.data.readers._WHOLE_BYTES", 500)
    assert (tmp_path / "one.json").stat().st_size > 500
    assert recognize(str(tmp_path)) == "labelme"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shapes": [{"label": "cat", "points": [[1, 2]], "shape_type": "point"}]}, ["shapes[0] (cat)", "'point'"]),
        ({"shapes": [{"label": "cat", "points": [[1, 2], [5, 6]]}]}, ["shapes[0] (cat)", "2 points"]),
        ({"shapes": [{"label": "cat", "points": []}]}, ["shapes[0] (cat)", "empty"]),
        ({"shapes": [{"label": "cat", "points": "x"}]}, ["shapes[0] (cat)", "pairs of numbers"]),
        ({"shapes": [{"points": POLYGON}]}, ["shapes[0]", "'label'"]),
        (
            {"shapes": [{"label": "cat", "points": [[1, 1], [9, 9]], "shape_type": "mask", "mask": "!"}]},
            ["shapes[0] (cat)", "not a base64 PNG"],
        ),
        ({"imageHeight": 40}, ["bad.json", "64 x 48", "64 x 40"]),
        ({"imageHeight": None}, ["bad.json", "imageHeight"]),
        ({"imagePath": "two.jpg"}, ["bad.json", "two.jpg", "missing"]),
        ({"shapes": None}, ["bad.json", "not a LabelMe file"]),
    ],
)
def test_labelme_errors_name_file_and_record(tmp_path, change, words):
    _labelme(tmp_path)
    _labelme(tmp_path, "bad.json", **change)
    with pytest.raises(DataError) as error:
        load_dataset(tmp_path)
    line = str(error.value).splitlines()[0]
    for word in [str(tmp_path), "bad.json", *words]:
        assert word in line
    kept = load_dataset(tmp_path, on_bad_record="skip")
    assert len(kept.classes) == 5
    assert kept.report.total() >= 1


# Pascal VOC


def _voc(root, objects=(("cat", 0), ("dog", 0), ("dog", 1)), name="2007_000032"):
    """Three rectangles, the second in two parts, with a rim of void pixels, as palette PNG."""
    _picture(root / "JPEGImages" / f"{name}.jpg")
    for folder in ("Annotations", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    index = np.zeros((HEIGHT, WIDTH), np.uint8)
    index[4:14, 4:24] = 255
    index[5:13, 5:23] = 1
    index[20:30, 10:15] = index[20:30, 40:60] = 2
    index[40:46, 3:9] = 3
    png = Image.fromarray(index)
    png.putpalette(np.random.default_rng(0).integers(0, 255, 768, np.uint8).tobytes())
    png.save(root / "SegmentationObject" / f"{name}.png")
    tree = ElementTree.Element("annotation")
    for label, difficult in objects:
        node = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(node, "name").text = label
        ElementTree.SubElement(node, "difficult").text = str(difficult)
    ElementTree.ElementTree(tree).write(root / "Annotations" / f"{name}.xml")
    (root / "ImageSets/Segmentation/train.txt").write_text(f"{name}\n")
    return index


def test_voc(tmp_path, monkeypatch):
    index = _voc(tmp_path)
    _voc(tmp_path, name="2008_000001")
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("2007_000032\n")
    assert recognize(str(tmp_path)) == "voc"
    assert len(load_dataset(tmp_path)) == 2
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("ImageSets/Segmentation/train.txt")) == 1
    dataset = load_dataset(tmp_path / "ImageSets/Segmentation/train.txt")
    assert dataset.file_names == ["2007_000032.jpg"]
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.classes.tolist() == [1, 2, 2]
    assert dataset.is_crowd.tolist() == [False, False, True]
    for row in range(3):
        np.testing.assert_array_equal(_full_mask(dataset, row), index == row + 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: _voc(root, [("cat", 0)] * 4, "bad"), ["bad.xml: object 4 (cat)", "no pixel of value 4"]),
        (lambda root: _voc(root, [("cat", 0)] * 2, "bad"), ["bad.png: value 3", "2 objects"]),
        (lambda root: (root / "Annotations/bad.xml").unlink(), ["Annotations/bad.xml is missing"]),
        (lambda root: (root / "Annotations/bad.xml").write_text("<a>"), ["bad.xml", "not XML"]),
        (lambda root: (root / "SegmentationObject/bad.png").write_bytes(b"x"), ["bad.png", "cannot be read"]),
        (lambda root: (root / "JPEGImages/bad.jpg").unlink(), ["bad", "no image"]),
        (lambda root: _picture(root / "JPEGImages/bad.jpg", (20, 20)), ["bad.png", "20 x 20"]),
    ],
)
def test_voc_errors_name_file_and_record(tmp_path, change, words):
    _voc(tmp_path)
    _voc(tmp_path, name="bad")
    change(tmp_path)
    with pytest.raises(DataError) as error:
        load_dataset(tmp_path)
    line = str(error.value).splitlines()[0]
    for word in [str(tmp_path), *words]:
        assert word in line
    assert len(load_dataset(tmp_path, on_bad_record="skip").classes) >= 3


# Folders of masks


def _two_masks():
    first, second = np.zeros((2, HEIGHT, WIDTH), bool)
    first[3:13, 4:24] = True
    second[20:40, 30:44] = True
    return first, second


@pytest.mark.parametrize("layout", ["indexed", "16 bits", "colors", "suffix", "folders", "one folder an image"])
def test_mask_folders(tmp_path, layout):
    masks = _two_masks()
    index = masks[0] * 1 + masks[1] * 2
    if layout == "one folder an image":
        for name in ("a", "b"):
            _picture(tmp_path / name / "images" / f"{name}.png")
            (tmp_path / name / "masks").mkdir()
            for i, mask in enumerate(masks):
                Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / name / "masks" / f"{i}.png")
    else:
        (tmp_path / "masks").mkdir()
        for name in ("a", "b"):
            _picture(tmp_path / "images" / f"{name}.jpg")
            target = tmp_path / "masks" / f"{name}.png"
            if layout == "indexed":
                Image.fromarray(index.astype(np.uint8)).save(target)
            elif layout == "16 bits":
                Image.fromarray((index * 300).astype(np.uint16)).save(target)
            elif layout == "colors":
                Image.fromarray(np.stack([index * 0, index * 90, index * 10], -1).astype(np.uint8)).save(target)
            elif layout == "suffix":
                Image.fromarray(index.astype(np.uint8)).save(tmp_path / "masks" / f"{name}_mask.png")
            else:
                target.with_suffix("").mkdir()
                for i, mask in enumerate(masks):
                    Image.fromarray(mask).save(target.with_suffix("") / f"{i}.png")
    assert recognize(str(tmp_path)) == "masks"
    dataset = load_dataset(tmp_path, class_names=["nucleus"])
    assert len(dataset) == 2
    assert dataset.class_names == ["nucleus"]
    for row in range(4):
        np.testing.assert_array_equal(_full_mask(dataset, row), masks[row % 2])
    assert dataset.image(0).shape == (HEIGHT, WIDTH, 3)


def test_mask_folders_of_classes(tmp_path):
    first, second = _two_masks()
    _picture(tmp_path / "images" / "a.jpg")
    for label, mask in (("cat", first), ("dog", second)):
        (tmp_path / "masks" / label).mkdir(parents=True)
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "masks" / label / "a.png")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ["cat", "dog"]
    np.testing.assert_array_equal(_full_mask(dataset, 1), second)


def test_mask_folder_errors_name_file_and_record(tmp_path):
    first, _ = _two_masks()
    for name in "abcd":
        _picture(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "masks").mkdir()
    Image.fromarray(first.astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    Image.fromarray(first[:20].astype(np.uint8)).save(tmp_path / "masks" / "b.png")
    (tmp_path / "masks" / "c.png").write_bytes(b"no")
    with pytest.raises(DataError) as error:
        load_dataset(tmp_path)
    lines = str(error.value).splitlines()
    assert "masks/b.png: the mask has 64 x 20" in lines[0]
    assert "masks/c.png: the mask cannot be read" in lines[1]
    assert "d.jpg: no mask of this image" in lines[2]
    assert len(load_dataset(tmp_path, on_bad_record="skip").classes) == 1


# Names of classes, paths


def test_class_maps_and_names(tmp_path):
    _labelme(tmp_path)
    joined = load_dataset(tmp_path, class_map={"cat": "animal", "dog": "animal"})
    assert joined.class_names == ["animal"]
    assert len(joined.classes) == 5
    dropped = load_dataset(tmp_path, class_map={"cat": ""})
    assert dropped.class_names == ["dog"]
    assert dropped.classes.tolist() == [1, 1]
    assert dropped.report.total() == 0
    ordered = load_dataset(tmp_path, class_names=["dog", "horse", "cat"])
    assert ordered.classes.tolist() == [3, 1, 1, 3, 3]
    with pytest.raises(DataError, match=r"one\.json: shapes\[1\] \(dog\): class 'dog' is not among"):
        load_dataset(tmp_path, class_names=["cat"])
    with pytest.raises(DataError, match="class_map: no class 'bird'"):
        load_dataset(tmp_path, class_map={"bird": "animal"})
    model = load_dataset(tmp_path, labels=Labels(("bird", "cat", "dog"), (3, 8, 9)))
    assert model.category_ids == [3, 8, 9]
    assert model.classes.tolist() == [2, 3, 3, 2, 2]


def test_class_names_and_maps_from_files(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n\n")
    assert parse_class_names([str(tmp_path / "names.txt")]) == ["cat", "dog"]
    (tmp_path / "map.pbtxt").write_text("item {\n id: 2\n name: 'dog'\n}\nitem { name: \"cat\" id: 1 }")
    assert parse_class_names([str(tmp_path / "map.pbtxt")]) == ["cat", "dog"]
    (tmp_path / "map.pbtxt").write_text("item { id: 2 name: 'dog' }")
    with pytest.raises(DataError, match=r"map\.pbtxt: the ids"):
        parse_class_names([str(tmp_path / "map.pbtxt")])
    (tmp_path / "map.txt").write_text("cat=animal\ndog=\n")
    assert parse_class_map([str(tmp_path / "map.txt")]) == {"cat": "animal", "dog": ""}
    (tmp_path / "map.json").write_text('{"cat": "animal"}')
    assert parse_class_map([str(tmp_path / "map.json")]) == {"cat": "animal"}
    assert parse_class_map(["a=b", "c="]) == {"a": "b", "c": ""}
    for bad, words in ((["a=b", "a=c"], "twice"), (["a=b", "c"], "OLD=NEW"), (["gone.txt"], "cannot be read")):
        with pytest.raises(DataError, match=words):
            parse_class_map(bad)


def test_a_form_can_be_forced_and_an_unknown_one_is_named(tmp_path):
    _labelme(tmp_path)
    with pytest.raises(DataError, match="one LabelMe file; name the folder"):
        load_dataset(tmp_path / "one.json")
    with pytest.raises(DataError, match="not a VOC set"):
        load_dataset(tmp_path, data_format="voc")
    with pytest.raises(DataError, match="no such annotation file or folder"):
        load_dataset(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="data_format forces one"):
        load_dataset(tmp_path / "empty")


def test_sets_behind_gfile(tmp_path):
    """A file system of TensorFlow other than the local one: the same functions serve gs://."""
    _labelme(tmp_path)
    tf.io.gfile.makedirs("ram://labelme")
    for name in ("one.json", "one.jpg"):
        with tf.io.gfile.GFile(f"ram://labelme/{name}", "wb") as file:
            file.write((tmp_path / name).read_bytes())
    local, remote = load_dataset(tmp_path), load_dataset("ram://labelme")
    assert remote.classes.tolist() == local.classes.tolist()
    np.testing.assert_array_equal(remote.image(0), local.image(0))
    with pytest.raises(DataError, match=r"ram://gone\.json: no such annotation file"):
        load_dataset("ram://gone.json")
