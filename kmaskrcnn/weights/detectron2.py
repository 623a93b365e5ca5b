"""Weights of Detectron2's Mask R-CNN models with a ResNet-FPN: the model zoo's .pkl, and .pth of its trainer.

What the conversion takes care of: BGR pixels become RGB, the background class moves from the end to the front, and
the box offsets and masks, which the background has none of there, get a row of zeros for it unless there is one row for
all classes. Models of its PointRend project are read too.

What stays different (see `DIFFERENCES`): the number of RoIAlign samples, which Detectron2 lets grow with the RoI.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files.reader import read_tensors
from kmaskrcnn.weights.architectures import check_architecture, check_no_mask_scoring, check_no_point_rend
from kmaskrcnn.weights.layouts import same
from kmaskrcnn.weights.point_rend import PREDICTOR, new_names, point_rend_settings
from kmaskrcnn.weights.torchvision import head_sizes, resnet_of_blocks, respelled, torchvision_entries
from kmaskrcnn.weights.transfer import Entry, LoadReport, Transform, transfer

if TYPE_CHECKING:
    from kmaskrcnn.model import MaskRCNN

# What sets MaskRCNN to the semantics of Detectron2's Base-RCNN-FPN.yaml; most are the defaults.
DETECTRON2_SEMANTICS = {
    "round_anchors": False,
    "fit_anchor_strides": False,
    "rpn_box_loss": "smooth_l1",
    "rpn_box_loss_beta": 0.0,
    "box_loss": "smooth_l1",
    "box_loss_beta": 0.0,
    "rpn_loss_normalizer": "batch_size",
    "rpn_post_nms_top_k_train": 1000,
    "rpn_min_size": 0.0,
    "box_min_size": 0.0,
    "roi_aligned": True,
    "roi_sampling_ratio": 0,
    "binary_mask_targets": True,
    "box_class_agnostic": False,
    "mask_class_agnostic": False,
    "cascade_ious": (),
    "mask_point_rend": False,
}
DIFFERENCES = (
    "training masks are thresholded crops of the stored masks; Detectron2 rasterizes the polygons in each RoI",
)
_MEAN_RGB = (123.675, 116.28, 103.53)
_TORCHVISION_STD = (58.395, 57.12, 57.375)
# Buffers that say how the model was built, and are no weights.
_ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
_PIXELS = ("pixel_mean", "pixel_std")
_SIZED = ("weight", "running_mean")
# Of a cascade Detectron2's IoUs, which are in no tensor; models with more box heads than these are not known.
_CASCADE_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
_MOST_STAGES = len(_CASCADE_IOUS)
_STEM = "backbone.bottom_up.stem.conv1"


def _background_first(x: np.ndarray) -> np.ndarray:
    return np.roll(x, 1, axis=0)  # rows 1..C, 0 -> 0..C


def _with_background(rows: int, class_agnostic: bool) -> Transform:
    """Zeros in front, for the rows that the background has in torchvision and not here."""
    return same if class_agnostic else lambda x: np.concatenate([np.zeros((rows, *x.shape[1:]), x.dtype), x])


def _spelling(model: MaskRCNN, rgb: bool, heads: Mapping[str, str]) -> Any:
    def spell(name: str) -> tuple[tuple[str, ...], Transform]:
        match = re.fullmatch(r"roi_heads\.stage(\d+)\.(.*)", name)
        (spelled,), transform = spell_one(f"roi_heads.{match[2]}" if match else name)
        if model.cascade is not None:
            stage = int(match[1]) - 1 if match else 0
            spelled = re.sub(r"^(roi_heads\.box_(head|predictor))\.", rf"\g<1>.{stage}.", spelled)
        return (spelled,), transform

    def spell_one(name: str) -> tuple[tuple[str, ...], Transform]:
        module, _, leaf = name.rpartition(".")
        if module == "backbone.body.conv1":
            return (f"{_STEM}.{leaf}",), same if rgb else lambda x: x[:, ::-1]
        if module == "roi_heads.box_predictor.cls_score":
            return (name,), _background_first
        if module == "roi_heads.box_predictor.bbox_pred":
            return (name,), _with_background(4, model.box_head.class_agnostic)
        if module == "roi_heads.mask_predictor.mask_fcn_logits":
            return (f"{_module(module, heads)}.{leaf}",), _with_background(1, model.mask_head.class_agnostic)
        return (f"{_module(module, heads)}.{leaf}",), same

    return spell


def _module(name: str, heads: Mapping[str, str]) -> str:
    """torchvision's module -> Detectron2's; `heads` are the numbered modules that depend on the head's layout."""
    if name in heads:
        return heads[name]
    if name == "backbone.body.bn1":
        return f"{_STEM}.norm"
    if match := re.fullmatch(r"backbone\.body\.layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)", name):
        block = f"backbone.bottom_up.res{int(match[1]) + 1}.{match[2]}"
        if match[3] == "downsample.":
            return f"{block}.shortcut" + (".norm" if match[4] == "1" else "")
        return f"{block}.conv{match[4]}" + (".norm" if match[3] == "bn" else "")
    if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.(\d)", name):
        kind = "lateral" if match[1] == "inner" else "output"
        return f"backbone.fpn_{kind}{int(match[2]) + 2}" + (".norm" if match[3] == "1" else "")
    if match := re.fullmatch(r"roi_heads\.mask_head\.(\d)\.(\d)", name):
        return f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}" + (".norm" if match[2] == "1" else "")
    fixed = {
        "rpn.head.cls_logits": "proposal_generator.rpn_head.objectness_logits",
        "rpn.head.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
        "roi_heads.mask_predictor.conv5_mask": "roi_heads.mask_head.deconv",
        "roi_heads.mask_predictor.mask_fcn_logits": "roi_heads.mask_head.predictor",
    }
    return fixed.get(name, name)


