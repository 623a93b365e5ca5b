"""benchmarks/gpu, whose sides need a GPU and torch to give a figure."""

import argparse

import numpy as np

from benchmarks.gpu import our_side, run, workload
from kmaskrcnn import MaskRCNN
from tests.conftest import TINY

OPTIONS = argparse.Namespace(height=64, width=80, objects=3, batch=2, steps=6)


def test_both_sides_train_on_the_same_objects():
    data = our_side.Data(OPTIONS)
    assert len(data) == 6
    pairs = zip(data.batches, workload.batches(OPTIONS), strict=True)
    for inputs, (images, rows) in pairs:
        assert inputs["images"].shape == (2, 64, 96, 3)
        np.testing.assert_array_equal(inputs["images"][:, :, :80], images)
        for mask, (boxes, _, full) in zip(inputs["masks"], rows, strict=True):
            areas = mask.mean(axis=(1, 2)) / 255 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
            np.testing.assert_allclose(areas, full.sum(axis=(1, 2)), rtol=0.02)


def test_our_side_trains():
    model = MaskRCNN(**TINY | {"num_classes": 90})
    model.compile("sgd")
    clock = our_side.Clock()
    history = model.fit(our_side.Data(OPTIONS), epochs=2, verbose=0, callbacks=[clock])
    assert len(clock.epochs) == 2 and 0 < clock.first <= clock.epochs[0] + 1
    assert np.isfinite(history.history["loss"]).all() and our_side.memory_gb() > 0


def test_a_side_that_fails_is_a_row_of_the_table():
    rows = run.table([{"side": "ours", "batch": 8, "error": "ended with 1"}]).splitlines()
    assert rows[-1].startswith("| ours | 8 | ended with 1 |")
