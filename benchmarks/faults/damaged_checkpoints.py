"""Lists and checkpoints that are damaged at random: each run goes on from the newest checkpoint that is whole."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import types
from pathlib import Path

import keras
import numpy as np

from benchmarks.faults import Row, tally
from kmaskrcnn.errors import TrainingError
from kmaskrcnn.training.state import TrainingState

STEPS = (1, 2, 3, 4)


def state_in(folder: Path) -> tuple[TrainingState, keras.Model]:
    """The state of a small model, and the model."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32), keras.layers.Dense(4)])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    step_function = types.SimpleNamespace(optimizer=optimizer, averages=[], loss_scale=None)
    return TrainingState(folder, model, step_function, len(STEPS), writes=True), model


def damage_bytes(path: Path, rng: random.Random) -> str:
    """Damage a file, or remove it; returns how. The content is another one in any case."""
    data = path.read_bytes()
    how = rng.choice(["removed", "emptied", "cut", "a byte changed", "zeros", "noise", "text before"])
    if how == "removed":
        path.unlink()
        return how
    place = rng.randrange(len(data))
    other = {
        "emptied": b"",
        "cut": data[:place],
        "a byte changed": data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :],
        "zeros": bytes(len(data)),
        "noise": rng.randbytes(len(data)),
        "text before": b"<<<<<<< mine\n" + data,
    }[how]
    path.write_bytes(other)
    return how


def damage(folder: Path, number: int) -> tuple[str, int]:
    """Damage a folder of four checkpoints; returns what was done and the step of the newest one that is whole."""
    rng = random.Random(number)
    done = []
    if number % 2 == 0:  # the list, alone or besides
        done.append(f"list {damage_bytes(folder / 'checkpoint', rng)}")
    hurt = rng.sample(STEPS, 0 if number % 4 == 0 else rng.randint(1, 3))
    for step in hurt:
        suffix = rng.choice([".index", ".data-00000-of-00001"])
        done.append(f"ckpt-{step}{suffix} {damage_bytes(folder / f'ckpt-{step}{suffix}', rng)}")
    return ", ".join(done), max(set(STEPS) - set(hurt))


def try_one(number: int, model: Path, folder: Path) -> str:
    """Damage a copy of a folder and go on in it; returns what went wrong, or nothing."""
    shutil.copytree(model, folder)
    done, newest = damage(folder, number)
    whole = {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("ckpt-")}
    state, network = state_in(folder)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            state.restore()
    except TrainingError as error:
        return f"number {number} ({done}): {error}"
    step = int(state.step.numpy())
    values = {float(value) for weight in network.weights for value in np.unique(weight.numpy())}
    if step != newest or values != {float(newest)}:
        return f"number {number} ({done}): resumed from step {step} with weights {values}, not {newest}"
    lost = [name for name, data in whole.items() if not (folder / name).exists() and _has_index(name, whole)]
    if lost:
        return f"number {number} ({done}): {lost[0]} was removed"
    if newest != max(STEPS) and "cannot be read" not in said.getvalue() and f"ckpt-{max(STEPS)}.index" in whole:
        return f"number {number} ({done}): not a word about it"
    state.save(99, 0.0)
    again, _ = state_in(folder)
    again.restore()
    if int(again.step.numpy()) != 99:
        return f"number {number} ({done}): what was saved after it is not found"
    shutil.rmtree(folder)
    return ""


def _has_index(name: str, names: dict[str, bytes]) -> bool:
    return name.split(".")[0] + ".index" in names


def run(count: int, folder: Path) -> list[Row]:
    """`count` folders, in half of which the list is damaged and in three of four a checkpoint."""
    state, model = state_in(folder / "whole")
    for step in STEPS:
        for weight in [*model.weights, *state._checkpoint.optimizer.variables]:
            if weight.dtype == "float32":
                weight.assign(np.full(weight.shape, step))
        state.save(step, 0.0)
    wrong = [found for number in range(count) if (found := try_one(number, folder / "whole", folder / str(number)))]
    return [tally("damaged lists and checkpoints", wrong, count, "each resumed from the newest intact one")]
