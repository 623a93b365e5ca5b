"""Weights of torchvision's Mask R-CNN models (`maskrcnn_resnet50_fpn`, `_v2`, MobileNet-FPN, fine-tuned ones).

The other importers use `torchvision_entries` too: they say how their files spell torchvision's tensors.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files.reader import read_tensors
from kmaskrcnn.weights.architectures import (
    check_architecture,
    check_mobilenet,
    check_no_mask_scoring,
    check_no_point_rend,
    check_one_stage,
)
from kmaskrcnn.weights.layouts import flattened, same, to_conv, to_dense, to_depthwise
from kmaskrcnn.weights.point_rend import point_rend_entries
from kmaskrcnn.weights.transfer import Entry, LoadReport, Transform, check_shapes, take_size, transfer

if TYPE_CHECKING:
    from kmaskrcnn.model import MaskRCNN

# What sets MaskRCNN to torchvision's semantics: its anchors, losses and numbers of proposals.
TORCHVISION_SEMANTICS = {
    "round_anchors": True,
    "fit_anchor_strides": True,
    "rpn_box_loss": "smooth_l1",
    "rpn_box_loss_beta": 1 / 9,
    "box_loss": "smooth_l1",
    "box_loss_beta": 1 / 9,
    "rpn_loss_normalizer": "sampled",
    "rpn_post_nms_top_k_train": 2000,
    "rpn_min_size": 1e-3,
    "box_min_size": 1e-2,
    "roi_aligned": False,
    "binary_mask_targets": False,
    "mask_target_samples": 0,
    "mask_paste": "rounded_boxes",
}
EPSILON = 1e-5  # of the normalizations here
NORM_WEIGHTS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_BODY = "backbone.body."
_COUNTER = ".num_batches_tracked"  # PyTorch counts the batches a normalization has seen; that is no weight
_MASK_LOGITS = "roi_heads.mask_predictor.mask_fcn_logits.weight"
_XY_TO_YX = [1, 0, 3, 2]  # torchvision's offsets are (dx, dy, dw, dh)
# What the classifier that became the backbone may have left behind.
_SPARE = re.compile(r"backbone\.body\.(fc|classifier|18)\.")


def _swap_offsets(transform: Transform) -> Transform:
    """Rows of (dx, dy, dw, dh) for each anchor or class -> (dy, dx, dh, dw), before the transform."""

    def apply(x: np.ndarray) -> np.ndarray:
        groups = x.reshape(-1, 4, *x.shape[1:])  # (G * 4, ...) -> (G, 4, ...)
        return transform(groups[:, _XY_TO_YX].reshape(x.shape))

    return apply


def _body_name(backbone: str, layer: str) -> str:
    """Our backbone's layer -> torchvision's module: "layer1_0_conv1" -> "layer1.0.conv1"."""
    name = layer.replace("_", ".")
    if backbone != "mobilenet_v2":
        return name
    # torchvision hands the detector the classifier's `features`, and nests each convolution with its norm.
    name = name.removeprefix("features.")
    if match := re.fullmatch(r"(\d+)\.conv\.(\d+)", name):
        block, position = int(match[1]), int(match[2])
        nested = 1 if block == 1 else 2  # the first block does not expand
        inner = f"{position // 3}.{position % 3}" if position < 3 * nested else str(position - 2 * nested)
        name = f"{block}.conv.{inner}"
    return name


def modern_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict without batch counters, under the names that torchvision writes since 0.13."""
    old = (
        (r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(weight|bias)", r"backbone.fpn.\1_blocks.\2.0.\3"),
        (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.conv.0.0.\1"),
    )
    result = {}
    for name, value in tensors.items():
        if name.endswith(_COUNTER):
            continue
        for pattern, new in old:
            name = re.sub(f"^{pattern}$", new, name)
        if match := re.fullmatch(r"roi_heads\.mask_head\.mask_fcn(\d)\.(weight|bias)", name):
            name = f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}"
        result[name] = value
    return result


def torchvision_entries(model: MaskRCNN) -> list[Entry]:
    """An entry for every weight of the model, by the tensors of a torchvision state dict (PyTorch's layout).

    What torchvision does not have: the further stages of a cascade are named as the box head, after a stageN, and
    PointRend masks as in Detectron2.
    """
    entries: list[Entry] = []

    def add(name: str, variable: keras.Variable, transform: Transform, last: bool = False) -> None:
        entries.append(Entry(variable, (name,), transform, last))

    def layer(
        prefix: str, target: keras.layers.Layer, kernel: Transform, bias: Transform = same, last: bool = False
    ) -> None:
        add(f"{prefix}.weight", target.kernel, kernel, last)
        if target.use_bias:
            add(f"{prefix}.bias", target.bias, bias, last)

    def norm(prefix: str, target: keras.layers.Layer | None) -> None:
        for variable in target.weights if target is not None else ():
            add(f"{prefix}.{NORM_WEIGHTS[variable.name]}", variable, same)

    for part in model.backbone.layers:
        name = _BODY + _body_name(model.config.backbone, part.name)
        if isinstance(part, keras.layers.DepthwiseConv2D):
            layer(name, part, to_depthwise)
        elif isinstance(part, keras.layers.Conv2D):
            layer(name, part, to_conv)
        elif part.weights:
            norm(name, part)

    fpn = model.fpn
    for i in range(4):
        layer(f"backbone.fpn.inner_blocks.{i}.0", fpn.lateral_convs[i], to_conv)
        layer(f"backbone.fpn.layer_blocks.{i}.0", fpn.output_convs[i], to_conv)
        if fpn.norm != "none":
            norm(f"backbone.fpn.inner_blocks.{i}.1", fpn.lateral_norms[i])
            norm(f"backbone.fpn.layer_blocks.{i}.1", fpn.output_norms[i])
    for i, conv in enumerate(model.rpn_head.convs):
        layer(f"rpn.head.conv.{i}.0", conv, to_conv)
    layer("rpn.head.cls_logits", model.rpn_head.objectness, to_conv)
    layer("rpn.head.bbox_pred", model.rpn_head.deltas, _swap_offsets(to_conv), _swap_offsets(same))

    pool = model.config.box_pool_size
    for stage, box in enumerate((model.box_head, *(model.cascade.heads if model.cascade is not None else ())), 1):
        heads = "roi_heads" if stage == 1 else f"roi_heads.stage{stage}"
        for i, conv in enumerate(box.convs):
            layer(f"{heads}.box_head.{i}.0", conv, to_conv)
            norm(f"{heads}.box_head.{i}.1", box.norms[i])
        for i, fc in enumerate(box.fcs):
            # A head with convolutions is one Sequential there: convolutions, Flatten, then Linear and ReLU in turn.
            name = f"{len(box.convs) + 1 + 2 * i}" if box.convs else f"fc{6 + i}"
            layer(f"{heads}.box_head.{name}", fc, flattened(pool) if i == 0 else to_dense)
        layer(f"{heads}.box_predictor.cls_score", box.class_logits, to_dense, last=True)
        last = not box.class_agnostic
        layer(f"{heads}.box_predictor.bbox_pred", box.deltas, _swap_offsets(to_dense), _swap_offsets(same), last)

    mask = model.mask_head
    if model.config.mask_point_rend:
        return entries + list(point_rend_entries(mask))
    for i, conv in enumerate(mask.convs):
        layer(f"roi_heads.mask_head.{i}.0", conv, to_conv)
        norm(f"roi_heads.mask_head.{i}.1", mask.norms[i])
    layer("roi_heads.mask_predictor.conv5_mask", mask.deconv, to_conv)
    logits = "roi_heads.mask_predictor.mask_fcn_logits"
    add(f"{logits}.weight", mask.logits_kernel, lambda x: x[:, :, 0, 0], last=not mask.class_agnostic)
    add(f"{logits}.bias", mask.logits_bias, same, last=not mask.class_agnostic)
    return entries


def torchvision_settings(path: str | os.PathLike, fresh_masks: bool = False) -> dict[str, Any]:
    """The settings of the MaskRCNN that a torchvision file fits: TORCHVISION_SEMANTICS, and its sizes.

    Args:
        path: the file.
        fresh_masks: it holds a Faster R-CNN, which gets a new mask head of the default size.

    Anchor sizes and ratios are not in such files and stay the defaults, which are torchvision's. The backbone's norm
    is "bn" where the file has batch counters (`_v2`, or trained from scratch), and "frozen_bn" where not.

    Raises:
        WeightsError: the file cannot be read, or holds no Mask R-CNN with a backbone of ours.
    """
    source = os.fspath(path)
    raw = read_tensors(source)
    has_counters = any(name.startswith(_BODY) and name.endswith(_COUNTER) for name in raw)
    tensors = modern_names(raw)
    check_architecture(tensors, source, fresh_masks)
    settings = TORCHVISION_SEMANTICS | {"backbone": _find_backbone(tensors, source)}
    settings["backbone_norm"] = "bn" if has_counters else "frozen_bn"
    if has_counters:
        settings["frozen_stages"] = 0  # as torchvision trains from scratch
    return settings | head_sizes(tensors, source)


def _find_backbone(tensors: Mapping[str, np.ndarray], source: str) -> str:
    if any(re.match(r"backbone\.body\.(0\.0|\d+\.conv)\.", name) for name in tensors):
        check_mobilenet(tensors, source)
        return "mobilenet_v2"
    blocks = [rf"backbone\.body\.layer{i}\.\d+\.conv1\.weight" for i in (1, 2, 3, 4)]
    counts = [sum(re.fullmatch(pattern, name) is not None for name in tensors) for pattern in blocks]
    return resnet_of_blocks(counts, f"{_BODY}layer1.0.conv3.weight" in tensors, source)


def resnet_of_blocks(counts: list[int], bottleneck: bool, source: str) -> str:
    """The ResNet with these numbers of blocks; raises WeightsError where there is none."""
    # Imported here, since the backbones import the readers of this package.
    from kmaskrcnn.backbones.resnet import BLOCKS

    for name, blocks in BLOCKS.items():
        if blocks == (tuple(counts), bottleneck):
            return name
    raise WeightsError(
        f"{source}: not a supported backbone: it is neither a ResNet-18/34/50/101/152 nor MobileNetV2 (blocks {counts})"
    )


def head_sizes(tensors: Mapping[str, np.ndarray], source: str, background: bool = True) -> dict[str, Any]:
    """The settings that the shapes of the FPN and the heads tell.

    Args:
        tensors: under torchvision's names.
        source: the file, for messages.
        background: the box offsets and masks have rows for the background.

    Raises:
        WeightsError: one of the shapes is absent, or does not fit the others.
    """

    def size(name: str, axis: int = 0) -> int:
        return take_size(tensors, name, axis, source)

    def widths(pattern: str) -> tuple[int, ...]:
        found = {int(m[1]): len(v) for n, v in tensors.items() if (m := re.fullmatch(pattern, n)) and v.ndim}
        return tuple(found[key] for key in sorted(found))

    def norm_at(prefix: str) -> str:
        if f"{prefix}.weight" not in tensors:
            return "none"
        return "bn" if f"{prefix}.running_mean" in tensors else "gn"

    convs = widths(r"roi_heads\.box_head\.(\d+)\.0\.weight")
    fcs = widths(r"roi_heads\.box_head\.fc(\d+)\.weight") or widths(r"roi_heads\.box_head\.(\d+)\.weight")
    channels = size("backbone.fpn.layer_blocks.0.0.weight")
    rpn, classes = size("rpn.head.cls_logits.weight", 1), size("roi_heads.box_predictor.cls_score.weight")
    first_fc = "roi_heads.box_head." + (f"{len(convs) + 1}.weight" if convs else "fc6.weight")
    settings = {
        "num_classes": classes - 1,
        "fpn_channels": channels,
        "fpn_norm": norm_at("backbone.fpn.inner_blocks.0.1"),
        "rpn_conv_layers": len(widths(r"rpn\.head\.conv\.(\d+)\.0\.weight")),
        "rpn_channels": 0 if rpn == channels else rpn,
        "box_pool_size": math.isqrt(size(first_fc, 1) // (convs[-1] if convs else channels)),
        "box_conv_channels": convs,
        "box_fc_channels": fcs,
        # Of one class both kinds are the same.
        "box_class_agnostic": classes > 2 and size("roi_heads.box_predictor.bbox_pred.weight") == 4,
        "mask_class_agnostic": classes > 2 and len(tensors.get(_MASK_LOGITS, ())) == 1,
        "mask_conv_channels": widths(r"roi_heads\.mask_head\.(\d+)\.0\.weight"),
        "head_norm": norm_at("roi_heads.mask_head.0.1"),
    }
    if not any("mask" in name for name in tensors):  # a Faster R-CNN, whose mask head will be a new one
        settings |= {"mask_conv_channels": (channels,) * 4, "head_norm": norm_at("roi_heads.box_head.0.1")}
    rows = 1 if settings["mask_class_agnostic"] else classes - (not background)
    check_shapes(tensors, _head_shapes(settings, rpn, rows), source)
    return settings


def _head_shapes(settings: Mapping[str, Any], rpn: int, rows: int) -> dict[str, tuple[int | None, ...]]:
    """The shapes of the heads' kernels by `head_sizes`' settings, with so many rows for masks."""
    channels, convs, fcs = settings["fpn_channels"], settings["box_conv_channels"], settings["box_fc_channels"]
    masks, pool = settings["mask_conv_channels"], settings["box_pool_size"]
    chains = {"rpn.head.conv": (rpn,) * settings["rpn_conv_layers"], "roi_heads.box_head": convs}
    chains["roi_heads.mask_head"] = masks
    shapes: dict[str, tuple[int | None, ...]] = {"backbone.fpn.layer_blocks.0.0.weight": (channels, channels, 3, 3)}
    for prefix, widths in chains.items():
        for i, (inputs, outputs) in enumerate(itertools.pairwise((channels, *widths))):
            shapes[f"{prefix}.{i}.0.weight"] = (outputs, inputs, 3, 3)
    flat = pool * pool * (convs[-1] if convs else channels)
    for i, (inputs, outputs) in enumerate(itertools.pairwise((flat, *fcs))):
        name = str(len(convs) + 1 + 2 * i) if convs else f"fc{6 + i}"
        shapes[f"roi_heads.box_head.{name}.weight"] = (outputs, inputs)
    last = masks[-1] if masks else channels
    return shapes | {
        "rpn.head.cls_logits.weight": (None, rpn, 1, 1),
        "roi_heads.box_predictor.cls_score.weight": (settings["num_classes"] + 1, fcs[-1] if fcs else flat),
        "roi_heads.mask_predictor.conv5_mask.weight": (last, None, 2, 2),
        _MASK_LOGITS: (rows, last, 1, 1),
    }


def _with_epsilon(tensors: dict[str, np.ndarray], epsilon: float) -> None:
    """Fold the difference between the file's epsilon and ours into the scales of the backbone's normalizations."""
    for name, variance in tensors.items():
        if name.startswith(_BODY) and name.endswith(".running_var"):
            scale = name.removesuffix("running_var") + "weight"
            variance = variance.astype("float64")
            # Without any variance torchvision's scale would be infinite; leave such a channel alone.
            theirs = np.where(variance + epsilon > 0, variance + epsilon, variance + EPSILON)
            tensors[scale] = tensors[scale] * np.sqrt((variance + EPSILON) / theirs)


def load_torchvision(
    model: MaskRCNN,
    path: str | os.PathLike,
    new_classes: bool = False,
    norm_epsilon: float = EPSILON,
    fresh_masks: bool = False,
) -> LoadReport:
    """Load a torchvision Mask R-CNN; every weight of the model is set, or none and an error is raised.

    The model's outputs are those of torchvision when it was built with `torchvision_settings(path)`. A model with
    num_classes=90 keeps COCO's 91 ids as they are, gaps included, as torchvision's published files do.

    Args:
        model: of the same backbone and heads (torchvision counts the background: its 91 classes are 90).
        path: .pth or .safetensors with a state dict. No code in it is run.
        new_classes: where the number of classes differs, load everything but the last layers.
        norm_epsilon: of the backbone's normalizations there. It is 1e-5 but for torchvision's published
            maskrcnn_resnet50_fpn_coco (COCO_V1) and what was fine-tuned from it, which have 0.
        fresh_masks: the file holds a Faster R-CNN: leave the mask head as it is.

    Returns:
        What was used and what was not.

    Raises:
        WeightsError: a missing, left-over or misshapen tensor, or a file that is no such state dict.
    """
    source = os.fspath(path)
    check_one_stage(model, source)
    check_no_mask_scoring(model, source)
    check_no_point_rend(model, source, fresh_masks)
    tensors = modern_names(read_tensors(source))
    entries = torchvision_entries(model)
    if norm_epsilon != EPSILON:
        _with_epsilon(tensors, norm_epsilon)
    return transfer(entries, tensors, source, lambda name: bool(_SPARE.match(name)), new_classes, fresh_masks)


def respelled(entries: list[Entry], spell: Callable[[str], tuple[tuple[str, ...], Transform]]) -> list[Entry]:
    """Entries for a file that spells torchvision's tensors in its own way.

    Args:
        entries: of `torchvision_entries`.
        spell: torchvision's name -> names in the file, and what takes their arrays to torchvision's array.
    """

    def compose(outer: Transform, inner: Transform) -> Transform:
        return lambda *arrays: outer(inner(*arrays))

    result = []
    for entry in entries:
        names, inner = spell(entry.names[0])
        result.append(Entry(entry.variable, names, compose(entry.transform, inner), entry.is_last_layer))
    return result
