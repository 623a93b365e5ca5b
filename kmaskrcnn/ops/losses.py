"""The elementary losses, unreduced."""

from __future__ import annotations

from keras import ops

from kmaskrcnn.ops.tensor import Tensor


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
