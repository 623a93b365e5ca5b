"""Predictions as objects."""

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
