"""The loop on the built-in shapes: it goes on bit for bit, keeps the best, and refuses what does not fit."""

import json
import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from kmaskrcnn import model_folder, precision
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.data import open_dataset
from kmaskrcnn.errors import TrainingError
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.training.changes import what_changed, write_set_facts
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
        "dtype": "float32",
    }
    return Config().replace(**(base | settings))


def _train(config, evaluate=None):
    trainer = Trainer(config, open_dataset(config, "train"), evaluate)
    return trainer, trainer.train()


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _check_full_disk(state):
    """A save that does not fit is one line and leaves what was there."""
    before = _files(state.directory)
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a write past this fails as on a full disk
    try:
        with pytest.raises(TrainingError, match=f"could not be saved in .*saved before is intact: {state.newest}"):
            state.save(5, 0.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert _files(state.directory) == before


def _check_damage(config, newest, capsys):
    """A checkpoint that is cut off is passed over for the one before, and what a killed write left is removed."""
    folder = Path(newest).parent
    (folder / "ckpt-9_temp").mkdir()
    (folder / "ckpt-9.data-00000-of-00001.tempstate1").write_bytes(b"half")
    data = Path(newest + ".data-00000-of-00001")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    trainer = Trainer(config, open_dataset(config, "train"))
    assert f"{newest} cannot be read" in capsys.readouterr().out
    assert (int(trainer.state.step.numpy()), int(trainer.state.scored.numpy())) == (4, 2)
    assert not list(folder.glob("ckpt-9*"))


@pytest.mark.parametrize(
    "model",
    [
        {"mask_point_rend": True, "mask_fc_channels": (16,), "mask_point_channels": (16,)},  # which draws points
        {"mask_scoring": True},
    ],
    ids=["point_rend", "mask_scoring"],
)
def test_a_run_in_two_parts_equals_one_run_bit_for_bit(model, tmp_path, capsys):
    seen = []

    def evaluate(model, step):
        seen.append(step)
        return {"mask_AP": 0.5}, {}

    whole, outcome = _train(_config(tmp_path / "whole", eval_every=2, **model), evaluate)
    assert (outcome.step, seen) == (4, [2, 4])

    # The same schedule, stopped half way, in an evaluation: the rate of a step depends on the share of the run.
    def interrupted(model, step):
        os.kill(os.getpid(), signal.SIGTERM)
        first.pulse()
        raise AssertionError("the signal should have ended this")

    config = _config(tmp_path / "parts", eval_every=2, **model)
    first = Trainer(config, open_dataset(config, "train"), interrupted)
    outcome = first.train()
    assert (outcome.step, outcome.interrupted) == (2, True)
    assert "SIGTERM: saved step 2" in capsys.readouterr().out
    resumed, outcome = _train(config, evaluate)
    assert (outcome.step, seen) == (4, [2, 4, 2, 4])
    for a, b in zip(whole.model.weights, resumed.model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    for a, b in zip(whole.step_function.averages, resumed.step_function.averages, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    _check_full_disk(resumed.state)
    _check_damage(config, resumed.state.newest, capsys)


def test_best_and_last_weights_and_logs(tmp_path, capsys):
    scores = iter([0.3, 0.1])
    seen = {}

    def evaluate(model, step):
        seen[step] = [w.numpy() for w in model.weights]
        return {"mask_AP": next(scores)}, {"picture": np.zeros((8, 8, 3), np.uint8)}

    config = _config(tmp_path, eval_every=2, profile_steps=(2, 2))
    _, outcome = _train(config, evaluate)
    assert sorted(seen) == [2, 4]
    assert outcome.scores == {"mask_AP": 0.1}
    for which, step in (("best", 2), ("last", 4)):
        model, opened, labels = model_folder.load_model(tmp_path, which)
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
    assert "profile of the steps 2 to 2" in output
    assert list((tmp_path / "tensorboard").rglob("*.xplane.pb"))


def test_another_model_in_the_folder_is_refused(tmp_path):
    config = _config(tmp_path, steps=1, log_every=1)
    train_set = open_dataset(config, "train")
    model_folder.prepare_directory(tmp_path, config, model_folder.Labels(("circle",), (1,)))
    (tmp_path / model_folder.LAST).touch()
    with pytest.raises(TrainingError, match="model of the classes"):
        Trainer(config, train_set)
    with pytest.raises(TrainingError, match="fpn_channels=32, not 16"):
        Trainer(config.replace(fpn_channels=16), train_set)
    with pytest.raises(TrainingError, match="cannot be written"):
        Trainer(config.replace(model_dir=str(tmp_path / "config.json" / "below")), train_set)


def test_losses_that_stay_not_finite_stop_the_run_and_keep_the_images(tmp_path, capsys):
    config = _config(tmp_path, steps=12, log_every=6, checkpoint_every=100, on_nonfinite="skip")
    trainer = Trainer(config, open_dataset(config, "train"))
    trainer.model.trainable_variables[0].assign(trainer.model.trainable_variables[0] * np.nan)
    with pytest.raises(TrainingError, match=r"step 9 was skipped.*images are \[\d+, \d+\], the 10th in a row"):
        trainer.train()
    lines = [line for line in capsys.readouterr().err.splitlines() if "was skipped" in line]
    assert [int(line.split()[1]) for line in lines] == list(range(9))
    assert "gradient_norm nan" in lines[3]
    files = sorted((tmp_path / "nonfinite").iterdir())
    assert [file.name for file in files] == [f"step-{i}-worker-0.npz" for i in range(5)]
    kept, batch = dict(np.load(files[3])), next(iter(trainer.batches(3)))
    assert kept.keys() == batch.keys()
    for name, value in batch.items():
        np.testing.assert_array_equal(kept[name], value)
    assert f"images are {kept['image_ids'].tolist()}" in lines[3]
    trainer.config = config.replace(on_nonfinite="stop")
    with pytest.raises(TrainingError, match=r"step 0 was skipped"):
        trainer.train()


def test_batches_that_do_not_divide_are_refused(tmp_path):
    config = _config(tmp_path, accumulate_steps=4)
    with pytest.raises(ConfigError, match=r"batch_size=2 does not divide evenly into 1 devices x accumulate_steps=4"):
        Trainer(config, open_dataset(config, "train"))


def test_weights_of_a_model_with_other_classes_are_taken_as_far_as_they_fit(tmp_path):
    donor = _config(tmp_path / "donor")
    model = model_folder.build_model(donor)
    model_folder.prepare_directory(tmp_path / "donor", donor, model_folder.Labels(tuple("abcd"), (1, 2, 3, 4)))
    model_folder.save_weights(model, tmp_path / "donor" / model_folder.LAST)
    other = model_folder.build_model(donor.replace(num_classes=2, seed=5))
    line = model_folder.load_initial_weights(other, str(tmp_path / "donor"))
    assert "not taken: " in line
    assert "mask_head" in line or "box_head" in line
    values = {w.path: w.numpy() for w in model.weights}
    same = [w.path for w in other.weights if np.array_equal(w.numpy(), values[w.path])]
    assert len(same) >= len(other.weights) - 6


def test_mask_scoring_starts_from_a_model_without_and_can_be_left_out_again(tmp_path):
    plain = _config(tmp_path / "plain")
    scoring = plain.replace(mask_scoring=True, seed=5)
    model = model_folder.build_model(plain)
    for name, config, own in (("plain", plain, model), ("scoring", scoring, model_folder.build_model(scoring))):
        if name == "scoring":
            assert "mask_iou_head/" in model_folder.load_initial_weights(own, str(tmp_path / "plain"))
        model_folder.prepare_directory(tmp_path / name, config, Labels(tuple("abcd"), (1, 2, 3, 4)))
        model_folder.save_weights(own, tmp_path / name / model_folder.LAST)
    again, config, _ = model_folder.load_model(tmp_path / "scoring", mask_scoring=False)
    assert again.mask_iou_head is None and not config.model.mask_scoring
    for a, b in zip(again.weights, model.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


@pytest.mark.parametrize("name", ["nothing", "nothing/best.weights.h5"])
def test_opening_what_is_not_there(tmp_path, name):
    with pytest.raises(ConfigError, match="not a model folder"):
        model_folder.load_model(tmp_path / name)


def test_the_precision_that_auto_finds_is_kept_in_the_folder(tmp_path, monkeypatch, capsys):
    config = _config(tmp_path / "run", dtype="auto", steps=1)
    for speed, dtype in ((2.0, "mixed_bfloat16"), (0.2, "mixed_bfloat16")):
        monkeypatch.setattr(precision, "bfloat16_speed", lambda speed=speed: speed)
        trainer = Trainer(config, open_dataset(config, "train"))
        assert trainer.model.dtype_policy.name == dtype
        assert model_folder.read_config(tmp_path / "run").train.dtype == dtype
    config = config.replace(dtype="mixed_bfloat16")
    Trainer(config, open_dataset(config, "train"))  # as the folder has it
    assert "slower" not in capsys.readouterr().out
    Trainer(config.replace(model_dir=str(tmp_path / "other")), open_dataset(config, "train"))
    assert "5.0 times slower" in capsys.readouterr().out


def test_the_minutes_begin_after_the_first_step(tmp_path):
    # Tracing alone takes longer than this.
    _, outcome = _train(_config(tmp_path, max_minutes=1.5 / 60))
    assert outcome.step > 1


def test_what_changed_is_said_where_a_run_goes_on(tmp_path):
    config = _config(tmp_path / "run")
    train_set = open_dataset(config, "train")
    folder = model_folder.prepare_directory(tmp_path / "run", config, Labels(("a",), (1,)))
    assert what_changed(folder, config, train_set) == []  # a folder of a release that kept no facts
    write_set_facts(folder, train_set)
    assert what_changed(folder, config, train_set) == []
    other = config.replace(learning_rate=0.5, scale_jitter=(0.5, 2.0), init_weights="elsewhere")
    assert what_changed(folder, other, train_set) == [
        "changed since the run before: scale_jitter () -> 0.5,2.0, learning_rate 0.01 -> 0.5",
        "init_weights is not used: the run goes on from its checkpoint",
    ]
    train_set.boxes[0, 0] += 1
    count = len(train_set.boxes)
    assert what_changed(folder, config, train_set) == [
        f"the training set is another one than in the run before: {count} objects in 6 images then, "
        f"{count} objects in 6 images now"
    ]
