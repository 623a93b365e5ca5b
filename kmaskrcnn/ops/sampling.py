"""Balanced random samples of fixed size (Faster R-CNN, section 3.1.3; Fast R-CNN, section 2.3)."""

from __future__ import annotations

import keras
from keras import ops

from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops.tensor import Tensor

# PyTorch does not multiply uint32, so there words are the low bits of int64.
_WORD = "int64" if keras.backend.backend() == "torch" else "uint32"


def _word(x: Tensor) -> Tensor:
    """x modulo 2**32."""
    x = ops.cast(x, _WORD)
    return ops.bitwise_and(x, 0xFFFFFFFF) if _WORD == "int64" else x


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which each bit of x moves every bit of the result (Wellons' lowbias32)."""

    def constant(value: int) -> Tensor:
        return ops.convert_to_tensor(value, _WORD)

    x = _word(ops.bitwise_xor(x, ops.right_shift(x, constant(16))) * constant(0x7FEB352D))
    x = _word(ops.bitwise_xor(x, ops.right_shift(x, constant(15))) * constant(0x846CA68B))
    return ops.bitwise_xor(x, ops.right_shift(x, constant(16)))


def image_noise(seeds: Tensor, count: int | Tensor) -> Tensor:
    """Uniform numbers in [0.5, 1), (B, count) float32; number j of an image is a function of its seed and j alone.

    A random generator over the whole batch would draw other numbers where the batch is spread over devices otherwise.

    Args:
        seeds: (B,) integers, one an image.
        count: numbers an image.
    """
    column = _mix(_word(ops.arange(count, dtype="int32")))
    bits = _mix(ops.bitwise_xor(column[None, :], _mix(_word(seeds))[:, None]))
    bits = ops.right_shift(bits, ops.convert_to_tensor(9, _WORD))  # 23 bits, as many as float32 has
    return 0.5 + ops.cast(bits, "float32") * 2.0**-24


def seeds_within(seeds: Tensor, places: Tensor) -> Tensor:
    """For what is drawn at places (K,) int32 of images with seeds (K,): a seed of its own for each, (K,) integers."""
    return _mix(ops.bitwise_xor(_mix(_word(places)), _mix(_word(seeds))))


def sample(
    positive: Tensor, negative: Tensor, size: int, positive_fraction: float, seeds: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw at most `size` rows an image: at most size * positive_fraction positives, filled up with negatives.

    Args:
        positive, negative: (B, N) bool, disjoint.
        size: rows drawn an image.
        positive_fraction: largest share of positives.
        seeds: (B,) integers, of the draw of each image.

    Returns:
        indices (B, size) int32, positives first; is_positive (B, size) bool; is_valid (B, size) bool: rows that
        hold neither a positive nor a negative, since there were too few, are not valid.
    """
    count = positive.shape[1]
    last = ops.shape(positive)[1] - 1
    if count is None or count < size:  # top_k needs at least as many rows as it draws
        positive, negative = (ops.pad(x, ((0, 0), (0, size))) for x in (positive, negative))
    noise = image_noise(seeds, ops.shape(positive)[1])
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
        return box_ops.take_rows(x, order)

    indices = ops.minimum(ops.cast(reorder(indices), "int32"), last)
    return indices, reorder(is_positive), reorder(is_valid)


def flagged_rows(flags: Tensor, static_shapes: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Where flags (B, L) bool are set: images (K,) and columns (K,) int32, and weights (K,) float32, 1 where it is so.

    Off static shapes K is the number of flags: a RoI costs the mask branch 3 GFLOP a step, so padded rows would be most
    of its time. Where there is none the first one goes through it at no weight: the statistics of nothing are not
    finite, and some kernels get the shape of nothing wrong.

    Args:
        flags: (B, L).
        static_shapes: all are there, K = B * L.
    """
    if static_shapes:
        batch, limit = ops.shape(flags)
        rows = ops.repeat(ops.arange(batch, dtype="int32"), limit)
        columns = ops.tile(ops.arange(limit, dtype="int32"), [batch])
        return rows, columns, ops.cast(ops.reshape(flags, (-1,)), "float32")
    first = ops.arange(ops.size(flags), dtype="int32") == 0
    chosen = ops.where(ops.any(flags), flags, ops.reshape(first, ops.shape(flags)))
    rows, columns = (ops.cast(x, "int32") for x in ops.nonzero(chosen))
    weights = ops.take(ops.reshape(flags, (-1,)), rows * flags.shape[1] + columns)
    return rows, columns, ops.cast(weights, "float32")
