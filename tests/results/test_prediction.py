"""Predictions as objects."""

import dataclasses
import time
import tracemalloc

import numpy as np
import pytest

from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.prediction import Prediction


def test_a_prediction_without_masks_is_refused():
    with pytest.raises(ValueError, match="needs masks"):
        Prediction(8, 8, np.zeros((1, 4)), np.ones(1), np.ones(1, np.int32), None, Labels(("cell",), (1,)))


def test_two_thousand_objects_are_drawn_and_written_in_seconds_and_little_memory():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1480, (2000, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 20, (2000, 2))], axis=1).astype(np.float32)
    masks = np.ones((2000, 28, 28), np.float32)
    scores = np.linspace(0.99, 0.5, 2000, dtype=np.float32)
    found = Prediction(1500, 1500, boxes, scores, np.ones(2000, np.int32), masks, Labels(("thing",), (1,)))
    image = np.zeros((1500, 1500, 3), np.uint8)
    begin = time.process_time()
    tracemalloc.start()
    picture, results = found.draw(image), found.to_coco(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(results) == 2000 and np.asarray(picture).any(axis=2).mean() > 0.1
    assert time.process_time() - begin < 20  # about one, and some more while memory is traced
    assert peak < 60e6  # masks at the size of the image would be 4.5 GB


def found(scores=(0.9, 0.3, 0.1)):
    """Three boxes in an image of 400 x 300, so far apart that no caption reaches another one."""
    boxes = np.array([[40, 20, 100, 80], [40, 220, 100, 280], [200, 20, 260, 80]], np.float32)
    classes, masks = np.array([1, 2, 2], np.int32), np.ones((3, 28, 28), np.float32)
    return Prediction(300, 400, boxes, np.array(scores, np.float32), classes, masks, Labels(("cell", "dust"), (1, 2)))


def drawn(prediction, **keywords):
    """Which of the three boxes are colored in what is drawn."""
    picture = np.asarray(prediction.draw(np.zeros((300, 400, 3), np.uint8), **keywords))
    scale = len(picture) // 300  # small images are drawn larger
    return [bool(picture[y * scale, x * scale].any()) for y, x in ((90, 70), (90, 270), (250, 70))]


def test_what_was_selected_by_score_is_drawn():
    assert drawn(found()) == drawn(found().select(classes=["cell", "dust"], top_k=3)) == [True, False, False]
    assert drawn(found().select(min_score=0.2)) == drawn(found().above(0.2)) == [True, True, False]
    assert drawn(found().select(score_thresholds={"dust": 0.05})) == [True, True, True]
    assert drawn(found().select(0.5, score_thresholds={"cell": 0.95, "dust": 0.2})) == [False, True, False]
    assert drawn(found(), min_score=0.05) == [True, True, True]
    assert drawn(found().above(0.05), min_score=0.5) == [True, False, False]
    assert "2 objects with a score of at least 0.2 (2 in all)" in found().above(0.2)._repr_html_()


def test_mask_scores_stay_with_their_objects():
    scored = dataclasses.replace(found(), mask_scores=np.array([0.4, 0.25, 0.05], np.float32))
    kept = scored.select(classes=["dust"]).take(np.array([1, 0]))
    np.testing.assert_allclose(kept.mask_scores, [0.05, 0.25])
    assert [row["mask_score"] for row in kept.to_coco(1)] == pytest.approx([0.05, 0.25])
    assert "mask_score" not in found().to_coco(1)[0]
    pytest.importorskip("supervision")
    np.testing.assert_allclose(kept.to_supervision().data["mask_score"], [0.05, 0.25])
    assert "mask_score" not in found().to_supervision().data


def test_an_image_of_another_size_is_refused():
    """One that is not upright would get its masks in the wrong places."""
    with pytest.raises(ValueError, match="300 x 400 pixels, the prediction is of 400 x 300: it is not upright"):
        found().draw(np.zeros((400, 300, 3), np.uint8))
    with pytest.raises(ValueError, match="401 x 300 pixels, the prediction is of 400 x 300; read it with"):
        found().draw(np.zeros((300, 401, 3), np.uint8))


def test_it_prints_as_one_line():
    assert repr(found()) == "<Prediction of 400 x 300 pixels, 3 objects, scores 0.10 to 0.90: 1 cell, 2 dust>"
    assert repr(found().above(1.0)) == "<Prediction of 400 x 300 pixels, 0 objects: none>"
