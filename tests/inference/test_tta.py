"""Test-time augmentation."""

import dataclasses

import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.inference.tta import merge_boxes, scaled_config
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


def test_with_mirrored_views_the_answer_is_mirrored_with_the_picture(tiny_model, image):
    config = Config().replace(resize_mode="native", score_threshold=0.0, tta_flip=True, tta_scales=(1.0, 1.25))
    predictor = Predictor(tiny_model, config, LABELS)
    found = predictor.predict(image)
    mirrored = predictor.predict(np.ascontiguousarray(image[:, ::-1]))
    assert len(found) == len(mirrored) > 0
    back = mirrored.boxes[:, [0, 3, 2, 1]] * [1, -1, 1, -1] + [0, 128, 0, 128]
    # Scores that all but tie may come in another order.
    for row in range(len(found)):
        partner = np.abs(back - found.boxes[row]).max(1).argmin()
        np.testing.assert_allclose(back[partner], found.boxes[row], atol=0.05)
        np.testing.assert_allclose(mirrored.scores[partner], found.scores[row], atol=1e-4)
        flipped = mirrored.mask_probabilities[partner][:, ::-1]
        np.testing.assert_allclose(flipped, found.mask_probabilities[row], atol=5e-3)


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
