"""Assignment of anchors and proposals to the ground truth (Faster R-CNN, section 3.1.2; Detectron2's Matcher)."""

from __future__ import annotations

from keras import ops

from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops.tensor import Tensor

NEGATIVE = -1
IGNORED = -2
# A box with at least this share of its area in a crowd region is no negative.
CROWD_IOA = 0.5
# Rows of the ground truth that are compared with all boxes at a time: a thousand rows and the 270,000 anchors of a
# large image would be a table of a gigabyte.
ROWS_AT_ONCE = 8


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
    rows = ops.shape(gt_boxes)[1]
    missing = -rows % ROWS_AT_ONCE
    # A padded row is not valid.
    gt_boxes = ops.pad(gt_boxes, ((0, 0), (0, missing), (0, 0)))
    gt_valid, gt_crowd = (ops.pad(x, ((0, 0), (0, missing))) for x in (gt_valid, gt_crowd))
    real, crowd = ops.logical_and(gt_valid, ops.logical_not(gt_crowd)), ops.logical_and(gt_valid, gt_crowd)

    def see(step: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Go through the next rows of the ground truth."""
        best, match_index, low_quality, in_crowd = state
        own = step * ROWS_AT_ONCE + ops.arange(ROWS_AT_ONCE, dtype="int32")
        own_boxes, own_real, own_crowd = (ops.take(x, own, axis=1) for x in (gt_boxes, real, crowd))
        iou = ops.where(own_real[..., None], box_ops.iou(own_boxes, boxes), -1.0)  # (B, rows, N)
        here = ops.max(iou, axis=1)
        # The first of equal rows, which is what argmax gives.
        index_here = ops.min(ops.where(iou == here[:, None], own[:, None], rows + ROWS_AT_ONCE), axis=1)
        match_index = ops.where(here > best, index_here, match_index)
        if keep_low_quality:
            highest = ops.max(iou, axis=-1, keepdims=True)  # (B, rows, 1)
            low_quality = ops.logical_or(low_quality, ops.any((iou == highest) & (highest > 0.0), axis=1))
        covered = ops.logical_and(own_crowd[..., None], box_ops.ioa(own_boxes, boxes) >= CROWD_IOA)
        in_crowd = ops.logical_or(in_crowd, ops.any(covered, axis=1))
        return ops.maximum(best, here), match_index, low_quality, in_crowd

    shape = (ops.shape(gt_boxes)[0], ops.shape(boxes)[-2])
    none = ops.zeros(shape, "bool")
    state = (ops.full(shape, -1.0, "float32"), ops.zeros(shape, "int32"), none, none)
    best, match_index, low_quality, in_crowd = ops.fori_loop(0, (rows + missing) // ROWS_AT_ONCE, see, state)
    result = ops.where(best >= positive_iou, match_index, IGNORED)
    result = ops.where(best < negative_iou, ops.where(in_crowd, IGNORED, NEGATIVE), result)
    return ops.where(low_quality, match_index, result) if keep_low_quality else result
