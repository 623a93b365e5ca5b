"""Weights of matterport/Mask_RCNN (mask_rcnn_coco.h5 and files trained with it), a ResNet-FPN Mask R-CNN in Keras 2.

What the conversion takes care of: convolution biases in front of a normalization and its epsilon of 1e-3, which go
into the backbone's frozen statistics; the normalizations of the heads, which go into the layers in front of them; the
two-way softmax of the RPN, which becomes the logistic function of the difference; its box offsets, which have a
deviation of (0.1, 0.1, 0.2, 0.2) there; and its anchors, whose ratios are width / height there. What stays different
is in `DIFFERENCES`: accuracy is not carried over, so fine-tune, or measure, before relying on it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kmaskrcnn.errors import WeightsError, reason
from kmaskrcnn.weight_files.budget import Budget
from kmaskrcnn.weight_files.stand_ins import ARRAY_KINDS
from kmaskrcnn.weights.architectures import check_no_mask_scoring, check_no_point_rend, check_one_stage
from kmaskrcnn.weights.torchvision import EPSILON, resnet_of_blocks, respelled, torchvision_entries
from kmaskrcnn.weights.transfer import LoadReport, Transform, check_shapes, take_size, transfer

if TYPE_CHECKING:
    from kmaskrcnn.model import MaskRCNN

# What brings MaskRCNN nearest to matterport's semantics and its CocoConfig.
MATTERPORT_SEMANTICS = {
    "backbone_norm": "frozen_bn",
    "backbone_stride_in_1x1": True,
    "stem_pool_padding": "same",
    "image_mean": (123.7, 116.8, 103.9),
    "image_std": (1.0, 1.0, 1.0),
    "round_anchors": False,
    "fit_anchor_strides": False,
    "rpn_box_loss_beta": 1.0,
    "box_loss_beta": 1.0,
    "rpn_loss_normalizer": "sampled",
    "rpn_post_nms_top_k_train": 2000,
    "roi_batch_size": 200,
    "roi_positive_fraction": 0.33,
    "roi_aligned": False,
    "roi_sampling_ratio": 1,
    "binary_mask_targets": True,
    "nms_iou": 0.3,
}
# How its images are resized; it pads them to squares of max_size besides.
MATTERPORT_INPUT = {"min_size": 800, "max_size": 1024}
DIFFERENCES = (
    "RoIAlign: matterport samples the corners of each RoI's grid (crop_and_resize) at one point per bin and rounds the "
    "RoI's level; here samples lie at bin centers and the level is rounded down",
    "coordinates: matterport divides by the side minus one, which stretches its feature maps by a pixel",
    "images are padded to a square with black before the mean is subtracted; here with the mean, and only as far as "
    "needed",
    "proposals: there one NMS over the best 6000 of all levels, here one per level over its best 1000",
    "detections: there only the best class of a RoI counts (above 0.7 outside of evaluation), here every class",
)
_EPSILON = 1e-3  # of Keras' normalizations
_RPN_DEVIATION = np.array([0.1, 0.1, 0.2, 0.2], "float32")
_YX_TO_XY = [1, 0, 3, 2]
_NORM_LEAVES = {"weight": "gamma", "bias": "beta"}
# Neither layer learns: the anchors are a constant in some versions.
_SPARE = ("anchors/",)
# Of the groups in a file, which can hold each other: how deep they are followed, and what an entry costs.
_DEEPEST, _ITEM_BYTES = 8, 512

Spelling = tuple[tuple[str, ...], Transform]


def read_matterport(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a Keras 2 weight file as "layer/kernel", "layer/gamma" and so on; raises WeightsError."""
    import h5py

    budget = Budget(path)
    source = budget.path
    try:
        with h5py.File(source, "r") as file:
            return {_tensor_name(name): np.asarray(item) for name, item in _datasets(file, budget)}
    except WeightsError:
        raise
    # Damaged files fail in many ways, KeyError and MemoryError among them.
    except Exception as error:
        raise WeightsError(f"{source}: truncated, damaged or not an HDF5 file ({reason(error)})") from None


