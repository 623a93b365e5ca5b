"""The loop on the built-in shapes: it goes on bit for bit, keeps the best, and refuses what does not fit."""

import json

import numpy as np
import pytest

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.data import open_dataset
from kmaskrcnn.training import TrainingError, checkpoints
from kmaskrcnn.training.trainer import Trainer
from tests.conftest import TINY


def _config(model_dir, **settings):
    base = dict(TINY, num_classes=4, frozen_stages=0) | {
        "model_dir": str(model_dir),
        "shapes_images": 6,
        "shapes_val_images": 3,
        "shapes_size": 64,
        "crop_size": 64,
        "resize_mode": "native",
        "mask_resolution": 28,
        "max_instances": 8,
        "batch_size": 2,
        "steps": 4,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "clip_norm": 5.0,
        "ema_decay": 0.9,
        "log_every": 2,
        "checkpoint_every": 2,
    }
    return Config().replace(**(base | settings))


def _train(config, evaluate=None):
    trainer = Trainer(config, open_dataset(config, "train"), evaluate)
    return trainer, trainer.train()


def test_a_run_in_two_parts_equals_one_run_bit_for_bit(tmp_path):
    whole, outcome = _train(_config(tmp_path / "whole"))
    assert outcome.step == 4

    # The same schedule, stopped half way: the rate of a step depends on the share of the run.
    class Stopping(Trainer):
        def _save(self, step, elapsed):
            super()._save(step, elapsed)
            self._stop_signal = 15

    config = _config(tmp_path / "parts")
    first = Stopping(config, open_dataset(config, "train"), None).train()
    assert (first.step, first.interrupted) == (2, True)
    resumed, outcome = _train(config)
    assert outcome.step == 4
    for a, b in zip(whole.model.weights, resumed.model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    for a, b in zip(whole.step_function.averages, resumed.step_function.averages, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_best_and_last_weights_and_logs(tmp_path, capsys):
    scores = iter([0.3, 0.1])
    seen = {}

    def evaluate(model, step):
        seen[step] = [w.numpy() for w in model.weights]
        return {"mask_AP": next(scores)}, {"picture": np.zeros((8, 8, 3), np.uint8)}

    config = _config(tmp_path, eval_every=2)
    _, outcome = _train(config, evaluate)
    assert sorted(seen) == [2, 4]
    assert outcome.scores == {"mask_AP": 0.1}
    for which, step in (("best", 2), ("last", 4)):
        model, opened, labels = checkpoints.load_model(tmp_path, which)
        assert opened == config
        assert labels.class_names == ("circle", "square", "triangle", "star")
        for a, b in zip(model.weights, seen[step], strict=True):
            np.testing.assert_array_equal(a.numpy(), b)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [(r["group"], r["step"]) for r in rows] == [
        ("train", 2),
        ("evaluation", 2),
        ("train", 4),
        ("evaluation", 4),
    ]
    assert {"loss", "rpn_objectness", "rpn_box", "class", "box", "mask", "learning_rate"} <= set(rows[0])
    assert list((tmp_path / "tensorboard").iterdir())
    output = capsys.readouterr().out
    assert "step 4/4" in output
    assert "images/s" in output
    assert "ETA 0:00:00" in output
    assert len(list((tmp_path / "checkpoints").glob("*.index"))) == 2


def test_another_model_in_the_folder_is_refused(tmp_path):
    config = _config(tmp_path, steps=1, log_every=1)
    train_set = open_dataset(config, "train")
    checkpoints.prepare_directory(tmp_path, config, checkpoints.Labels(("circle",), (1,)))
    with pytest.raises(TrainingError, match="model of the classes"):
        Trainer(config, train_set)
    with pytest.raises(TrainingError, match="fpn_channels=32, not 16"):
        Trainer(config.replace(fpn_channels=16), train_set)
    with pytest.raises(TrainingError, match="cannot be written"):
        Trainer(config.replace(model_dir=str(tmp_path / "config.json" / "below")), train_set)


def test_losses_that_stay_not_finite_stop_the_run_and_name_the_images(tmp_path):
    config = _config(tmp_path, steps=12, log_every=6, checkpoint_every=100, init_weights="")
    trainer = Trainer(config, open_dataset(config, "train"))
    trainer.model.trainable_variables[0].assign(trainer.model.trainable_variables[0] * np.nan)
    with pytest.raises(
        TrainingError, match=r"step 12: .* not finite 12 times in a row, last on the images \[\d+, \d+\]"
    ):
        trainer.train()


def test_weights_of_a_model_with_other_classes_are_taken_as_far_as_they_fit(tmp_path):
    donor = _config(tmp_path / "donor")
    model = checkpoints.build_model(donor)
    checkpoints.prepare_directory(tmp_path / "donor", donor, checkpoints.Labels(tuple("abcd"), (1, 2, 3, 4)))
    checkpoints.save_weights(model, tmp_path / "donor" / checkpoints.LAST)
    other = checkpoints.build_model(donor.replace(num_classes=2, seed=5))
    line = checkpoints.load_initial_weights(other, str(tmp_path / "donor"))
    assert "not from there: " in line
    assert "mask_head" in line or "box_head" in line
    values = {w.path: w.numpy() for w in model.weights}
    same = [w.path for w in other.weights if np.array_equal(w.numpy(), values[w.path])]
    assert len(same) >= len(other.weights) - 6


@pytest.mark.parametrize("name", ["nothing", "nothing/best.weights.h5"])
def test_opening_what_is_not_there(tmp_path, name):
    with pytest.raises(ConfigError, match="no model folder"):
        checkpoints.load_model(tmp_path / name)