def _head_modules(rpn_convs: int, box_convs: int, box_fcs: int) -> dict[str, str]:
    rpn = "proposal_generator.rpn_head.conv"
    modules = {f"rpn.head.conv.{i}.0": rpn if rpn_convs == 1 else f"{rpn}.conv{i}" for i in range(rpn_convs)}
    for i in range(box_convs):
        modules[f"roi_heads.box_head.{i}.0"] = f"roi_heads.box_head.conv{i + 1}"
        modules[f"roi_heads.box_head.{i}.1"] = f"roi_heads.box_head.conv{i + 1}.norm"
    for i in range(box_fcs):
        theirs = box_convs + 1 + 2 * i if box_convs else f"fc{6 + i}"
        modules[f"roi_heads.box_head.{theirs}"] = f"roi_heads.box_head.fc{i + 1}"
    return modules


def _stages(tensors: Mapping[str, Any], source: str) -> int:
    """The box heads of a cascade, 0 for a file of another kind."""
    count = _count(tensors, r"roi_heads\.box_predictor\.\d+\.cls_score\.weight")
    if count == 1 or count > _MOST_STAGES:
        raise WeightsError(f"{source}: is a Cascade R-CNN of {count} stages; 2 to {_MOST_STAGES} can be read")
    return count


def _first_stage(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A cascade's tensors, those of its first box head under the names that the only one has."""
    return {re.sub(r"^(roi_heads\.box_(head|predictor))\.0\.", r"\g<1>.", name): x for name, x in tensors.items()}


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)