def _datasets(group: Any, budget: Budget, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The arrays of numbers in an HDF5 group and the groups in it, by their paths."""
    import h5py

    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):  # the others may lead to other files
            continue
        item = group[key]
        budget.take(_ITEM_BYTES, "its groups")
        if isinstance(item, h5py.Group) and depth < _DEEPEST:
            yield from _datasets(item, budget, depth + 1)
        elif isinstance(item, h5py.Dataset) and item.dtype.kind in ARRAY_KINDS:
            if item.external or item.is_virtual or not item.name.isprintable():
                raise ValueError(f"{item.name!r} lies in another file")
            # A few bytes can declare any shape, compressed or without any data.
            budget.take(item.nbytes, reason(item.name))
            yield item.name.strip("/"), item


def _tensor_name(path: str) -> str:
    layer, *inner = path.removeprefix("model_weights/").split("/")
    # The RPN is a model within the model: its layers are a group further down.
    layer = inner[-2] if layer == "rpn_model" and len(inner) > 1 else layer
    return f"{layer}/{path.rpartition('/')[2].removesuffix(':0')}"


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _torch_conv(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(3, 2, 0, 1)  # (h, w, in, out) -> (out, in, h, w); deconvolutions alike


def _objectness(x: np.ndarray) -> np.ndarray:
    """(..., (background, object) of each anchor) -> (..., anchors), logits of object, ratios turned around."""
    return (x[..., 1::2] - x[..., 0::2])[..., ::-1]


def _rpn_offsets(x: np.ndarray) -> np.ndarray:
    """(..., (dy, dx, dh, dw) of each anchor) -> the same in torchvision's order and units, ratios turned around."""
    groups = x.reshape(*x.shape[:-1], -1, 4) * _RPN_DEVIATION
    return groups[..., ::-1, _YX_TO_XY].reshape(x.shape)


def _box_offsets(x: np.ndarray) -> np.ndarray:
    groups = x.reshape(*x.shape[:-1], -1, 4)  # the deviations are the coding weights (10, 10, 5, 5) turned around
    return groups[..., _YX_TO_XY].reshape(x.shape)


def _flat(kernel: np.ndarray) -> np.ndarray:
    kernel = _torch_conv(kernel)
    return kernel.reshape(kernel.shape[0], -1)  # (out, in, h, w) -> (out, in * h * w)


def _with_norm(conv: str, norm: str, leaf: str, layout: Transform) -> Spelling:
    """A layer with the normalization after it folded in."""
    names = (f"{norm}/gamma", f"{norm}/moving_variance")
    if leaf == "weight":

        def fold_kernel(kernel: np.ndarray, gamma: np.ndarray, variance: np.ndarray) -> np.ndarray:
            return layout(kernel * (gamma / np.sqrt(variance + _EPSILON)))

        return (f"{conv}/kernel", *names), fold_kernel

    def fold_bias(
        bias: np.ndarray, gamma: np.ndarray, variance: np.ndarray, beta: np.ndarray, mean: np.ndarray
    ) -> np.ndarray:
        return (bias - mean) * (gamma / np.sqrt(variance + _EPSILON)) + beta

    return (f"{conv}/bias", *names, f"{norm}/beta", f"{norm}/moving_mean"), fold_bias


def _spell(name: str) -> Spelling:
    """torchvision's tensor by matterport's."""
    module, _, leaf = name.rpartition(".")
    if module.startswith("backbone.body."):
        return _spell_backbone(module.removeprefix("backbone.body."), leaf)
    if match := re.fullmatch(r"roi_heads\.box_head\.fc([67])", module):
        number = int(match[1]) - 5
        return _with_norm(f"mrcnn_class_conv{number}", f"mrcnn_class_bn{number}", leaf, _flat)
    if match := re.fullmatch(r"roi_heads\.mask_head\.(\d)\.0", module):
        number = int(match[1]) + 1
        return _with_norm(f"mrcnn_mask_conv{number}", f"mrcnn_mask_bn{number}", leaf, _torch_conv)
    if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0", module):
        level = int(match[2]) + 2
        layer, change, layout = (
            (f"fpn_c{level}p{level}" if match[1] == "inner" else f"fpn_p{level}"),
            _same,
            _torch_conv,
        )
    else:
        layer, change, layout = _LAYERS[module]
    if leaf == "bias":
        return (f"{layer}/bias",), change
    return (f"{layer}/kernel",), lambda kernel: layout(change(kernel))


_LAYERS: dict[str, tuple[str, Transform, Transform]] = {
    "rpn.head.conv.0.0": ("rpn_conv_shared", _same, _torch_conv),
    "rpn.head.cls_logits": ("rpn_class_raw", _objectness, _torch_conv),
    "rpn.head.bbox_pred": ("rpn_bbox_pred", _rpn_offsets, _torch_conv),
    "roi_heads.box_predictor.cls_score": ("mrcnn_class_logits", _same, np.transpose),
    "roi_heads.box_predictor.bbox_pred": ("mrcnn_bbox_fc", _box_offsets, np.transpose),
    "roi_heads.mask_predictor.conv5_mask": ("mrcnn_mask_deconv", _same, _torch_conv),
    "roi_heads.mask_predictor.mask_fcn_logits": ("mrcnn_mask", _same, _torch_conv),
}


def _spell_backbone(module: str, leaf: str) -> Spelling:
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn|downsample\.)(\d)", module):
        branch = "1" if match[3] == "downsample." else "2" + "abc"[int(match[4]) - 1]
        block = f"{int(match[1]) + 1}{chr(ord('a') + int(match[2]))}_branch{branch}"
        conv, norm = f"res{block}", f"bn{block}"
        is_conv = match[3] == "conv" or (match[3] == "downsample." and match[4] == "0")
    else:
        conv, norm, is_conv = "conv1", "bn_conv1", module == "conv1"
    if is_conv:
        return (f"{conv}/kernel",), _torch_conv
    if leaf == "running_mean":
        return (f"{norm}/moving_mean", f"{conv}/bias"), lambda mean, bias: mean - bias
    if leaf == "running_var":
        return (f"{norm}/moving_variance",), lambda variance: variance + (_EPSILON - EPSILON)
    return (f"{norm}/{_NORM_LEAVES[leaf]}",), _same


