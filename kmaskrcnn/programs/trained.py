"""Which trained model a program runs: the flags of predict, evaluate and export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import flags as absl_flags

from kmaskrcnn.config import ConfigError
from kmaskrcnn.folders import config_file

PRESET = absl_flags.DEFINE_string("preset", "", "Instead of --model_dir: the name of a preset, or hf://OWNER/NAME.")
WHICH = absl_flags.DEFINE_enum(
    "which", "best", ["best", "last"], "Weights to use: the best by evaluation, or the last."
)
TOPIC = ["model_dir", "preset", "which", "offline", "mirror"]


def check_model(settings: Mapping[str, Any], needed: bool = True) -> None:
    """Raise ConfigError where both --model_dir and --preset are given, or neither though one is `needed`."""
    if settings.get("model_dir") and PRESET.value:
        raise ConfigError(f"--model_dir={settings['model_dir']} and --preset={PRESET.value}: give one of them")
    if needed and not settings.get("model_dir") and not PRESET.value:
        raise ConfigError("--model_dir is missing: a folder that training wrote; or give --preset")


def check_folder(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError where --model_dir is no model folder, before TensorFlow is started."""
    if settings.get("model_dir"):
        config_file(settings["model_dir"])


def with_own_set(settings: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Given settings for a model folder: another validation set comes without the images and the format of its own."""
    from kmaskrcnn.model_folder import read_config

    given = settings.get("val_annotations")
    if not given or given == read_config(folder).data.val_annotations:
        return dict(settings)
    return {"val_images": "", "data_format": "auto", **settings}


def trained_folder(settings: Mapping[str, Any], default: str = "") -> str:
    """The folder of --model_dir, or of --preset or else `default`, downloaded and converted the first time."""
    from kmaskrcnn.weights.convert import converted_folder

    return settings.get("model_dir") or str(converted_folder(PRESET.value or default))
