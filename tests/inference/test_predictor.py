"""Predictions and overlays."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.inference.inputs import find_inputs
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.results.draw import draw_instances, instance_color
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.pasted_masks import PastedMasks
from kmaskrcnn.results.prediction import Prediction, coco_dataset

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
    results = [_prediction(count).to_coco(image_id) for image_id, count in ((1, 2), (2, 0), (3, 1))]
    tree = coco_dataset([(name, 60, 80) for name in ("a.png", "b.png", "c.png")], results, LABELS)
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
    with pytest.raises(ValueError, match="RGB image"):
        predictor.predict(np.zeros((10, 10), np.uint8))
    with pytest.raises(ValueError, match="RGB image"):
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
    # The instances differ in color, and text is written where asked for.
    assert np.abs(picture[150, 170].astype(int) - picture[450, 450].astype(int)).max() > 40
    assert (np.asarray(draw_instances(image, boxes, masks, ["a", "b"])) != picture).any()


def test_small_pictures_are_enlarged_and_broken_boxes_passed_over():
    image = np.zeros((20, 30, 3), np.uint8)
    boxes = np.array([[5, 5, 5, 9], [-10, -10, 50, 60]], np.float32)
    picture = draw_instances(image, boxes, np.ones((2, 28, 28), np.float32), ["no area", "larger than all"])
    assert picture.size == (660, 440)
    assert draw_instances(image, np.zeros((0, 4)), np.zeros((0, 28, 28))).size == (660, 440)


def test_colors_of_neighbors_differ():
    colors = np.array([instance_color(i) for i in range(20)], int)
    distance = np.abs(colors[:, None] - colors[None]).max(-1) + 999 * np.eye(20, dtype=int)
    assert distance.min() > 20


def test_captions_do_not_hide_each_other_and_are_left_out_where_they_do_not_fit():
    image = np.full((600, 700, 3), 100, np.uint8)
    boxes = np.array([[200, 100, 400, 300], [202, 102, 402, 302], [500, 500, 504, 504]], np.float32)
    empty = np.zeros((3, 28, 28), np.float32)
    plain = np.asarray(draw_instances(image, boxes, empty)).astype(int)

    def pixels(*captions):
        return (np.asarray(draw_instances(image, boxes, empty, captions)) != plain).any(-1)

    both, first, second = pixels("one 0.90", "two 0.80", ""), pixels("one 0.90", "", ""), pixels("", "two 0.80", "")
    assert first.sum() > 500
    assert both.sum() > first.sum() + 0.9 * second.sum()
    assert (pixels("", "", "far too long for its object") == pixels("", "", "")).all()


def test_pictures_of_pasted_masks_are_those_of_the_masks():
    prediction = dataclasses.replace(_prediction(), image=np.full((60, 80, 3), 100, np.uint8))
    windows = PastedMasks(prediction.window(i) for i in range(2))
    pasted = dataclasses.replace(prediction, mask_probabilities=None, pasted=windows)
    assert pasted.to_coco(3) == prediction.to_coco(3)
    np.testing.assert_array_equal(pasted.instance_mask(), prediction.instance_mask())
    np.testing.assert_array_equal(pasted.above(0.5).mask(0), prediction.above(0.5).mask(0))
    differing = (np.asarray(pasted.draw()) != np.asarray(prediction.draw())).any(-1)
    assert differing.mean() < 0.05  # the borders of masks that are enlarged before and after they are cut


def test_select_keeps_classes_and_the_best():
    assert _prediction().select(classes=["plum"]).names == ["plum"]
    assert _prediction().select(top_k=1).names == ["pear"]
    assert _prediction().select(min_score=0.5, classes=["plum"]).names == []
    with pytest.raises(ConfigError, match="no class 'fig' in the model: it has apple, pear, plum"):
        _prediction().select(classes=["fig"])


def test_instance_mask_shows_the_better_object_on_top():
    numbers = _prediction().instance_mask()
    assert numbers[35, 25] == 1
    assert numbers[5, 5] == 2
    assert numbers[20, 25] == 1  # both are there
    assert numbers[50, 75] == 0
    np.testing.assert_array_equal(_prediction().mask_areas(), [_prediction().mask(i).sum() for i in range(2)])
    assert _prediction().mask_areas()[0] == 30 * 50


def test_notebooks_show_a_picture_and_a_table():
    prediction = dataclasses.replace(_prediction(), labels=Labels(("a", "<b>", "c"), (1, 2, 3)))
    assert prediction._repr_png_() is None
    page = prediction._repr_html_()
    assert "<img" not in page
    assert "&lt;b&gt;" in page
    assert "0.900" in page
    assert "0.300" not in page
    shown = dataclasses.replace(prediction, image=np.zeros((60, 80, 3), np.uint8))
    assert Image.open(io.BytesIO(shown._repr_png_())).size == (640, 480)
    assert base64.b64encode(shown._repr_png_()).decode() in shown._repr_html_()


def test_predict_many_takes_files_folders_arrays_and_names_what_it_cannot_read(tiny_model, tmp_path):
    config = Config().replace(resize_mode="native", score_threshold=0.0)
    predictor = Predictor(tiny_model, config, LABELS)
    image = np.random.default_rng(0).integers(0, 255, (50, 75, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    found = dict(predictor.predict_many([image, tmp_path]))
    assert list(found) == ["0", str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    first, second, third = found.values()
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert isinstance(third, OSError)
    assert "b.png" in str(third)


def test_draw_needs_a_picture():
    with pytest.raises(ValueError, match="without its image"):
        _prediction().draw()
    image = np.zeros((60, 80, 3), np.uint8)
    assert dataclasses.replace(_prediction(), image=image).draw().size == _prediction().draw(image).size


def test_names_of_outputs_differ(tmp_path):
    for name in ("a.png", "a.jpg", "below/a.png", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_inputs([str(tmp_path), str(tmp_path / "a.*")])
    names = [name for _, name in found]
    assert len(found) == 3
    assert len(set(names)) == 3
    assert "below/a" in names
    with pytest.raises(ConfigError, match=r"none\.png: no such file or folder"):
        find_inputs([str(tmp_path / "none.png")])
    with pytest.raises(ConfigError, match="no images were given"):
        find_inputs([])