def matterport_settings(path: str | os.PathLike) -> dict[str, Any]:
    """The settings of the MaskRCNN that is nearest to a matterport file: MATTERPORT_SEMANTICS, and its sizes.

    Raises:
        WeightsError: the file cannot be read, or holds no such Mask R-CNN.
    """
    source = os.fspath(path)
    tensors = read_matterport(source)
    counts = [_blocks(tensors, stage) for stage in (2, 3, 4, 5)]

    def size(name: str, axis: int = 0) -> int:
        return take_size(tensors, name, axis, source)

    channels, rpn, classes = size("fpn_p2/bias"), size("rpn_conv_shared/bias"), size("mrcnn_class_logits/bias")
    pool, fcs = size("mrcnn_class_conv1/kernel"), (size("mrcnn_class_conv1/bias"), size("mrcnn_class_conv2/bias"))
    masks = tuple(size(name) for name in sorted(tensors) if re.fullmatch(r"mrcnn_mask_conv\d/bias", name))
    check_shapes(
        tensors,
        {
            "fpn_p2/kernel": (3, 3, channels, channels),
            "rpn_conv_shared/kernel": (3, 3, channels, rpn),
            "mrcnn_class_conv1/kernel": (pool, pool, channels, fcs[0]),
            "mrcnn_class_conv2/kernel": (1, 1, *fcs),
            "mrcnn_class_logits/kernel": (fcs[1], classes),
            "mrcnn_mask/kernel": (1, 1, masks[-1] if masks else channels, classes),
            **{
                f"mrcnn_mask_conv{i}/kernel": (3, 3, *pair)
                for i, pair in enumerate(itertools.pairwise((channels, *masks)), 1)
            },
        },
        source,
    )
    return MATTERPORT_SEMANTICS | {
        "backbone": resnet_of_blocks(counts, True, source),
        "num_classes": classes - 1,
        "fpn_channels": channels,
        "rpn_channels": 0 if rpn == channels else rpn,
        "box_pool_size": pool,
        "box_fc_channels": fcs,
        "mask_conv_channels": masks,
    }


def _blocks(tensors: Mapping[str, Any], stage: int) -> int:
    return sum(re.fullmatch(rf"res{stage}\w_branch2a/kernel", name) is not None for name in tensors)


def load_matterport(model: MaskRCNN, path: str | os.PathLike, new_classes: bool = False) -> LoadReport:
    """Load a matterport Mask R-CNN as near as its semantics allow; every weight is set, or none and an error is raised.

    Args:
        model: built with `matterport_settings(path)`.
        path: .h5 weights of Keras 2, by layer names.
        new_classes: where the number of classes differs, load everything but the last layers.

    Returns:
        What was used and what was not.

    Raises:
        WeightsError: a missing, left-over or misshapen tensor, or a file that is no such model.
    """
    source = os.fspath(path)
    check_one_stage(model, source)
    check_no_mask_scoring(model, source)
    check_no_point_rend(model, source)
    entries = respelled(torchvision_entries(model), _spell)
    return transfer(entries, read_matterport(source), source, lambda name: name.startswith(_SPARE), new_classes)
