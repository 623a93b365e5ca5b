"""benchmarks/gpu, whose sides need a GPU and torch to give a figure."""

import argparse

import numpy as np

from benchmarks.gpu import our_side, run, score, workload
from benchmarks.gpu.crops_file import Crops, packed, training_arrays
from kmaskrcnn import Config, MaskRCNN
from kmaskrcnn.data import open_dataset, training_dataset
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


def test_crops_come_back_as_the_batches_that_they_were(tmp_path):
    config = Config().replace(
        train_annotations="shapes",
        val_annotations="shapes",
        model_dir=str(tmp_path),
        shapes_images=12,
        shapes_val_images=1,
        shapes_size=128,
        crop_size=128,
        resize_mode="native",
        max_instances=1,  # fewer than an image has, so that some objects have no mask
        mask_resolution=28,
    )
    batches = list(training_dataset(open_dataset(config, "train"), config.data, 2, seed=3).take(5).as_numpy_iterator())
    images, columns = training_arrays(batches, config.data.max_instances)
    data, starts = packed(images, lossless=True)
    crops = Crops({"images": data, "starts": starts, **columns}, config.data)
    assert len(crops) == 10 and max(columns["counts"]) > 1
    for number, batch in enumerate(batches):
        found = crops.batch([2 * number, 2 * number + 1])
        rows = found["boxes"].shape[1]
        assert not batch["classes"][:, rows:].any()
        for name, value in found.items():
            expected = batch["sample_seeds" if name == "seeds" else name]
            expected = expected[:, :rows] if name in ("boxes", "classes", "is_crowd") else expected
            np.testing.assert_array_equal(value, expected, err_msg=name)


def test_scores_of_variations_have_mean_and_spread():
    runs = {seed: dict.fromkeys(score.COLUMNS, value) for seed, value in (("0", 0.5), ("1", 0.7))}
    rows = score.table({"plain": {"steps": 9, "runs": runs}}).splitlines()
    assert rows[-1].startswith("| plain | 2 | 0.600 (0.500 to 0.700) |")
