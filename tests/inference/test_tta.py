"""Test-time augmentation."""

import dataclasses

import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.inference.tta import _View, merge_boxes, scaled_config
from kmaskrcnn.results.labels import Labels

LABELS = Labels(("a", "b", "c"), (1, 2, 3))


def _view(*rows):
    """boxes, scores, classes of (box, score, class)."""
    boxes, scores, classes = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(classes, np.int32)


def test_views_of_one_object_become_one():
    first = _view(([0, 0, 10, 10], 0.9, 1), ([50, 50, 60, 60], 0.8, 2))
    second = _view(([0, 0, 10, 12], 0.6, 1), ([0, 0, 10, 10], 0.5, 2))
    boxes, scores, classes = merge_boxes([first, second], 0.5)
    assert classes.tolist() == [1, 2, 2]
    np.testing.assert_allclose(scores, [0.75, 0.4, 0.25])
    np.testing.assert_allclose(boxes[0], [0, 0, 10, (0.9 * 10 + 0.6 * 12) / 1.5], rtol=1e-6)


def test_of_one_view_only_the_best_enters():
    boxes, scores, _ = merge_boxes([_view(([0, 0, 10, 10], 0.9, 1), ([0, 0, 10, 9], 0.8, 1)), _view()], 0.5)
    np.testing.assert_allclose(boxes, [[0, 0, 10, 10]])
    np.testing.assert_allclose(scores, [0.45])
    assert merge_boxes([_view(), _view()], 0.5)[0].shape == (0, 4)


def test_class_agnostic_views_are_one_object_of_the_class_with_the_higher_sum():
    first = _view(([0, 0, 10, 10], 0.9, 1), ([50, 50, 60, 60], 0.8, 2))
    second = _view(([0, 0, 10, 12], 0.6, 2))
    third = _view(([0, 0, 10, 10], 0.5, 2))
    boxes, scores, classes = merge_boxes([first, second, third], 0.5, class_agnostic=True)
    assert classes.tolist() == [2, 2]
    np.testing.assert_allclose(scores, [1.1 / 3, 0.8 / 3], rtol=1e-6)
    np.testing.assert_allclose(boxes[0], [0, 0, 10, (0.9 * 10 + 0.6 * 12 + 0.5 * 10) / 2], rtol=1e-6)


def test_scaled_config():
    assert scaled_config(Config().data, 1.5).min_size == 1200
    assert scaled_config(Config().data, 0.5).native_scale == 0.5


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)


def test_one_view_is_the_plain_prediction(tiny_model, image):
    config = Config().replace(resize_mode="native", score_threshold=0.0)
    plain = Predictor(tiny_model, config, LABELS).predict(image)
    augmented = Predictor(tiny_model, config.replace(tta_scales=(1.0,)), LABELS).predict(image)
    assert len(augmented) == len(plain) > 0
    np.testing.assert_allclose(augmented.scores, plain.scores, atol=1e-6)
    np.testing.assert_allclose(augmented.boxes, plain.boxes, atol=1e-3)
    np.testing.assert_array_equal(augmented.classes, plain.classes)
    np.testing.assert_allclose(augmented.mask_probabilities, plain.mask_probabilities, atol=1e-3)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_and_masks_follow_the_picture(mirrored, turns):
    """A mark in the picture is found in the view where the view says, and back, shapes that are not square included."""
    picture = np.zeros((30, 50), np.uint8)
    picture[4:9, 11:27], picture[4, 11] = 1, 2  # a box with one corner marked
    box = np.array([[4, 11, 9, 27]], np.float64)
    seen = np.rot90(picture[:, ::-1] if mirrored else picture, turns)
    rows, columns = np.nonzero(seen)
    place = np.array([[rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]])
    view = _View(picture.shape, mirrored, turns, np.array([2.0, 3.0]), {})
    np.testing.assert_array_equal(view.to_network(box), place * [2, 3, 2, 3])
    np.testing.assert_array_equal(view.from_network(place * [2, 3, 2, 3]), box)
    y0, x0, y1, x1 = place[0]
    np.testing.assert_array_equal(view.upright(seen[None, y0:y1, x0:x1])[0], picture[4:9, 11:27])


