"""Assignment of anchors and proposals to the ground truth (Faster R-CNN, section 3.1.2; Detectron2's Matcher)."""

from __future__ import annotations

from typing import Any

from keras import ops

from kmaskrcnn.ops import boxes as box_ops

Tensor = Any

NEGATIVE = -1
IGNORED = -2
# A box with at least this share of its area in a crowd region is no negative.
CROWD_IOA = 0.5


def match(
    boxes: Tensor,
    gt_boxes: Tensor,
    gt_valid: Tensor,
    gt_crowd: Tensor,
    positive_iou: float,
    negative_iou: float,
    keep_low_quality: bool = False,
) -> Tensor:
    """For each box the row of the ground truth that it should predict, or NEGATIVE or IGNORED.

    Args:
        boxes: (N, 4) or (B, N, 4), yxyx pixels: anchors or proposals.
        gt_boxes: (B, M, 4). Rows that are not valid never match (a padded row has IoU 0 with every anchor, so it
            would otherwise make every anchor its best).
        gt_valid: (B, M) bool.
        gt_crowd: (B, M) bool. Crowd rows are never matched; negatives that lie in one are IGNORED.
        positive_iou: boxes with at least this IoU are positives.
        negative_iou: boxes with less than this IoU are negatives; between the two they are ignored.
        keep_low_quality: also make positive the boxes that share the highest IoU (above 0) of a ground-truth row.

    Returns:
        (B, N) int32.
    """
    real = ops.logical_and(gt_valid, ops.logical_not(gt_crowd))[:, None, :]  # (B, 1, M)
    iou = ops.where(real, box_ops.iou(boxes, gt_boxes), -1.0)  # (B, N, M)
    best = ops.max(iou, axis=-1)
    match_index = ops.cast(ops.argmax(iou, axis=-1), "int32")
    result = ops.where(best >= positive_iou, match_index, IGNORED)
    crowd = ops.logical_and(gt_valid, gt_crowd)[:, None, :]
    in_crowd = ops.any(ops.logical_and(crowd, box_ops.ioa(boxes, gt_boxes) >= CROWD_IOA), axis=-1)
    result = ops.where(best < negative_iou, ops.where(in_crowd, IGNORED, NEGATIVE), result)
    if keep_low_quality:
        highest = ops.max(iou, axis=1, keepdims=True)  # (B, 1, M)
        low_quality = ops.any(ops.logical_and(iou == highest, highest > 0.0), axis=-1)
        result = ops.where(low_quality, match_index, result)
    return result
