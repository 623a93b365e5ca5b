"""Weights of torchvision's Mask R-CNN models (`maskrcnn_resnet50_fpn`, `_v2`, MobileNet-FPN, fine-tuned ones)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
import numpy as np

from kmaskrcnn.weights.errors import WeightsError
from kmaskrcnn.weights.imagenet import assign_tensors, flat_block_names
from kmaskrcnn.weights.pth_reader import read_tensors

if TYPE_CHECKING:
    from kmaskrcnn.model import MaskRCNN

# What sets MaskRCNN to torchvision's semantics: its anchors, losses and numbers of proposals.
TORCHVISION_SEMANTICS = {
    "round_anchors": True,
    "fit_anchor_strides": True,
    "rpn_box_loss_beta": 1 / 9,
    "box_loss_beta": 1 / 9,
    "rpn_loss_normalizer": "sampled",
    "rpn_post_nms_top_k_train": 2000,
    "rpn_min_size": 1e-3,
    "roi_aligned": False,
    "binary_mask_targets": False,
    "mask_target_samples": 0,
}
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_BODY = "backbone.body."
_XY_TO_YX = [1, 0, 3, 2]  # torchvision's offsets are (dx, dy, dw, dh)

Transform = Callable[[np.ndarray], np.ndarray]


def _conv(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out)


def _deconv(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0)  # (in, out, h, w) -> (h, w, out, in)


def _dense(kernel: np.ndarray) -> np.ndarray:
    return kernel.T  # (out, in) -> (in, out)


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _swap_offsets(transform: Transform) -> Transform:
    """Rows of (dx, dy, dw, dh) for each anchor or class -> (dy, dx, dh, dw), before the transform."""

    def apply(x: np.ndarray) -> np.ndarray:
        groups = x.reshape(-1, 4, *x.shape[1:])  # (G * 4, ...) -> (G, 4, ...)
        return transform(groups[:, _XY_TO_YX].reshape(x.shape))

    return apply


def _flattened(height: int, width: int) -> Transform:
    """The first fully connected layer, over (C, H, W) in torch and (H, W, C) here."""

    def apply(kernel: np.ndarray) -> np.ndarray:
        out, units = kernel.shape
        kernel = kernel.reshape(out, units // (height * width), height, width)  # (O, CHW) -> (O, C, H, W)
        return kernel.transpose(2, 3, 1, 0).reshape(units, out)  # (O, C, H, W) -> (H, W, C, O) -> (HWC, O)

    return apply


def _modern_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names of files saved before torchvision 0.13 as later versions write them."""
    old = (
        (r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)", r"backbone.fpn.\1_blocks.\2.0.\3"),
        (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    )
    result = {}
    for name, value in tensors.items():
        for pattern, new in old:
            name = re.sub(f"^{pattern}$", new, name)
        if match := re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", name):
            name = f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}"
        result[name] = value
    return result


