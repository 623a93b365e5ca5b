"""Checkpoints: what is damaged is passed over, nothing is deleted on the word of a list, and names are no patterns."""

import types

import keras
import numpy as np
import pytest

from kmaskrcnn.errors import TrainingError
from kmaskrcnn.training.state import TrainingState


def _state(folder, keep=2, writes=True):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    step_function = types.SimpleNamespace(optimizer=optimizer, averages=[], loss_scale=None)
    return TrainingState(folder, model, step_function, keep, writes), model


def _save(folder, *steps, keep=2):
    """Checkpoints of some steps, each with its number for a weight."""
    state, model = _state(folder, keep)
    state.restore()
    for step in steps:
        for weight in model.weights:
            weight.assign(np.full(weight.shape, step))
        state.save(step, 0.0)
    return state


def _restored(folder, **keywords):
    state, model = _state(folder, **keywords)
    assert state.restore()
    step = int(state.step.numpy())
    for weight in model.weights:
        np.testing.assert_array_equal(weight.numpy(), step)
    return step


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\x00\xff\xfe",
        b'model_checkpoint_path: "ckpt-',
        b'model_checkpoint_path: "ckpt-9"\n',
        b'model_checkpoint_path: "/gone/ckpt-1"\nall_model_checkpoint_paths: "/gone/ckpt-1"\n',
        b"{}",
    ],
)
def test_a_list_that_is_damaged_or_missing_costs_nothing(tmp_path, content, capsys):
    _save(tmp_path, 1, 2, 3)
    names = _names(tmp_path)
    good = (tmp_path / "checkpoint").read_bytes()
    (tmp_path / "checkpoint").unlink() if content is None else (tmp_path / "checkpoint").write_bytes(content)
    assert _restored(tmp_path) == 3
    assert _names(tmp_path) == names
    assert (tmp_path / "checkpoint").read_bytes() == good
    assert "used the files beside it" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_passed_over_and_never_costs_the_whole_one(tmp_path, capsys):
    _save(tmp_path, 1, 2, 3)
    data = tmp_path / "ckpt-3.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-20])
    state, _ = _state(tmp_path)
    assert state.restore()
    assert int(state.step.numpy()) == 2
    assert f"{tmp_path / 'ckpt-3'} cannot be read" in capsys.readouterr().out
    state.save(3, 0.0)
    assert {"ckpt-2.index", "ckpt-3.index", "ckpt-4.index"} <= set(_names(tmp_path))  # two whole ones, keep=2
    state.save(4, 0.0)
    assert [n for n in _names(tmp_path) if n.endswith(".index")] == ["ckpt-4.index", "ckpt-5.index"]


def test_nothing_that_can_be_read_is_an_error_and_deletes_nothing(tmp_path):
    _save(tmp_path, 1, 2)
    for path in tmp_path.glob("*.index"):
        path.write_bytes(b"")
    names = _names(tmp_path)
    with pytest.raises(TrainingError, match=r"ckpt-2 cannot be read .*ckpt-1 cannot be read .*remove the folder"):
        _state(tmp_path)[0].restore()
    for path in tmp_path.glob("*.index"):
        path.unlink()
    with pytest.raises(TrainingError, match=r"holds ckpt-1.data-00000-of-00001, .* without the .index"):
        _state(tmp_path)[0].restore()
    assert [n for n in names if not n.endswith(".index")] == _names(tmp_path)


@pytest.mark.parametrize("name", ["a*", "lr=[0.1]", "[x", "a?", "a\\b", "{a,b}"])
def test_characters_of_patterns_are_characters(tmp_path, name):
    for neighbor in ("a_other", "ab", "a"):
        _save(tmp_path / neighbor, 1)
    _save(tmp_path / name, 1, 2, 3)
    assert _restored(tmp_path / name) == 3
    assert [n for n in _names(tmp_path / name) if n.endswith(".index")] == ["ckpt-2.index", "ckpt-3.index"]
    for neighbor in ("a_other", "ab", "a"):
        assert _restored(tmp_path / neighbor) == 1


def test_what_killed_saves_leave_is_removed_and_other_files_are_not(tmp_path):
    _save(tmp_path, 1, 2)
    names = _names(tmp_path)
    (tmp_path / "ckpt-9_temp").mkdir()
    for name in ("part.ckpt-3.index", "ckpt-9.data-00000-of-00001.tempstate1", "ckpt-3.data-00000-of-00001"):
        (tmp_path / name).write_bytes(b"half")
    for name in ("notes.txt", "ckpt-best.index", "ckpt-2.index.bak"):
        (tmp_path / name).write_bytes(b"mine")
    assert _restored(tmp_path) == 2
    assert _names(tmp_path) == sorted([*names, "notes.txt", "ckpt-best.index", "ckpt-2.index.bak"])
    _save(tmp_path, 3, 4)
    assert {"notes.txt", "ckpt-best.index", "ckpt-2.index.bak"} <= set(_names(tmp_path))


def test_a_save_that_was_killed_between_data_and_index_does_not_stop_a_fresh_run(tmp_path):
    _save(tmp_path, 1)
    (tmp_path / "ckpt-1.index").rename(tmp_path / "part.ckpt-1.index")
    assert not _state(tmp_path)[0].restore()
    _save(tmp_path, 2)
    assert _restored(tmp_path) == 2


def test_checkpoints_of_the_first_release_are_read(tmp_path):
    state, model = _state(tmp_path)
    state.step.assign(7)
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 7))
    state._first_release.save(str(tmp_path / "ckpt"))
    assert _restored(tmp_path) == 7
