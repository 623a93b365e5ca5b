"""What a model folder holds, and how to open one.

config.json          the resolved settings
labels.json          class names and COCO category ids
best.weights.h5      the weights with the best evaluation (moving averages with ema_decay, here and below)
last.weights.h5      the weights of the newest checkpoint
checkpoints/         the newest checkpoints, to resume from
metrics.jsonl        losses, rates and scores, a line each
tensorboard/         the same for TensorBoard, with images
training.lock        while a training runs: who writes here
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import keras

from kmaskrcnn import backbones
from kmaskrcnn.collector import held_collector
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.errors import LOCK, TrainingError
from kmaskrcnn.folders import config_file, local_folder
from kmaskrcnn.layers.initializers import weights_follow
from kmaskrcnn.model import MaskRCNN
from kmaskrcnn.results.labels import Labels, read_labels, write_labels, write_text

WEIGHTS_SUFFIX = ".weights.h5"
BEST, LAST = "best" + WEIGHTS_SUFFIX, "last" + WEIGHTS_SUFFIX


def save_weights(model: keras.Model, path: Path) -> None:
    """Write a weights file so that it is either whole or not there."""
    temporary = path.with_name("part." + path.name)
    model.save_weights(temporary)
    os.replace(temporary, path)


def is_started(directory: str | os.PathLike) -> bool:
    """Whether a folder holds weights or checkpoints; without them there is nothing that another run could spoil."""
    path = Path(directory)
    return any(path.glob(f"*{WEIGHTS_SUFFIX}")) or any(path.glob("checkpoints/ckpt-*.index"))


def open_directory(directory: str | os.PathLike, config: Config, labels: Labels) -> Path:
    """Make the model folder, or check that the one there holds the same model, without writing into it.

    Raises:
        ConfigError: the name is no local folder's, or the settings there cannot be read.
        TrainingError: it cannot be made, or holds a different model or other classes.
    """
    path = local_folder(directory)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None
    if (path / "config.json").exists() and is_started(path):
        _check_same_model(path, config, labels)
    return path


def check_directory(directory: str | os.PathLike, config: Config, labels: Labels) -> Path:
    """For the workers beside the one that made the model folder: raise TrainingError where they see another one."""
    path = local_folder(directory)
    if not (path / LOCK).exists():
        raise TrainingError(
            f"model_dir={directory} is not there on this worker: it must be a folder that all workers share"
        )
    if (path / "config.json").exists() and is_started(path):
        _check_same_model(path, config, labels)
    return path


def write_settings(path: Path, config: Config, labels: Labels) -> None:
    """Write config.json and labels.json into a model folder; raises TrainingError where that fails."""
    try:
        write_text(path / "config.json", config.to_json())
        write_labels(path, labels)
    except OSError as error:
        raise _cannot_write(path, error) from None


def prepare_directory(directory: str | os.PathLike, config: Config, labels: Labels) -> Path:
    """`open_directory` and `write_settings` in one, where nothing comes between that could fail."""
    path = open_directory(directory, config, labels)
    write_settings(path, config, labels)
    return path


def _cannot_write(path: Path, error: OSError) -> TrainingError:
    return TrainingError(f"model_dir={path} cannot be written: {error.strerror}")


def _check_same_model(path: Path, config: Config, labels: Labels) -> None:
    old, old_labels = read_config(path), read_labels(path)
    old_model, new_model = dataclasses.asdict(old.model), dataclasses.asdict(config.model)
    different = [name for name in new_model if new_model[name] != old_model[name]]
    if different:
        name = different[0]
        raise TrainingError(
            f"model_dir={path} holds a model with {name}={old_model[name]!r}, not {new_model[name]!r}: "
            "choose another folder, or start from its weights with init_weights"
        )
    if old_labels != labels:
        raise TrainingError(
            f"model_dir={path} holds a model of the classes {list(old_labels.class_names)}, "
            f"not {list(labels.class_names)}: choose another folder"
        )


def read_config(directory: str | os.PathLike) -> Config:
    """The settings of a model folder; raises ConfigError where there is none."""
    path = config_file(directory)
    try:
        return Config.from_json(path.read_text())
    except (ConfigError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def saved_dtype(directory: str | os.PathLike) -> str:
    """The precision that the model in a folder was trained with; empty where nothing is there or it is not known."""
    if not (local_folder(directory) / "config.json").is_file():
        return ""
    dtype = read_config(directory).train.dtype
    return "" if dtype == "auto" else dtype


def load_model(path: str | os.PathLike, which: str = "best", **settings: Any) -> tuple[MaskRCNN, Config, Labels]:
    """Open a model folder, or one weights file in it.

    Args:
        path: the model_dir of training, or a .weights.h5 file in it.
        which: "best", by evaluation, or "last"; if there is no best, the last. Ignored if path is a file.
        **settings: replace those of config.json, such as max_detections or dtype.

    Returns:
        The model with its weights, the settings it was trained with, and its labels.

    Raises:
        ConfigError: no model folder, or one without weights, or weights of another model.
    """
    if which not in ("best", "last"):
        raise ConfigError(f"which={which!r}: choose best or last")
    path = local_folder(path)
    directory, files = path, [path / name for name in ((BEST, LAST) if which == "best" else (LAST,))]
    if path.name.endswith(WEIGHTS_SUFFIX):
        directory, files = path.parent, [path]
    config, labels = read_config(directory).replace(**settings), read_labels(directory)
    weights = next((file for file in files if file.is_file()), None)
    if weights is None:
        raise ConfigError(f"{directory} has no {' or '.join(f.name for f in files)}: nothing was saved there yet")
    with held_collector(), weights_follow():
        model = build_model(config)
    try:
        with held_collector():
            model.load_weights(weights)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{weights} does not hold the weights of the model in config.json: {reason}") from None
    return model, config, labels


def build_model(config: Config) -> MaskRCNN:
    """A model with random weights, made from the settings; the same seed gives the same weights.

    Where dtype is "auto", which `Trainer` resolves before, it is float32.
    """
    keras.utils.set_random_seed(config.train.seed)
    dtype = "float32" if config.train.dtype == "auto" else config.train.dtype
    return MaskRCNN(seed=config.train.seed, dtype=dtype, **dataclasses.asdict(config.model))


def load_initial_weights(model: MaskRCNN, source: str) -> str:
    """Load what `init_weights` names; returns a line that says what was loaded and what was not.

    Args:
        model: to load into.
        source: a model folder or one of its .weights.h5 files (every weight of equal name and shape is taken, so that
            the number of classes may differ), or a backbone's weights: "imagenet", a .npz, .pth or .safetensors file.

    Raises:
        ConfigError, WeightsError: nothing there, or nothing that fits.
    """
    if not Path(source).expanduser().is_dir() and not source.endswith(WEIGHTS_SUFFIX):
        backbones.load_weights(model.backbone, model.config.backbone, source)
        return f"starting from the backbone weights {source}"
    donor, _, _ = load_model(source)
    values = {variable.path: variable for variable in donor.weights}
    fitting = [v for v in model.weights if v.path in values and values[v.path].shape == v.shape]
    if not fitting:
        raise ConfigError(f"init_weights={source}: no weight of that model fits this one")
    for variable in fitting:
        variable.assign(values[variable.path])
    taken = {variable.path for variable in fitting}
    left = [variable.path for variable in model.weights if variable.path not in taken]
    more = f" and {len(left) - 6} more" if len(left) > 6 else ""
    rest = f"; not taken: {', '.join(left[:6])}{more}" if left else ""
    return f"starting from {len(fitting)} of {len(model.weights)} weights of {source}{rest}"
