"""The way back: a model of ours as a state dict that torchvision or Detectron2 loads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kmaskrcnn.backbones.resnet import is_resnet_d
from kmaskrcnn.errors import WeightsError
from kmaskrcnn.model import MaskRCNN
from kmaskrcnn.weight_files.writer import write_pth
from kmaskrcnn.weights.detectron2 import DETECTRON2_SEMANTICS, detectron2_entries
from kmaskrcnn.weights.torchvision import TORCHVISION_SEMANTICS, torchvision_entries
from kmaskrcnn.weights.transfer import Entry

TARGETS = ("torchvision", "detectron2")
_BATCH_NORMS = ("bn", "sync_bn")
_MEAN, _COUNTER = ".running_mean", ".num_batches_tracked"


def state_dict(model: MaskRCNN, target: str, rgb: bool = False) -> dict[str, np.ndarray]:
    """The weights of a model under another program's names and in its layout, float32.

    What was imported comes back bit for bit. Detectron2's background has neither box offsets nor masks, so the rows
    that ours has for it, which nothing reads, are left out.

    Args:
        model: with a backbone that the target has.
        target: one of TARGETS.
        rgb: detectron2: the model there takes RGB pixels (INPUT.FORMAT); default: BGR.

    Raises:
        WeightsError: the target has no such network.
    """
    backbone, config = model.config.backbone, model.config
    if target not in TARGETS:
        raise WeightsError(f"{target}: choose one of {', '.join(TARGETS)}")
    if is_resnet_d(backbone) or ((target == "detectron2" or backbone != "mobilenet_v2") and backbone[:6] != "resnet"):
        raise WeightsError(f"{target} has no Mask R-CNN with {backbone}")
    if target == "torchvision" and config.backbone_stride_in_1x1:
        raise WeightsError(
            "torchvision has no ResNet with its strides in the 1x1 convolutions: export it for detectron2"
        )
    if target == "torchvision" and config.cascade_ious:
        raise WeightsError("torchvision has no Cascade R-CNN: export it for detectron2")
    if target == "torchvision" and config.mask_point_rend:
        raise WeightsError("torchvision has no PointRend: export it for detectron2")
    if target == "torchvision" and (config.box_class_agnostic or config.mask_class_agnostic):
        raise WeightsError("torchvision has no class-agnostic heads: export it for detectron2")
    entries = torchvision_entries(model) if target == "torchvision" else detectron2_entries(model, rgb)
    frozen = _frozen_names(model, entries)
    tensors: dict[str, np.ndarray] = {}
    for entry in entries:
        (name,) = entry.names
        tensors[name] = _inverse(entry)
        if name.endswith(_MEAN) and name not in frozen:
            tensors[name.removesuffix(_MEAN) + _COUNTER] = np.zeros((), "int64")
    return tensors


def write_state_dict(model: MaskRCNN, path: str | os.PathLike, target: str, rgb: bool = False) -> list[str]:
    """Write `state_dict` as .pth; returns a line for each setting in which the model differs from the target's usual.

    Raises:
        WeightsError: the target has no such network, or the file is there already or cannot be written.
    """
    write_pth(path, state_dict(model, target, rgb))
    usual: Mapping[str, Any] = TORCHVISION_SEMANTICS if target == "torchvision" else DETECTRON2_SEMANTICS
    usual = {**usual, "soft_nms_sigma": 0.0, "mask_scoring": False}  # neither has them; the MaskIoU head is left out
    if target == "detectron2" and model.config.mask_point_rend:
        usual["mask_subdivisions"] = 5
    return list(_differences(model, usual))


def _frozen_names(model: MaskRCNN, entries: list[Entry]) -> set[str]:
    """Statistics that never change there, whose normalizations count no batches."""
    if model.config.backbone_norm != "frozen_bn":
        return set()
    paths = {weight.path for weight in model.backbone.weights}
    return {entry.names[0] for entry in entries if entry.variable.path in paths}


def _inverse(entry: Entry) -> np.ndarray:
    """The file's array of a variable.

    Every transform moves elements, and may put zeros before them: so numbers from 1 on, sent through it, say where each
    element came from.
    """
    value = keras.ops.convert_to_numpy(entry.variable).astype("float32")
    for shape in _file_shapes(value.shape):
        numbers = np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape)
        try:
            places = entry.transform(numbers)
        except (ValueError, IndexError):
            continue
        if places.shape == value.shape:
            result = np.empty(shape, "float32")
            result.reshape(-1)[places[places > 0] - 1] = value[places > 0]
            return result
    raise AssertionError(f"no layout for {entry.names[0]}")


def _file_shapes(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shapes that an array of the file may have; rows of the background are in it or not."""
    for without in (0, 1, 4):
        if len(shape) == 1:
            yield (shape[0] - without,)
        elif len(shape) == 2:
            inputs, outputs = shape
            yield (outputs - without, inputs)
            yield (outputs, inputs // 4, 2, 2)  # PointRend's coarse head, before what a square kernel would fit too
            yield (inputs - without, outputs, 1, 1)  # the mask logits
            yield (outputs, inputs, 1, 1)
            yield (outputs, inputs, 1)  # its point head, of convolutions over points
            yield (inputs, outputs, 1)  # and that head's logits
        else:
            height, width, inputs, outputs = shape
            yield (outputs, inputs, height, width)
            yield (inputs, outputs, height, width)  # depthwise


def _differences(model: MaskRCNN, usual: Mapping[str, Any]) -> Iterator[str]:
    config = model.config
    for name, value in usual.items():
        if getattr(config, name) != value:
            yield f"{name} is {getattr(config, name)} here and {value} there"
    for name in ("image_mean", "image_std", "anchor_sizes", "anchor_aspect_ratios"):
        value = getattr(model, f"_{name.removeprefix('image_')}") if name.startswith("image") else getattr(config, name)
        yield f"{name}, to be set there: {','.join(f'{v:g}' for v in value)}"
