"""Detectors of torchvision and Detectron2 that are no Mask R-CNN with a feature pyramid, told by their names."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kmaskrcnn.errors import WeightsError

if TYPE_CHECKING:
    from kmaskrcnn.model import MaskRCNN

# The first that a name of the file matches.
_OTHERS = (
    (r"roi_heads\.(keypoint|box_predictor\.keypoint)", "a Keypoint R-CNN"),
    (r"sem_seg_head\.", "a Panoptic FPN, with a head for stuff"),
    (r"roi_heads\.res5\.", "a C4 model, whose box head is the last stage of the backbone"),
    (r"backbone\.(stem|res\d)\.", "a C4 or DC5 model, without a feature pyramid"),
    (r"head\.(classification_head|regression_head|cls_subnet|bbox_subnet)", "a RetinaNet"),
    (r"roi_heads\.mask_head\.parameter_head", "an Implicit PointRend model"),
    (r"backbone\.body\.(conv1|layer\d)\.|backbone\.bottom_up\.(stem|res\d)\.", ""),
    (r"backbone\.(body|bottom_up)\.\w*(stages|patch_embed|blocks|base_layer|s1)", "a detector with another backbone"),
)
# Of MobileNetV2's blocks 0 to 17.
_MOBILENET_WIDTHS = (32, 16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
_BODY = "backbone.body."
_CLASS_SCORES, _OFFSETS = "roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.bbox_pred.weight"
_MASKS = (
    "roi_heads.mask_predictor.mask_fcn_logits.weight",
    "roi_heads.mask_head.predictor.weight",
    "roi_heads.mask_head.point_head.predictor.weight",
)


def check_architecture(
    tensors: Mapping[str, np.ndarray], source: str, fresh_masks: bool = False, class_agnostic: bool = False
) -> None:
    """Raise WeightsError, with what it is, for a detector that is no Mask R-CNN of ours.

    Args:
        tensors: of a file of torchvision or Detectron2, under its own names.
        source: the file, for messages.
        fresh_masks: a Faster R-CNN is wanted, with a new mask head.
        class_agnostic: heads that are so can be read.
    """
    for pattern, what in _OTHERS:
        if any(re.match(pattern, name) for name in tensors):
            if what:
                raise WeightsError(f"{source}: is {what}; only Mask R-CNN with a feature pyramid can be read")
            break
    scores, offsets = tensors.get(_CLASS_SCORES), tensors.get(_OFFSETS)
    masks = next((tensors[name] for name in _MASKS if name in tensors), None)
    for what, rows, one in (("boxes", offsets, 4), ("masks", masks, 1)):
        if scores is not None and len(scores) > 2 and rows is not None and len(rows) == one and not class_agnostic:
            raise WeightsError(
                f"{source}: its {what} are class-agnostic, one for all classes; they are read from Detectron2 alone"
            )
    if scores is not None and masks is None and not fresh_masks:
        raise WeightsError(
            f"{source}: is a Faster R-CNN, without masks; fresh_masks=True loads it with a new mask head"
        )
    if masks is not None and fresh_masks:
        raise WeightsError(f"{source}: has a mask head of its own, so it needs no new one")


def check_one_stage(model: MaskRCNN, source: str) -> None:
    """Raise WeightsError where the model has more box heads than the file of a format without cascades."""
    if model.cascade is not None:
        raise WeightsError(
            f"{source}: has one box head and no cascade_ious; convert it without, and train a cascade with "
            "init_weights=that model"
        )


def check_no_mask_scoring(model: MaskRCNN, source: str) -> None:
    """Raise WeightsError where the model has a MaskIoU head, which no format that is read has."""
    if model.config.mask_scoring:
        raise WeightsError(
            f"{source}: has no MaskIoU head; convert it without mask_scoring, and train with mask_scoring and "
            "init_weights=that model"
        )


def check_no_point_rend(model: MaskRCNN, source: str, fresh_masks: bool = False) -> None:
    """Raise WeightsError where the model has PointRend's mask heads, the file has not, and no new ones are wanted."""
    if model.config.mask_point_rend and not fresh_masks:
        raise WeightsError(
            f"{source}: has no PointRend mask heads; convert it without mask_point_rend, and train with "
            "mask_point_rend and init_weights=that model"
        )


def check_mobilenet(tensors: Mapping[str, np.ndarray], source: str) -> None:
    """Raise WeightsError where the blocks are not numbered as in MobileNetV2's `features`.

    torchvision's `mobilenet_backbone` keeps that numbering, for "mobilenet_v2" with all blocks. A body that was cut out
    or numbered otherwise has blocks of equal widths, which would load into each other's places.
    """
    for block, (inputs, outputs) in enumerate(itertools.pairwise(_MOBILENET_WIDTHS), 1):
        expand = f"{_BODY}{block}.conv.0.0.weight"
        project = f"{_BODY}{block}.conv.{1 if block == 1 else 2}.weight"
        hidden = inputs if block == 1 else 6 * inputs
        first = (hidden, 1, 3, 3) if block == 1 else (hidden, inputs, 1, 1)
        for name, shape in ((expand, first), (project, (outputs, hidden, 1, 1))):
            if name not in tensors or tensors[name].shape != shape:
                found = f"has shape {tensors[name].shape}, not {shape}" if name in tensors else "is absent"
                raise WeightsError(
                    f"{source}: {name} {found}: of torchvision's mobile networks the blocks of mobilenet_v2 are read, "
                    "numbered as in its features (mobilenet_backbone and FeaturePyramidNetwork on features alike)"
                )
    _check_mobile_pyramid(tensors, source)


def _check_mobile_pyramid(tensors: Mapping[str, np.ndarray], source: str) -> None:
    names = [f"backbone.fpn.inner_blocks.{i}.0.weight" for i in range(4)]
    widths = [tensors[name].shape[1] if name in tensors and tensors[name].ndim == 4 else 0 for name in names]
    if widths != [24, 32, 96, 320]:
        raise WeightsError(
            f"{source}: its pyramid stands on features of {widths} channels, here on those of the blocks 3, 6, 13 and "
            "17 of mobilenet_v2 (24, 32, 96, 320); what torchvision's mobilenet_backbone takes, the first block of "
            "each stage, does not fit"
        )
