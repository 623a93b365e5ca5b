"""Predictions and overlays."""

import dataclasses

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.labels import Labels
from kmaskrcnn.predict import Predictor
from kmaskrcnn.prediction import Prediction, coco_dataset, find_pictures
from kmaskrcnn.visualize import draw_instances, instance_color

LABELS = Labels(("apple", "pear", "plum"), (3, 10, 20))


def _prediction(count=2):
    boxes = np.array([[10, 20, 40, 70], [0, 0, 30.5, 30.5]], np.float32)[:count]
    masks = np.ones((count, 28, 28), np.float32)
    scores = np.array([0.9, 0.3], np.float32)[:count]
    return Prediction(60, 80, boxes, scores, np.array([2, 3], np.int32)[:count], masks, LABELS)


def test_coco_results_are_in_the_pictures_pixels():
    results = _prediction().to_coco(7)
    assert [r["category_id"] for r in results] == [10, 20]
    assert results[0]["bbox"] == [20, 10, 50, 30]
    mask = mask_utils.decode(results[0]["segmentation"])
    assert mask.shape == (60, 80)
    assert mask[10:40, 20:70].all()
    assert mask.sum() == 30 * 50
    np.testing.assert_array_equal(_prediction().mask(0), mask)


def test_coco_dataset_can_be_read_as_one():
    tree = coco_dataset([("a.png", _prediction()), ("b.png", _prediction(0)), ("c.png", _prediction(1))], LABELS)
    assert [i["id"] for i in tree["images"]] == [1, 2, 3]
    assert [(a["id"], a["image_id"]) for a in tree["annotations"]] == [(1, 1), (2, 1), (3, 3)]
    assert tree["annotations"][0]["area"] == 1500
    assert [c["id"] for c in tree["categories"]] == [3, 10, 20]


def test_above_keeps_what_is_at_least_the_score():
    assert len(_prediction().above(0.3)) == 2
    assert _prediction().above(0.31).names == ["pear"]
    assert len(_prediction().above(1.0)) == 0


def test_predictor_gives_boxes_in_the_pictures_own_pixels(tiny_model):
    config = Config().replace(resize_mode="native", native_scale=2.0, score_threshold=0.0)
    predictor = Predictor(tiny_model, config, LABELS)
    image = np.random.default_rng(0).integers(0, 255, (50, 75, 3), np.uint8)
    prediction = predictor.predict(image)
    assert (prediction.height, prediction.width) == (50, 75)
    assert len(prediction) > 0
    assert (np.diff(prediction.scores) <= 0).all()
    assert (prediction.boxes >= 0).all()
    assert (prediction.boxes <= [50, 75, 50, 75]).all()
    assert prediction.boxes[:, 2:].max() > 25  # and not in the pixels of a smaller image
    assert set(prediction.classes) <= {1, 2, 3}


def test_predictor_refuses_what_is_no_picture(tiny_model):
    predictor = Predictor(tiny_model, Config(), LABELS)
    with pytest.raises(ValueError, match="RGB picture"):
        predictor.predict(np.zeros((10, 10), np.uint8))
    with pytest.raises(ValueError, match="RGB picture"):
        predictor.predict(np.zeros((10, 10, 3), np.float32))
    with pytest.raises(FileNotFoundError, match="no_such"):
        predictor.predict("no_such.png")


def test_drawing_changes_only_what_the_objects_cover():
    image = np.full((600, 700, 3), 100, np.uint8)
    boxes = np.array([[100, 150, 200, 300], [400, 400, 500, 650]], np.float32)
    masks = np.zeros((2, 28, 28), np.float32)
    masks[:, :, :14] = 1.0  # the left half
    picture = np.asarray(draw_instances(image, boxes, masks))
    assert picture.shape == image.shape
    changed = (picture != 100).any(axis=-1)
    inside = np.zeros_like(changed)
    inside[100:200, 150:300] = inside[400:500, 400:650] = True
    assert not changed[~inside].any()
    assert changed[110:190, 160:220].all()  # mask
    assert not changed[110:190, 230:290].any()  # box, but no mask
    assert changed[100, 150:300].all()  # outline
    # The instances differ in colour, and text is written where asked for.
    assert np.abs(picture[150, 170].astype(int) - picture[450, 450].astype(int)).max() > 40
    assert (np.asarray(draw_instances(image, boxes, masks, ["a", "b"])) != picture).any()


def test_small_pictures_are_enlarged_and_broken_boxes_passed_over():
    image = np.zeros((20, 30, 3), np.uint8)
    boxes = np.array([[5, 5, 5, 9], [-10, -10, 50, 60]], np.float32)
    picture = draw_instances(image, boxes, np.ones((2, 28, 28), np.float32), ["no area", "larger than all"])
    assert picture.size == (540, 360)
    assert draw_instances(image, np.zeros((0, 4)), np.zeros((0, 28, 28))).size == (540, 360)


def test_colors_of_neighbours_differ():
    colors = np.array([instance_color(i) for i in range(12)], int)
    distance = np.abs(colors[:, None] - colors[None]).max(-1) + 999 * np.eye(12, dtype=int)
    assert distance.min() > 20


def test_draw_needs_a_picture():
    with pytest.raises(ValueError, match="without its picture"):
        _prediction().draw()
    image = np.zeros((60, 80, 3), np.uint8)
    assert dataclasses.replace(_prediction(), image=image).draw().size == _prediction().draw(image).size


def test_names_of_outputs_differ(tmp_path):
    for name in ("a.png", "a.jpg", "below/a.png", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_pictures([str(tmp_path), str(tmp_path / "a.*")])
    names = [name for _, name in found]
    assert len(found) == 3
    assert len(set(names)) == 3
    assert "below/a" in names
    with pytest.raises(ConfigError, match=r"none\.png: no picture there"):
        find_pictures([str(tmp_path / "none.png")])
    with pytest.raises(ConfigError, match="--input is missing"):
        find_pictures([])