def _plan(model: MaskRCNN) -> dict[str, tuple[keras.Variable, Transform]]:
    """Each torchvision name outside the backbone's body -> our variable, and what takes one to the other."""
    plan: dict[str, tuple[keras.Variable, Transform]] = {}

    def layer(prefix: str, target: keras.layers.Layer, kernel: Transform, bias: Transform = _same) -> None:
        plan[f"{prefix}.weight"] = (target.kernel, kernel)
        if target.use_bias:
            plan[f"{prefix}.bias"] = (target.bias, bias)

    def norm(prefix: str, target: keras.layers.Layer | None) -> None:
        for variable in target.weights if target is not None else ():
            plan[f"{prefix}.{_NORM[variable.name]}"] = (variable, _same)

    fpn = model.fpn
    for i in range(4):
        layer(f"backbone.fpn.inner_blocks.{i}.0", fpn.lateral_convs[i], _conv)
        layer(f"backbone.fpn.layer_blocks.{i}.0", fpn.output_convs[i], _conv)
        if fpn.norm != "none":
            norm(f"backbone.fpn.inner_blocks.{i}.1", fpn.lateral_norms[i])
            norm(f"backbone.fpn.layer_blocks.{i}.1", fpn.output_norms[i])
    for i, conv in enumerate(model.rpn_head.convs):
        layer(f"rpn.head.conv.{i}.0", conv, _conv)
    layer("rpn.head.cls_logits", model.rpn_head.objectness, _conv)
    layer("rpn.head.bbox_pred", model.rpn_head.deltas, _swap_offsets(_conv), _swap_offsets(_same))

    box, pool = model.box_head, model.config.box_pool_size
    for i, conv in enumerate(box.convs):
        layer(f"roi_heads.box_head.{i}.0", conv, _conv)
        norm(f"roi_heads.box_head.{i}.1", box.norms[i])
    for i, fc in enumerate(box.fcs):
        # A head with convolutions is one Sequential there: convolutions, Flatten, then Linear and ReLU in turn.
        name = f"roi_heads.box_head.{len(box.convs) + 1 + 2 * i}" if box.convs else f"roi_heads.box_head.fc{6 + i}"
        layer(name, fc, _flattened(pool, pool) if i == 0 else _dense)
    layer("roi_heads.box_predictor.cls_score", box.class_logits, _dense)
    layer("roi_heads.box_predictor.bbox_pred", box.deltas, _swap_offsets(_dense), _swap_offsets(_same))

    mask = model.mask_head
    for i, conv in enumerate(mask.convs):
        layer(f"roi_heads.mask_head.{i}.0", conv, _conv)
        norm(f"roi_heads.mask_head.{i}.1", mask.norms[i])
    layer("roi_heads.mask_predictor.conv5_mask", mask.deconv, _deconv)
    plan["roi_heads.mask_predictor.mask_fcn_logits.weight"] = (mask.logits_kernel, lambda x: x[:, :, 0, 0])
    plan["roi_heads.mask_predictor.mask_fcn_logits.bias"] = (mask.logits_bias, _same)
    return plan


def load_torchvision(model: MaskRCNN, path: str | os.PathLike) -> list[str]:
    """Load a torchvision Mask R-CNN; every weight of the model is set, or none and an error is raised.

    The model's outputs are those of torchvision when it was built with `TORCHVISION_SEMANTICS`. A model with
    num_classes=90 keeps COCO's 91 ids as they are, gaps included, as torchvision's published files do.

    Args:
        model: of the same backbone, heads and number of classes (torchvision counts the background: its 91 is 90).
        path: .pth or .safetensors with a state dict. No code in it is run.

    Returns:
        Names in the file that were not used (a classifier's, if the backbone was saved with one).

    Raises:
        WeightsError: a missing, unused or misshapen tensor, or a file that is no such state dict.
    """
    source = os.fspath(path)
    tensors = _modern_names(read_tensors(source))
    body = {name: value for name, value in tensors.items() if name.startswith(_BODY)}
    rest = {n: v for n, v in tensors.items() if n not in body and not n.endswith(".num_batches_tracked")}
    plan = _plan(model)
    if missing := sorted(plan.keys() - rest.keys()):
        raise WeightsError(f"{source}: {len(missing)} tensors are missing, the first is {missing[0]}")
    if unused := sorted(rest.keys() - plan.keys()):
        raise WeightsError(f"{source}: {len(unused)} tensors have no place in the model, the first is {unused[0]}")
    values = []
    for name, (variable, transform) in plan.items():
        expected = tuple(variable.shape)
        try:
            value = transform(rest[name])
        except ValueError:
            value = None
        if value is None or value.shape != expected:
            raise WeightsError(
                f"{source}: {name} has shape {rest[name].shape}, which does not fit {variable.path} with {expected}"
            )
        values.append((variable, value))
    body = {name.removeprefix(_BODY): value for name, value in body.items()}
    if model.config.backbone == "mobilenet_v2":
        # torchvision hands the detector the classifier's `features` alone.
        body = flat_block_names({f"features.{name}": value for name, value in body.items()})
    unused_body = assign_tensors(model.backbone, body, source, torch_layout=True)
    for variable, value in values:
        variable.assign(value.astype("float32"))
    return unused_body
