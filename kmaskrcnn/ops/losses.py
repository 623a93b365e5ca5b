"""The elementary losses, unreduced."""

from __future__ import annotations

from keras import ops

from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops.tensor import Tensor

# Keeps the quotients of boxes of no area finite; as in torchvision and fvcore.
_EPSILON = 1e-7


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(logits) with targets in 0..1, elementwise, without overflow."""
    return ops.maximum(logits, 0.0) - logits * targets + ops.log1p(ops.exp(-ops.abs(logits)))


def softmax_cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of softmax(logits) (..., C) with integer classes (...) -> (...)."""
    chosen = ops.take_along_axis(logits, ops.cast(classes, "int32")[..., None], axis=-1)[..., 0]
    return ops.logsumexp(logits, axis=-1) - chosen


def smooth_l1(predictions: Tensor, targets: Tensor, beta: float) -> Tensor:
    """0.5 d^2 / beta below beta and d - beta / 2 above, elementwise; beta 0 is the absolute difference.

    Fast R-CNN, equation 3, with Detectron2's and torchvision's beta.
    """
    difference = ops.abs(predictions - targets)
    if beta == 0.0:
        return difference
    return ops.where(difference < beta, 0.5 * difference * difference / beta, difference - 0.5 * beta)


def giou(boxes: Tensor, others: Tensor) -> Tensor:
    """1 - GIoU of boxes (..., 4) with others (..., 4), yxyx -> (...), in 0..2 (Rezatofighi et al. 2019).

    GIoU is the IoU less the share of the smallest enclosing box that neither covers, so that boxes which do not overlap
    have a gradient too.
    """
    first, last = ops.split(boxes, 2, axis=-1)
    other_first, other_last = ops.split(others, 2, axis=-1)
    inner = ops.concatenate([ops.maximum(first, other_first), ops.minimum(last, other_last)], axis=-1)
    outer = ops.concatenate([ops.minimum(first, other_first), ops.maximum(last, other_last)], axis=-1)
    overlap, enclosing = box_ops.area(inner), box_ops.area(outer)
    union = box_ops.area(boxes) + box_ops.area(others) - overlap
    return 1.0 - overlap / (union + _EPSILON) + (enclosing - union) / (enclosing + _EPSILON)


def box_regression(
    deltas: Tensor, anchors: Tensor, targets: Tensor, weights: tuple[float, ...], kind: str, beta: float
) -> Tensor:
    """The loss of each of the offsets (..., 4), or of the boxes that they make, (..., 1), by `kind`.

    Args:
        deltas: (..., 4), of the network.
        anchors, targets: (..., 4) yxyx pixels, the boxes that the deltas move and those that they should give.
        weights: of the coding.
        kind: "smooth_l1" of the offsets, "giou" of the boxes.
        beta: of smooth L1.
    """
    if kind == "giou":
        return giou(box_ops.decode(deltas, anchors, weights), targets)[..., None]
    return smooth_l1(deltas, box_ops.encode(targets, anchors, weights), beta)
