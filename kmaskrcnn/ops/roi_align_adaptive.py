"""RoIAlign with sampling ratio 0: a bin takes one sample a feature pixel, so that their number depends on the RoI."""

from __future__ import annotations

from typing import Any

from keras import ops

from kmaskrcnn.ops.roi_align_inputs import RoIAlignInputs, divide_into_bins, map_of_each_roi, table_of_maps
from kmaskrcnn.ops.tensor import Tensor

# Samples of a bin in one direction, at most: those of a RoI as wide as 3,584 feature pixels.
_MOST_SAMPLES = 512


def gather_adaptive(inputs: RoIAlignInputs) -> Tensor:
    """`roi_align_gather` with sampling ratio 0: a loop over the most rows and columns that a bin reads."""
    table, size = table_of_maps(inputs.features), inputs.output_size
    first_row, (height, width), scale = map_of_each_roi(inputs)
    start, bins = divide_into_bins(ops.stop_gradient(inputs.boxes), scale, size, inputs.aligned)
    y, _, y_weights = _axis_taps(start[:, 0], bins[:, 0], height, size)
    x, _, x_weights = _axis_taps(start[:, 1], bins[:, 1], width, size)
    columns = _whole(ops.shape(x_weights)[-1])

    def add(tap: Tensor, result: Tensor) -> Tensor:
        row, column = tap // columns, tap % columns
        own_y = ops.minimum(y + row, height[:, None] - 1) * width[:, None]
        own_x = ops.minimum(x + column, width[:, None] - 1)
        weights = ops.take(y_weights, row, axis=-1)[:, :, None] * ops.take(x_weights, column, axis=-1)[:, None, :]
        rows = first_row[:, None, None] + own_y[:, :, None] + own_x[:, None, :]  # (K, P, P)
        return result + ops.cast(weights, table.dtype)[..., None] * ops.take(table, rows, axis=0)

    empty = ops.zeros((ops.shape(inputs.boxes)[0], size, size, table.shape[-1]), table.dtype)
    return ops.fori_loop(0, _whole(ops.shape(y_weights)[-1]) * columns, add, empty)


def adaptive_taps(inputs: RoIAlignInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Bin, row of the table and weight of every value that a bin reads with sampling ratio 0, each (N,)."""
    import tensorflow as tf

    size = inputs.output_size
    first_row, (height, width), scale = map_of_each_roi(inputs)
    start, bins = divide_into_bins(inputs.boxes, scale, size, inputs.aligned)
    y, y_cells, y_weights = _axis_taps(start[:, 0], bins[:, 0], height, size)
    x, x_cells, x_weights = _axis_taps(start[:, 1], bins[:, 1], width, size)
    counts = tf.reshape(y_cells[:, :, None] * x_cells[:, None, :], (-1,))  # (K * P * P,), values that a bin reads
    owner = tf.repeat(tf.range(tf.size(counts)), counts)
    place = tf.range(tf.size(owner)) - tf.gather(tf.cumsum(counts, exclusive=True), owner)
    roi, in_roi = owner // (size * size), owner % (size * size)
    y_bin, x_bin = roi * size + in_roi // size, roi * size + in_roi % size  # rows of (K, P) tables
    columns = tf.gather(tf.reshape(x_cells, (-1,)), x_bin)
    row, column = place // columns, place % columns

    def value(table: Tensor, bins: Tensor, cell: Tensor) -> Tensor:
        return tf.gather(tf.reshape(table, (-1,)), bins * tf.shape(table)[-1] + cell)

    weights = value(y_weights, y_bin, row) * value(x_weights, x_bin, column)
    own_y, own_x = tf.gather(tf.reshape(y, (-1,)), y_bin) + row, tf.gather(tf.reshape(x, (-1,)), x_bin) + column
    return owner, tf.gather(first_row, roi) + own_y * tf.gather(width, roi) + own_x, weights


def _axis_taps(start: Tensor, bin_size: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Feature rows (or columns) that each bin reads along one axis: the first, how many, and the weight of each.

    Args:
        start: (K,) where each RoI begins, in feature pixels.
        bin_size: (K,) of its bins.
        length: (K,) of its map.
        size: P, bins along the axis.

    Returns:
        first (K, P) int32; cells (K, P) int32, the rows that a bin reads; weights (K, P, T), T the most of cells.
    """
    bin_size = ops.maximum(bin_size, 0.0)
    count = ops.minimum(ops.ceil(bin_size), _MOST_SAMPLES)  # (K,)
    most = ops.max(ops.concatenate([ops.cast(count, "int32"), ops.ones((1,), "int32")]))
    sample = ops.cast(ops.arange(most), "float32")
    in_bin = (sample + 0.5) / ops.maximum(count, 1.0)[:, None]  # (K, S)
    bins = ops.arange(size, dtype="float32")[None, :, None]
    position = start[:, None, None] + (bins + in_bin[:, None, :]) * bin_size[:, None, None]  # (K, P, S)
    limit = ops.cast(length, "float32")[:, None, None]
    own = (sample < count[:, None])[:, None, :]
    used = ops.logical_and(own, ops.logical_and(position >= -1.0, position <= limit))
    position = ops.minimum(ops.maximum(position, 0.0), limit - 1.0)
    low = ops.floor(position)
    first = low[..., :1]
    fraction = ops.where(own, position - low, 0.0)
    low = ops.where(own, low, first)
    high = ops.minimum(low + 1.0, limit - 1.0)
    share = ops.cast(used, "float32") / ops.maximum(count, 1.0)[:, None, None]
    offsets = ops.cast(ops.concatenate([low, high], axis=-1) - first, "int32")  # (K, P, 2 * S)
    values = ops.concatenate([(1.0 - fraction) * share, fraction * share], axis=-1)
    cells = ops.max(offsets, axis=-1, initial=0) + 1  # of no RoI too: a level may have none
    width = ops.max(ops.concatenate([ops.reshape(cells, (-1,)), ops.ones((1,), "int32")]))
    bins = ops.reshape(ops.arange(ops.size(cells), dtype="int32"), ops.shape(cells))
    places = ops.reshape(bins[..., None] * width + offsets, (-1,))
    weights = ops.segment_sum(ops.reshape(values, (-1,)), places, _whole(ops.size(cells) * width))
    return ops.cast(first[..., 0], "int32"), cells, ops.reshape(weights, (-1, size, _whole(width)))


def _whole(number: Any) -> Any:
    """A number as Python's where it is known, as shapes want it off TensorFlow's graphs."""
    try:
        return int(number)
    except TypeError:  # a symbolic tensor of TensorFlow
        return number
