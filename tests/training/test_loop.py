"""The loop with steps that cost nothing: when it ends, what it says, whom it calls, and what a refusal leaves."""

import sys

import keras
import pytest
import tensorflow as tf

from kmaskrcnn import model_folder
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.data import DataError, open_dataset
from kmaskrcnn.errors import LOCK, TrainingError
from kmaskrcnn.model import LOSSES
from kmaskrcnn.training.callbacks import logger_callbacks
from kmaskrcnn.training.run_log import verdict
from kmaskrcnn.training.step import TrainStep
from kmaskrcnn.training.trainer import Trainer
from tests.conftest import TINY


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Six images of 64 x 64 pixels."""
    config = _config(tmp_path_factory.mktemp("set"))
    return open_dataset(config, "train")


@pytest.fixture(autouse=True)
def idle_steps(monkeypatch):
    """A step changes nothing and returns its number for each value, and the network is a small one."""

    def step(self, parts, rate, step, stop=False, clock=0.0):
        zero = ("skipped", "overflowed", "stop")
        return tf.constant([0.0 if name in zero else float(step) for name in self.names])

    def network(config):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
        model.loss_names = LOSSES
        return model

    monkeypatch.setattr(TrainStep, "__call__", step)
    monkeypatch.setattr(model_folder, "build_model", network)


def _config(folder, **settings):
    base = dict(TINY, num_classes=4) | {
        "model_dir": str(folder),
        "train_annotations": "shapes",
        "shapes_images": 6,
        "shapes_size": 64,
        "crop_size": 64,
        "resize_mode": "native",
        "mask_resolution": 14,
        "max_instances": 6,
        "batch_size": 2,
        "steps": 6,
    }
    return Config().replace(**(base | settings))


def test_patience_ends_a_run_and_is_kept_over_a_restart(tmp_path, shapes, capsys):
    scores = iter([0.2, 0.3, 0.1, 0.3, 0.2])
    config = _config(tmp_path, steps=40, eval_every=2, patience=3)

    def evaluate(model, step):
        if step == 6 and not evaluate.resumed:
            raise KeyboardInterrupt  # the run is killed in its third evaluation
        return {"mask_AP": next(scores)}, {}

    evaluate.resumed = False
    with pytest.raises(KeyboardInterrupt):
        Trainer(config, shapes, evaluate).train()
    evaluate.resumed = True
    outcome = Trainer(config, shapes, evaluate).train()
    assert (outcome.step, outcome.interrupted) == (10, False)
    assert "early stopping at step 10: no mask AP above 0.300 in 3 evaluations (patience)" in capsys.readouterr().out
    assert Trainer(config, shapes, evaluate).train().step == 10  # the same command does not go on
    with pytest.raises(ConfigError, match="patience=3: needs an evaluation"):
        Trainer(config, shapes)


def test_epochs_are_steps(tmp_path, shapes):
    trainer = Trainer(_config(tmp_path, epochs=2.5), shapes)
    assert trainer.config.train.steps == 8  # of 3 steps each
    outcome = trainer.train()
    assert (outcome.step, outcome.epochs) == (8, pytest.approx(8 / 3))


def test_a_line_after_the_first_step_then_by_time(tmp_path, shapes, capsys, monkeypatch):
    monkeypatch.setattr("kmaskrcnn.training.run_log._SECONDS_BETWEEN_LINES", 1e9)
    Trainer(_config(tmp_path / "a", steps=45), shapes).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/45", "45/45"]
    assert "s including startup" in lines[0]
    assert "ETA 0:00:00" in lines[1]
    assert "loss 22.500" in lines[1]  # of the steps 1 to 44, each its number
    rows = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert ['"step": 20,' in rows[0], '"step": 40,' in rows[1], len(rows)] == [True, True, 2]
    monkeypatch.setattr("kmaskrcnn.training.run_log._SECONDS_BETWEEN_LINES", 0.0)
    Trainer(_config(tmp_path / "b", steps=4), shapes).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]


@pytest.mark.parametrize("change", [{"optimizer": "adamw"}, {"ema_decay": 0.9}, {"fpn_channels": 16}])
def test_a_refused_run_leaves_the_folder_as_it_was(tmp_path, shapes, change):
    Trainer(_config(tmp_path, steps=1), shapes).train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError):
        Trainer(_config(tmp_path, steps=3, **change), shapes)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / LOCK).exists()


class _Log(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append(("begin", self.params["steps"], self.params["epochs"], type(self.model.optimizer).__name__))

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch", epoch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append((batch, logs["loss"]))
        if logs["loss"] == 4:
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("end", epoch, logs["loss"], logs.get("val_mask_AP")))

    def on_train_end(self, logs=None):
        self.calls.append(("over", len(self.model.layers)))


def test_callbacks_are_called_as_in_fit_and_can_end_the_run(tmp_path, shapes):
    log = _Log()
    config = _config(tmp_path, steps=30, eval_every=2, log_every=1000)
    outcome = Trainer(config, shapes, lambda model, step: ({"mask_AP": step / 10}, {}), callbacks=[log]).train()
    assert (outcome.step, outcome.interrupted) == (6, False)  # the loop is a step ahead of what it looks at
    first, second = [(0, 0.0), (1, 1.0), (2, 2.0)], [(0, 3.0), (1, 4.0), (2, 5.0)]
    assert log.calls == [
        ("begin", 3, 10, "SGD"),
        *[("epoch", 0), *first, ("end", 0, 1.0, 0.2)],
        *[("epoch", 1), *second, ("end", 1, 4.0, 0.6)],
        ("over", 1),
    ]


@pytest.mark.parametrize(
    ("found", "epochs", "words"),
    [
        (0.0, 1.5, ["mask AP is 0.000 after 9 steps (1.5 epochs)", "train longer (epochs=30)", "(init_weights)"]),
        (0.0, 40.0, ["preview_augmentations=16", "learning_rate=0.002"]),
        (-1.0, 40.0, ["no object of the model's classes"]),
    ],
)
def test_an_end_without_success_is_told(found, epochs, words):
    text = verdict(Config(), 9, epochs, {"mask_AP": found})
    assert all(word in text for word in words), text
    assert "\n" not in text


def test_success_and_no_evaluation_are_no_problem():
    assert verdict(Config(), 9, 1.5, {"mask_AP": 0.1}) == ""
    assert verdict(Config(), 9, 1.5, {}) == ""


def test_an_image_that_is_lost_ends_the_run_after_a_save(tmp_path, shapes, monkeypatch, capsys):
    trainer = Trainer(_config(tmp_path, steps=30, checkpoint_every=100), shapes)
    take = trainer._batches.take

    def lost(step):
        if step == 4:
            raise DataError("image 7 (x.png): the file is missing")
        return take(step)

    monkeypatch.setattr(trainer._batches, "take", lost)
    with pytest.raises(DataError, match=r"image 7 \(x.png\)"):
        trainer.train()
    assert int(Trainer(_config(tmp_path, steps=30), shapes).state.step.numpy()) == 4


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_named(name, monkeypatch):
    assert logger_callbacks(Config()) == []  # TensorBoard needs none
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"logger=tensorboard,{name}: pip install {name}"):
        logger_callbacks(Config().replace(logger=("tensorboard", name)))
    with pytest.raises(ConfigError, match=r"logger=.*choose from mlflow, tensorboard, wandb"):
        Config().replace(logger=("comet",))
