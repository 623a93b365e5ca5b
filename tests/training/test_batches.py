"""Images that are lost or damaged while training: named, or replaced by a function of seed, epoch and image."""

import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn.cluster import Cluster
from kmaskrcnn.config import Config
from kmaskrcnn.data import DataError, open_dataset
from kmaskrcnn.evaluation import evaluate
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.training.batches import Batches


@pytest.fixture
def config(tmp_path):
    return Config().replace(
        model_dir=str(tmp_path),
        train_annotations="shapes",
        shapes_images=6,
        shapes_size=64,
        crop_size=64,
        resize_mode="native",
        mask_resolution=14,
        max_instances=6,
        batch_size=2,
        on_bad_record="skip",
    )


def _batches(config, start=0, slots=(range(2),), train_set=None):
    train_set = train_set or open_dataset(config, "train")
    batches = Batches(train_set, config, Cluster(tf.distribute.get_strategy()), list(slots))
    batches.start(start)
    return batches


def _take(batches, steps):
    return [{name: value.numpy() for name, value in batches.take(step)[0].items()} for step in steps]


def _damage(path):
    """Change a byte of the pixels: the header and the end mark stay."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def _equal(ours, others):
    assert len(ours) == len(others)
    for a, b in zip(ours, others, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_the_file_is_named(config, how):
    batches = _batches(config.replace(on_bad_record="error"))
    path = batches.train_set.paths[3]
    if how == "deleted":
        tf.io.gfile.remove(path)
    else:
        _damage(Path(path))
    words = {"deleted": "the file is missing", "damaged": "it cannot be decoded: "}[how]
    with pytest.raises(DataError) as error:
        _take(batches, range(20))
    assert str(error.value).startswith(f"image {batches.train_set.image_ids[3]} ({path}): {words}")
    assert str(error.value).endswith("repair it, or leave it out with on_bad_record=skip")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("copy_paste", [0.0, 1.0])
def test_with_skip_the_steps_are_a_function_of_seed_and_step(config, copy_paste, tmp_path, capsys):
    config = config.replace(copy_paste_probability=copy_paste)
    train_set = open_dataset(config, "train")  # as it is before the damage
    whole = _take(_batches(config, train_set=train_set), range(9))
    paths = sorted((tmp_path / "shapes" / "train").rglob("*.png"))
    _damage(paths[1])
    paths[4].unlink()
    batches = _batches(config, train_set=train_set)
    ours = _take(batches, range(9))
    lost = {int(batches.train_set.image_ids[index]) for index in batches.left_out}
    assert len(lost) == 2
    assert "(2 left out so far)" in capsys.readouterr().err
    for before, after in zip(whole, ours, strict=True):
        for was, now in zip(before["image_ids"].tolist(), after["image_ids"].tolist(), strict=True):
            assert now not in lost
            assert was == now or was in lost
    # One that goes on at a step, and two workers, take the same steps without knowing what was found before.
    _equal(_take(_batches(config, 5, train_set=train_set), range(5, 9)), ours[5:])
    parts = [_take(_batches(config, 0, [range(w, w + 1)], train_set), range(9)) for w in range(2)]
    both = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    _equal(both, ours)


def test_no_image_left_is_an_error(config, tmp_path):
    batches = _batches(config)
    for path in (tmp_path / "shapes" / "train").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 6 training images of 64 x 64 pixels can be read"):
        _take(batches, range(20))


def test_an_image_of_the_evaluation_set_is_named(config, tmp_path):
    train_set = open_dataset(config, "train")
    _damage(Path(train_set.paths[2]))
    labels = Labels(tuple(train_set.class_names), tuple(train_set.category_ids))
    predictor = types.SimpleNamespace(labels=labels, predict_batch=lambda batch: [])
    config = config.replace(eval_overlays=0, eval_batch_size=6)
    with pytest.raises(DataError) as error:
        evaluate(predictor, train_set, config)
    assert f"image {train_set.image_ids[2]} ({train_set.paths[2]}): it cannot be decoded: " in str(error.value)
    assert "\n" not in str(error.value)
