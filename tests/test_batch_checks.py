"""The first batch of Keras' loops: what is no training batch is refused by its key and what is expected of it."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn.batch_checks import check_batch, check_dataset
from kmaskrcnn.config import ModelConfig
from tests.conftest import make_batch

CONFIG = ModelConfig(num_classes=3)


def changed(**changes):
    batch = make_batch()
    return batch | {name: change(batch[name]) for name, change in changes.items()}


GOOD = {
    "as made": {},
    "bool masks": {"masks": lambda m: m > 0},
    "float masks": {"masks": lambda m: (m / 255.0).astype(np.float32)},
    "float images": {"images": lambda i: i.astype(np.float32)},
    "black images": {"images": np.zeros_like},
    "more boxes than masks": {"masks": lambda m: m[:, :2], "mask_frames": lambda f: f[:, :2]},
    "boxes a little past the border": {"boxes": lambda b: b + 1 * (b > 0)},
}
BAD = {
    "images in 0..1": ({"images": lambda i: i / 255.0}, "images: .*0..255"),
    "images of 0 and 1": ({"images": lambda i: (i > 0).astype(np.uint8)}, "images: .*0..255"),
    "normalized images": ({"images": lambda i: i / 64.0 - 2}, "images: .*normalization"),
    "gray images": ({"images": lambda i: i[..., :1]}, "images: .*repeat gray"),
    "images without channels": ({"images": lambda i: i[..., 0]}, "images: shape"),
    "channels first": ({"images": lambda i: i.transpose(0, 3, 1, 2)}, "images: .*channels last"),
    "NaN images": ({"images": lambda i: np.where(i > 60, np.nan, i)}, "images: .*finite"),
    "boxes in 0..1": ({"boxes": lambda b: b / 96}, "boxes: .*pixels"),
    "frames in 0..1": ({"mask_frames": lambda b: b / 96}, "mask_frames: .*pixels"),
    "boxes as yxhw": ({"boxes": lambda b: np.concatenate([b[..., 2:], b[..., :2]], -1)}, "boxes: .*ends before"),
    "boxes past the image": ({"boxes": lambda b: b * 3}, "boxes: .*passes the image of 96 x 96"),
    "boxes past the valid part": ({"image_shapes": lambda s: s // 4}, "boxes: .*passes the image of 24 x 24"),
    "NaN boxes": ({"boxes": lambda b: np.where(b > 20, np.nan, b)}, "boxes: .*finite"),
    "too few classes": ({"classes": lambda c: c[:, :2]}, "classes: shape"),
    "classes above num_classes": ({"classes": lambda c: np.where(c > 0, 4, 0)}, "classes: .*num_classes=3"),
    "classes from 0": ({"classes": lambda c: np.maximum(c - 1, 0)}, "classes"),
    "negative classes": ({"classes": lambda c: np.where(c > 0, c, -1)}, "classes: .*1..3"),
    "one-hot flags": ({"classes": lambda c: c > 0}, "classes: .*whole numbers"),
    "masks of 0 and 1": ({"masks": lambda m: m // 255}, "masks: .*0..255"),
    "float masks in 0..255": ({"masks": lambda m: m.astype(np.float32)}, "masks: .*0..1"),
    "no mask": ({"masks": np.zeros_like}, "masks: no mask"),
    "oblong masks": ({"masks": lambda m: m[..., :20]}, "masks: shape"),
    "shapes past the image": ({"image_shapes": lambda s: s * 2}, "image_shapes: .*1..96"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_training_batch_passes(name):
    check_batch(changed(**GOOD[name]), CONFIG)


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_training_batch_is_refused_by_its_key(name):
    changes, words = BAD[name]
    with pytest.raises(ValueError, match=words) as error:
        check_batch(changed(**changes), CONFIG)
    assert "\n" not in str(error.value)


def test_targets_beside_the_images_and_missing_keys_are_refused():
    batch = make_batch()
    with pytest.raises(ValueError, match="one dict"):
        check_batch((batch["images"], batch["boxes"]), CONFIG)
    with pytest.raises(ValueError, match="one dict"):
        check_batch(batch["images"], CONFIG)
    del batch["masks"]
    with pytest.raises(ValueError, match="no 'masks'"):
        check_batch(batch, CONFIG)


def sources(batch):
    """The forms in which `fit` takes data."""

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return batch

    yield "dict of arrays", batch
    yield "dataset", tf.data.Dataset.from_tensors(batch)
    yield "PyDataset", Batches()
    yield "generator", (b for b in [batch])


@pytest.mark.parametrize("form", ["dict of arrays", "dataset", "PyDataset", "generator"])
def test_each_form_of_data_is_looked_at_and_left_whole(form):
    bad = changed(masks=lambda m: m // 255)
    with pytest.raises(ValueError, match="masks"):
        check_dataset(dict(sources(bad))[form], None, CONFIG, {})
    data = dict(sources(make_batch()))[form]
    data = check_dataset(data, None, CONFIG, {}).get("x", data)
    if form == "generator":
        assert len(list(data)) == 1


def test_endless_data_need_a_number_of_steps():
    dataset = tf.data.Dataset.from_tensors(make_batch()).repeat()
    with pytest.raises(ValueError, match="steps_per_epoch="):
        check_dataset(dataset, None, CONFIG, {"epochs": 1})
    with pytest.raises(ValueError, match="steps="):
        check_dataset(dataset, None, CONFIG, {})
    assert "steps_per_epoch" not in check_dataset(dataset, None, CONFIG, {"epochs": 1, "steps_per_epoch": 3})
    dataset.steps_per_epoch = 7
    assert check_dataset(dataset, None, CONFIG, {"epochs": 1})["steps_per_epoch"] == 7


def test_validation_data_are_looked_at():
    good, bad = (tf.data.Dataset.from_tensors(b) for b in (make_batch(), changed(boxes=lambda b: b / 96)))
    check_dataset(good, None, CONFIG, {"validation_data": good, "epochs": 1})
    with pytest.raises(ValueError, match="boxes"):
        check_dataset(good, None, CONFIG, {"validation_data": bad, "epochs": 1})
    with pytest.raises(ValueError, match="validation_steps="):
        check_dataset(good, None, CONFIG, {"validation_data": good.repeat(), "epochs": 1})
    endless = itertools.repeat(make_batch())
    assert "x" in check_dataset(endless, None, CONFIG, {"steps_per_epoch": 1, "epochs": 1})
