"""Annotations of the VGG Image Annotator, on files written here as it writes them."""

import csv
import json

import numpy as np
import pytest

from kmaskrcnn.data import DataError, load_dataset
from kmaskrcnn.data.readers import recognize
from tests.data.readers.test_readers import _disc, _full_mask, _iou, _picture

SHAPES = [
    {"name": "polygon", "all_points_x": [5, 30, 30, 5], "all_points_y": [6, 6, 20, 20]},
    {"name": "rect", "x": 40, "y": 30, "width": 20, "height": 10},
    {"name": "circle", "cx": 20, "cy": 30, "r": 8},
    {"name": "ellipse", "cx": 32, "cy": 24, "rx": 20, "ry": 6, "theta": 0.5},
]


def _via_tree(attributes, shapes=SHAPES, as_dict=False):
    regions = [{"shape_attributes": s, "region_attributes": a} for s, a in zip(shapes, attributes, strict=True)]
    regions = {str(i): r for i, r in enumerate(regions)} if as_dict else regions
    return {"one.png999": {"filename": "one.png", "size": 999, "regions": regions, "file_attributes": {}}}


def _via_csv(path, shapes, attributes):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            "filename file_size file_attributes region_count region_id "
            "region_shape_attributes region_attributes".split()
        )
        for i, (shape, attribute) in enumerate(zip(shapes, attributes, strict=True)):
            writer.writerow(["one.png", 999, "{}", len(shapes), i, json.dumps(shape), json.dumps(attribute)])


@pytest.mark.parametrize("form", ["project", "export", "version 1", "csv"])
def test_via_with_every_shape(tmp_path, form):
    _picture(tmp_path / "one.png")
    attributes = [{"class": "cat"}, {"class": {"dog": True, "cat": False}}, {"class": "dog"}, {"class": "cat"}]
    tree, path = _via_tree(attributes, as_dict=form == "version 1"), tmp_path / "via.json"
    if form == "csv":
        path = tmp_path / "via.csv"
        _via_csv(path, SHAPES, attributes)
    else:
        project = {"_via_settings": {}, "_via_img_metadata": tree, "_via_attributes": {}}
        path.write_text(json.dumps(project if form == "project" else tree))
    assert recognize(str(path)) == "via"
    dataset = load_dataset(path)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.classes.tolist() == [1, 2, 2, 1]
    np.testing.assert_allclose(dataset.boxes[:2], [[6, 5, 20, 30], [30, 40, 40, 60]])
    assert _iou(_full_mask(dataset, 2), _disc(30, 20, 8, 8)) > 0.95
    assert _iou(_full_mask(dataset, 3), _disc(24, 32, 6, 20, 0.5)) > 0.93


@pytest.mark.parametrize(
    ("shape", "attributes", "words"),
    [
        ({"name": "point", "cx": 3, "cy": 4}, {"class": "cat"}, "'point'"),
        ({"name": "polyline", "all_points_x": [1, 9, 5], "all_points_y": [1, 1, 5]}, {"class": "cat"}, "open polyline"),
        ({"name": "polygon", "all_points_x": [1, 9], "all_points_y": [1, 1, 5]}, {"class": "cat"}, "2 x and 3 y"),
        ({"name": "rect", "x": 3, "y": 4}, {"class": "cat"}, "damaged"),
        (None, {"class": "cat"}, "damaged"),
        (SHAPES[1], {"size": "big", "color": "red"}, "which attribute is the class"),
        (SHAPES[1], {"class": {"cat": True, "dog": True}}, "2 classes are set"),
        (SHAPES[1], {"class": ""}, "the class is empty"),
    ],
)
def test_via_errors_name_file_and_record(tmp_path, shape, attributes, words):
    _picture(tmp_path / "one.png")
    path = tmp_path / "via.json"
    path.write_text(json.dumps(_via_tree([{"class": "cat"}, attributes], [SHAPES[0], shape])))
    with pytest.raises(DataError) as error:
        load_dataset(path)
    assert str(error.value).startswith(f"{path}: one.png: regions[1]: ")
    assert words in str(error.value)
    assert len(load_dataset(path, on_bad_record="skip").classes) == 1


def test_via_without_attributes_and_without_the_image(tmp_path):
    _picture(tmp_path / "one.png")
    path = tmp_path / "via.json"
    path.write_text(json.dumps(_via_tree([{}] * 4) | {"x": {"filename": "gone.png", "regions": []}}))
    with pytest.raises(DataError, match=r"gone\.png.*missing"):
        load_dataset(path)
    dataset = load_dataset(path, on_bad_record="skip", class_names=["balloon"])
    assert dataset.class_names == ["balloon"]
    assert dataset.classes.tolist() == [1] * 4
