"""Detectors of torchvision and Detectron2 that are no Mask R-CNN with a feature pyramid, told by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from kmaskrcnn.errors import WeightsError

# The first that a name of the file matches.
_OTHERS = (
    (r"roi_heads\.(keypoint|box_predictor\.keypoint)", "a Keypoint R-CNN"),
    (r"roi_heads\.box_predictor\.\d+\.", "a Cascade R-CNN, with a box head per stage"),
    (r"sem_seg_head\.", "a Panoptic FPN, with a head for stuff"),
    (r"roi_heads\.res5\.", "a C4 model, whose box head is the last stage of the backbone"),
    (r"backbone\.(stem|res\d)\.", "a C4 or DC5 model, without a feature pyramid"),
    (r"head\.(classification_head|regression_head|cls_subnet|bbox_subnet)", "a RetinaNet"),
    (r"roi_heads\.mask_head\.(point_head|coarse_head)|roi_heads\.mask_point_head", "a PointRend model"),
    (r"backbone\.body\.(conv1|layer\d)\.|backbone\.bottom_up\.(stem|res\d)\.", ""),
    (r"backbone\.(body|bottom_up)\.\w*(stages|patch_embed|blocks|base_layer|s1)", "a detector with another backbone"),
)
_CLASS_SCORES, _OFFSETS = "roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.bbox_pred.weight"
_MASKS = ("roi_heads.mask_predictor.mask_fcn_logits.weight", "roi_heads.mask_head.predictor.weight")


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
        raise WeightsError(f"{source}: is a Faster R-CNN, without masks; --fresh_masks loads it with a new mask head")
    if masks is not None and fresh_masks:
        raise WeightsError(f"{source}: has a mask head of its own, so it needs no new one")