def _is_caffe(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the backbone began as an MSRA one, whose statistics Detectron2 has as means of 0 in frozen norms."""
    mean = tensors.get(f"{_STEM}.norm.running_mean")
    return mean is not None and not np.any(mean)


def open_questions(path: str | os.PathLike, chosen: Container[str]) -> list[str]:
    """The settings that neither the file nor `chosen` tells, though there are models of both kinds.

    Args:
        path: the file.
        chosen: names of settings that the user gave, "rgb" among them.
    """
    tensors = read_tensors(path)
    if _is_caffe(tensors):  # MSRA's weights leave nothing open
        return []
    bottleneck = "backbone.bottom_up.res2.0.conv3.weight" in tensors
    stored = all(name in tensors for name in _PIXELS)
    unknown = {"backbone_stride_in_1x1": bottleneck, "image_std": not stored, "rgb": not stored}
    return [name for name, is_open in unknown.items() if is_open and name not in chosen]


def detectron2_settings(path: str | os.PathLike, fresh_masks: bool = False) -> dict[str, Any]:
    """The settings of the MaskRCNN that a Detectron2 file fits: DETECTRON2_SEMANTICS, sizes, pixels, anchors.

    Strides and pixels are not in the weights. Frozen normalizations with means of 0 tell of a backbone from MSRA's
    weights, which strides in its 1x1 convolutions and takes pixels that are not divided; any other is taken for
    torchvision's (`open_questions` says what is taken for granted so). Where the file has pixel_mean and pixel_std,
    these count, and where it has anchors, those. The IoUs of a cascade, by which it was trained, are taken for 0.5,
    0.6, 0.7 and so on.

    Args:
        path: the file.
        fresh_masks: it holds a Faster R-CNN, which gets a new mask head of the default size.

    Raises:
        WeightsError: the file cannot be read, or holds no ResNet-FPN Mask R-CNN.
    """
    source = os.fspath(path)
    tensors = new_names(read_tensors(source))
    stages, tensors = _stages(tensors, source), _first_stage(tensors)
    check_architecture(tensors, source, fresh_masks, class_agnostic=True)
    caffe = _is_caffe(tensors)
    has_counters = any(name.startswith(_STEM) and name.endswith("num_batches_tracked") for name in tensors)
    if f"{_STEM}.norm.running_mean" not in tensors and f"{_STEM}.norm.weight" in tensors:
        norm = "gn"
    else:
        norm = "bn" if has_counters else "frozen_bn"
    counts = [_count(tensors, rf"backbone\.bottom_up\.res{i}\.\d+\.conv1\.weight") for i in (2, 3, 4, 5)]
    bottleneck = "backbone.bottom_up.res2.0.conv3.weight" in tensors
    settings = DETECTRON2_SEMANTICS | {
        "backbone": resnet_of_blocks(counts, bottleneck, source),
        "backbone_norm": norm,
        "backbone_stride_in_1x1": caffe and bottleneck,
        "image_mean": _MEAN_RGB,
        "image_std": (1.0, 1.0, 1.0) if caffe else _TORCHVISION_STD,
        "cascade_ious": _CASCADE_IOUS[:stages],
    }
    settings |= _stored_pixels(tensors) | _stored_anchors(tensors, source)
    return settings | _sizes(tensors, source) | point_rend_settings(tensors, source)


def _sizes(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, Any]:
    heads = _heads_of(tensors)
    masks = _count(tensors, r"roi_heads\.mask_head\.mask_fcn\d+\.weight")
    telling = [
        *heads,
        "backbone.fpn.layer_blocks.0.0",
        "backbone.fpn.inner_blocks.0.1",
        "rpn.head.cls_logits",
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.conv5_mask",
        "roi_heads.mask_predictor.mask_fcn_logits",
        *(f"roi_heads.mask_head.{i}.{part}" for i in range(masks) for part in (0, 1)),
    ]
    spelled = [(f"{ours}.{leaf}", f"{_module(ours, heads)}.{leaf}") for ours in telling for leaf in _SIZED]
    return head_sizes(
        {ours: tensors[theirs] for ours, theirs in spelled if theirs in tensors}, source, background=False
    )


def _heads_of(tensors: Mapping[str, Any]) -> dict[str, str]:
    return _head_modules(
        _count(tensors, r"proposal_generator\.rpn_head\.conv(\.conv\d+)?\.weight"),
        _count(tensors, r"roi_heads\.box_head\.conv\d+\.weight"),
        _count(tensors, r"roi_heads\.box_head\.fc\d+\.weight"),
    )


def _stored_pixels(tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[float, ...]]:
    if not all(name in tensors and tensors[name].size == 3 for name in _PIXELS):
        return {}
    mean, std = (tuple(float(v) for v in np.ravel(tensors[name])) for name in _PIXELS)
    order = slice(None) if _is_rgb(tensors) else slice(None, None, -1)
    return {"image_mean": mean[order], "image_std": std[order]}


def _is_rgb(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the stored mean is of RGB, of which red has the largest; without one, BGR is Detectron2's default."""
    mean = np.ravel(tensors.get(_PIXELS[0], np.zeros(3)))
    return mean[0] > mean[-1]


def _stored_anchors(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, tuple[float, ...]]:
    cells = [tensors[f"{_ANCHORS}{i}"] for i in range(5) if f"{_ANCHORS}{i}" in tensors]
    if not cells:
        return {}
    if len(cells) != 5 or any(cell.ndim != 2 or cell.shape[1] != 4 for cell in cells):
        raise WeightsError(f"{source}: its anchors are not those of five levels")
    objectness = tensors.get("proposal_generator.rpn_head.objectness_logits.weight", np.zeros(0))
    if any(len(cell) != len(objectness) or not np.all(np.isfinite(cell)) for cell in cells):
        raise WeightsError(f"{source}: its anchors are not those of its RPN")
    sides = np.stack([cell[:, 2:] - cell[:, :2] for cell in cells]).astype("float64")  # (level, anchor, (w, h))
    if sides.min() <= 0:
        raise WeightsError(f"{source}: its anchors have no area")
    sizes, ratios = np.sqrt(sides.prod(-1)), sides[..., 1] / sides[..., 0]
    if np.ptp(sizes, axis=1).max() > 0.01 * sizes.min() or np.ptp(ratios, axis=0).max() > 0.01:
        raise WeightsError(f"{source}: its anchors are not of one size per level with the same ratios on all")
    return {
        "anchor_sizes": tuple(round(float(s), 3) for s in sizes.mean(1)),
        "anchor_aspect_ratios": tuple(round(float(r), 4) for r in ratios.mean(0)),
    }


def detectron2_entries(model: MaskRCNN, rgb: bool) -> list[Entry]:
    """An entry for every weight of the model, by the tensors of Detectron2."""
    config = model.config
    heads = _head_modules(config.rpn_conv_layers, len(config.box_conv_channels), len(config.box_fc_channels))
    return respelled(torchvision_entries(model), _spelling(model, rgb, heads))


def load_detectron2(
    model: MaskRCNN,
    path: str | os.PathLike,
    new_classes: bool = False,
    rgb: bool | None = None,
    fresh_masks: bool = False,
) -> LoadReport:
    """Load a Detectron2 Mask R-CNN; every weight of the model is set, or none and an error is raised.

    Args:
        model: built with `detectron2_settings(path)`.
        path: .pkl of the model zoo, or .pth. No code in it is run.
        new_classes: where the number of classes differs, load everything but the last layers.
        rgb: the model was trained on RGB pixels (INPUT.FORMAT "RGB"); None: told from pixel_mean where the file has
            it, and otherwise BGR.
        fresh_masks: the file holds a Faster R-CNN: leave the mask head as it is.

    Returns:
        What was used and what was not.

    Raises:
        WeightsError: a missing, left-over or misshapen tensor, or a file that is no such model.
    """
    source = os.fspath(path)
    check_no_mask_scoring(model, source)
    tensors = {n: v for n, v in new_names(read_tensors(source)).items() if not n.endswith("num_batches_tracked")}
    if PREDICTOR not in tensors:
        check_no_point_rend(model, source, fresh_masks)
    rgb = _is_rgb(tensors) if rgb is None else rgb
    return transfer(
        detectron2_entries(model, rgb),
        tensors,
        source,
        lambda n: n in _PIXELS or n.startswith(_ANCHORS),
        new_classes,
        fresh_masks,
    )
