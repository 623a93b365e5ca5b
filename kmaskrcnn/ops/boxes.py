"""Box arithmetic. Boxes are float32 `yxyx` in absolute continuous pixels: pixel i covers [i, i + 1)."""

from __future__ import annotations

import math

import keras
from keras import ops

from kmaskrcnn.ops.tensor import Tensor

# The published clamp on dh and dw: a decoded side is at most 1000 / 16 times the anchor's.
MAX_LOG_SCALE = math.log(1000.0 / 16.0)
RPN_CODING_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_HEAD_CODING_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def area(boxes: Tensor) -> Tensor:
    """Area in square pixels of boxes (..., 4) -> (...); 0 where a side is negative."""
    top, left, bottom, right = ops.unstack(boxes, axis=-1)
    return ops.maximum(bottom - top, 0.0) * ops.maximum(right - left, 0.0)


def intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Pairwise overlap in square pixels of (..., N, 4) with (..., M, 4) -> (..., N, M)."""
    top, left, bottom, right = ops.unstack(ops.expand_dims(boxes, -2), axis=-1)  # (..., N, 1)
    other_top, other_left, other_bottom, other_right = ops.unstack(ops.expand_dims(others, -3), axis=-1)  # (..., 1, M)
    height = ops.minimum(bottom, other_bottom) - ops.maximum(top, other_top)
    width = ops.minimum(right, other_right) - ops.maximum(left, other_left)
    return ops.maximum(height, 0.0) * ops.maximum(width, 0.0)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Pairwise intersection over union of (..., N, 4) with (..., M, 4) -> (..., N, M); 0 for boxes of no area."""
    overlap = intersection(boxes, others)
    union = ops.expand_dims(area(boxes), -1) + ops.expand_dims(area(others), -2) - overlap
    return ops.where(overlap > 0.0, overlap / ops.where(overlap > 0.0, union, 1.0), 0.0)


def ioa(regions: Tensor, boxes: Tensor) -> Tensor:
    """Share of the area of boxes (..., N, 4) that lies in regions (..., M, 4) -> (..., M, N); 0 for no area.

    This is how COCO treats a crowd region: a box inside it matches, however large the region.
    """
    overlap = intersection(regions, boxes)
    own = ops.expand_dims(area(boxes), -2)
    return ops.where(overlap > 0.0, overlap / ops.where(overlap > 0.0, own, 1.0), 0.0)


def clip(boxes: Tensor, image_shapes: Tensor) -> Tensor:
    """Clip boxes (B, ..., 4) to images of height and width (B, 2)."""
    limits = ops.cast(image_shapes, boxes.dtype)
    limits = ops.concatenate([limits, limits], axis=-1)  # (B, 4)
    limits = ops.reshape(limits, (-1,) + (1,) * (len(boxes.shape) - 2) + (4,))  # (B, 4) -> (B, 1.., 4)
    return ops.minimum(ops.maximum(boxes, 0.0), limits)


def sides(boxes: Tensor) -> Tensor:
    """Height and width (..., 2) in pixels of boxes (..., 4)."""
    first, last = ops.split(boxes, 2, axis=-1)
    return last - first


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    first, last = ops.split(boxes, 2, axis=-1)
    size = last - first
    return first + 0.5 * size, size


def take_rows(values: Tensor, indices: Tensor) -> Tensor:
    """Rows (B, K) int32 of values (B, N, ...) -> (B, K, ...), in one gather where take_along_axis is a dozen."""
    batch, count = ops.shape(values)[:2]
    flat = ops.reshape(values, (-1, *values.shape[2:]))  # (B, N, ...) -> (B * N, ...)
    rows = ops.expand_dims(ops.arange(batch, dtype="int32"), 1) * count + indices
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.gather(flat, rows)  # Keras' own minds negative indices, in ten operations
    return ops.take(flat, rows, axis=0)


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, ...] = RPN_CODING_WEIGHTS) -> Tensor:
    """Offsets (..., 4) = (dy, dx, dh, dw) that take anchors (..., 4) to boxes (..., 4).

    Fast R-CNN, appendix C (Girshick et al. 2014), times the coding weights. Rows in which the box or the anchor
    has no positive side give 0, so that padded rows stay finite.
    """
    center, size = _center_size(boxes)
    anchor_center, anchor_size = _center_size(anchors)
    valid = ops.logical_and(size > 0.0, anchor_size > 0.0)
    size, anchor_size = ops.where(valid, size, 1.0), ops.where(valid, anchor_size, 1.0)
    shift = ops.where(valid, (center - anchor_center) / anchor_size, 0.0)
    deltas = ops.concatenate([shift, ops.log(size / anchor_size)], axis=-1)
    return deltas * ops.convert_to_tensor(weights, deltas.dtype)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, ...] = RPN_CODING_WEIGHTS) -> Tensor:
    """The boxes (..., 4) that offsets (..., 4) make of anchors (..., 4): the inverse of `encode`.

    dh and dw are clamped at log(1000 / 16) as in Detectron2 and torchvision.
    """
    deltas = deltas / ops.convert_to_tensor(weights, deltas.dtype)
    anchor_center, anchor_size = _center_size(anchors)
    shift, log_scale = ops.split(deltas, 2, axis=-1)
    center = shift * anchor_size + anchor_center
    half = 0.5 * ops.exp(ops.minimum(log_scale, MAX_LOG_SCALE)) * anchor_size
    return ops.concatenate([center - half, center + half], axis=-1)