def _moved(image, mirrored, turns):
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, turns))


@pytest.mark.parametrize(
    ("settings", "mirrored", "turns"),
    [({"tta_scales": (1.0, 1.25)}, True, 0), ({"tta_rotate90": True}, True, 1), ({"tta_rotate90": True}, False, 3)],
)
def test_the_answer_moves_with_the_picture(tiny_model, image, settings, mirrored, turns):
    """With all views of a group, the views of a picture that is mirrored or turned are the same ones."""
    config = Config().replace(resize_mode="native", score_threshold=0.0, tta_flip=True, **settings)
    predictor = Predictor(tiny_model, config, LABELS)
    found = predictor.predict(image)
    moved = predictor.predict(_moved(image, mirrored, turns))
    assert len(found) == len(moved) > 0
    move = _View(image.shape[:2], mirrored, turns, np.ones(2), {})
    back = move.from_network(moved.boxes)
    # Scores that all but tie may come in another order.
    for row in range(len(found)):
        partner = np.abs(back - found.boxes[row]).max(1).argmin()
        np.testing.assert_allclose(back[partner], found.boxes[row], atol=0.05)
        np.testing.assert_allclose(moved.scores[partner], found.scores[row], atol=1e-4)
        upright = move.upright(moved.mask_probabilities[partner][None])[0]
        np.testing.assert_allclose(upright, found.mask_probabilities[row], atol=5e-3)


def test_turned_views_find_what_single_turned_pictures_show(tiny_model, image):
    """The score of an object that every view finds is the mean of what the plain model gives it in each."""
    config = Config().replace(resize_mode="native", score_threshold=0.0)
    found = Predictor(tiny_model, config.replace(tta_rotate90=True), LABELS).predict(image)
    plain = Predictor(tiny_model, config, LABELS)
    views = []
    for turns in range(4):
        one = plain.predict(_moved(image, False, turns))
        boxes = _View(image.shape[:2], False, turns, np.ones(2), {}).from_network(one.boxes)
        views.append((boxes, one.scores, one.classes))
    boxes, scores, classes = merge_boxes(views, config.model.nms_iou)
    assert len(found) > 0
    np.testing.assert_allclose(found.scores, scores[: len(found)], atol=1e-5)
    np.testing.assert_allclose(found.boxes, boxes[: len(found)], atol=0.05)
    np.testing.assert_array_equal(found.classes, classes[: len(found)])


def test_mask_scores_of_views_and_tiles(tiny_settings, image):
    config = Config().replace(resize_mode="native", score_threshold=0.0)
    model = MaskRCNN(**tiny_settings, score_threshold=0.0, mask_scoring=True)
    head, rng = model.mask_iou_head.ious, np.random.default_rng(0)
    head.kernel.assign(rng.normal(0, 0.01, head.kernel.shape))
    head.bias.assign([0.5] * 4)

    plain, one = (Predictor(model, c, LABELS).predict(image) for c in (config, config.replace(tta_scales=(1.0,))))
    np.testing.assert_allclose(one.mask_scores, plain.mask_scores, rtol=1e-3)
    assert np.ptp(plain.mask_scores / plain.scores) > 1e-3
    views = config.replace(tta_flip=True, tta_scales=(1.0, 1.25), tile_size=64, tile_overlap=16)
    found = Predictor(model, views, LABELS).predict(image)
    assert found.pasted is not None and (found.mask_scores > 0).all() and (found.mask_scores < found.scores).all()


def test_tiles_and_views_together(tiny_model, image):
    config = Config().replace(
        resize_mode="native", score_threshold=0.0, tta_flip=True, tile_size=64, tile_overlap=16, max_detections=5
    )
    found = Predictor(tiny_model, config, LABELS).predict(image)
    assert found.pasted is not None
    assert len(found) > 0
    assert dataclasses.replace(found, image=None).to_coco(1)[0]["segmentation"]["size"] == [96, 128]
