"""Balanced random samples of fixed size (Faster R-CNN, section 3.1.3; Fast R-CNN, section 2.3)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def sample(
    positive: Tensor, negative: Tensor, size: int, positive_fraction: float, seed: keras.random.SeedGenerator | int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw at most `size` rows an image: at most size * positive_fraction positives, filled up with negatives.

    Args:
        positive, negative: (B, N) bool, disjoint.
        size: rows drawn an image.
        positive_fraction: largest share of positives.
        seed: of the draw.

    Returns:
        indices (B, size) int32, positives first; is_positive (B, size) bool; is_valid (B, size) bool: rows that
        hold neither a positive nor a negative, since there were too few, are not valid.
    """
    count = positive.shape[1]
    last = ops.shape(positive)[1] - 1
    if count is None or count < size:  # top_k needs at least as many rows as it draws
        positive, negative = (ops.pad(x, ((0, 0), (0, size))) for x in (positive, negative))
    noise = keras.random.uniform(ops.shape(positive), minval=0.5, maxval=1.0, seed=seed)
    # A positive draws in (0.5, 1), every other row 0; the top k are a uniform subset of the positives.
    max_positive = int(size * positive_fraction)
    drawn, positive_index = ops.top_k(ops.where(positive, noise, 0.0), max_positive)
    is_positive = drawn > 0.0
    drawn, negative_index = ops.top_k(ops.where(negative, noise, 0.0), size)
    room = size - ops.sum(ops.cast(is_positive, "int32"), axis=1, keepdims=True)
    is_negative = ops.logical_and(drawn > 0.0, ops.arange(size, dtype="int32") < room)
    indices = ops.concatenate([positive_index, negative_index], axis=1)
    is_valid = ops.concatenate([is_positive, is_negative], axis=1)
    is_positive = ops.concatenate([is_positive, ops.zeros_like(is_negative)], axis=1)
    # Valid rows to the front in their order, then cut to `size`: no later stage computes on a hole.
    total = max_positive + size
    order = ops.where(is_valid, 0, total) + ops.arange(total, dtype="int32")
    order = ops.argsort(order, axis=1)[:, :size]

    def reorder(x: Tensor) -> Tensor:
        return ops.take_along_axis(x, order, axis=1)

    indices = ops.minimum(ops.cast(reorder(indices), "int32"), last)
    return indices, reorder(is_positive), reorder(is_valid)
