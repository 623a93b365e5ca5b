"""RoIAlign (He et al. 2017, section 3), in three forms that give the same numbers.

A RoI is divided into P x P bins without rounding; each bin is the mean of s x s bilinear samples, or of as many as it
has feature pixels (rounded up, in each direction) where the sampling ratio s is 0. Sample positions are clamped as in
torchvision and Detectron2: beyond one pixel outside the map a sample is 0, within that it takes the border's value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from kmaskrcnn.ops.tensor import Tensor

# Samples of a bin in one direction, at most, with sampling ratio 0: those of a RoI as wide as 3,584 feature pixels.
_MOST_SAMPLES = 512


class RoIAlignInputs(NamedTuple):
    """What every kernel takes.

    Attributes:
        features: maps (B, H, W, C) of any sizes.
        scales: feature pixels an image pixel of each map, 1 / stride.
        boxes: (K, 4) yxyx in image pixels; they get no gradient.
        batch_indices: (K,) int32, the image of each RoI.
        map_indices: (K,) int32, the map of each RoI.
        output_size: P.
        sampling_ratio: samples along each side of a bin, s; 0: one a feature pixel (torchvision's and Detectron2's
            default), whose number depends on the RoI, so that it has no XLA form.
        aligned: shift by half a pixel (Detectron2's ROIAlignV2).
    """

    features: Sequence[Tensor]
    scales: Sequence[float]
    boxes: Tensor
    batch_indices: Tensor
    map_indices: Tensor
    output_size: int
    sampling_ratio: int = 2
    aligned: bool = False


def _bins(boxes: Tensor, scale: Tensor, output_size: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """Corner (K, 2) of each RoI in feature pixels, and height and width of its bins (K, 2)."""
    first, last = ops.split(boxes, 2, axis=1)
    start = first * scale - (0.5 if aligned else 0.0)
    size = (last - first) * scale
    if not aligned:  # the original Caffe2 operator forces RoIs to be at least a feature pixel wide
        size = ops.maximum(size, 1.0)
    return start, size / output_size


def _axis_taps(start: Tensor, bin_size: Tensor, length: Tensor, output_size: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Feature rows (or columns) that each bin reads along one axis, and their weights, both (K, P, 2 * s).

    start, bin_size and length, the size of the map, are (K,).
    """
    samples = (ops.arange(output_size * ratio, dtype="float32") + 0.5) / ratio
    position = ops.expand_dims(start, 1) + samples * ops.expand_dims(bin_size, 1)  # (K, P * s)
    limit = ops.expand_dims(ops.cast(length, "float32"), -1)
    inside = ops.logical_and(position >= -1.0, position <= limit)
    position = ops.minimum(ops.maximum(position, 0.0), limit - 1.0)
    low = ops.floor(position)
    high = ops.minimum(low + 1.0, limit - 1.0)
    fraction = position - low
    used = ops.cast(inside, "float32") / ratio
    taps = ops.cast(ops.stack([low, high], axis=-1), "int32")  # (K, P * s, 2)
    weights = ops.stack([(1.0 - fraction) * used, fraction * used], axis=-1)
    shape = (-1, output_size, 2 * ratio)
    return ops.reshape(taps, shape), ops.reshape(weights, shape)  # (K, P * s, 2) -> (K, P, 2 * s)


def _taps(inputs: RoIAlignInputs) -> tuple[Tensor, Tensor]:
    """Row of the table of all maps and weight of every value that a bin reads, both (K, P, P, 4 * s * s)."""
    size, ratio = inputs.output_size, inputs.sampling_ratio
    first_row, (height, width), scale = _own_map(inputs)
    start, bins = _bins(inputs.boxes, scale, size, inputs.aligned)
    (y_start, x_start), (y_bins, x_bins) = ops.unstack(start, axis=1), ops.unstack(bins, axis=1)
    y, y_weight = _axis_taps(y_start, y_bins, height, size, ratio)
    x, x_weight = _axis_taps(x_start, x_bins, width, size, ratio)
    y = first_row[:, None, None] + y * ops.cast(width, "int32")[..., None, None]
    rows = y[:, :, None, :, None] + x[:, None, :, None, :]  # (K, P, P, 2s, 2s)
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    shape = (-1, size, size, 4 * ratio * ratio)
    return ops.reshape(rows, shape), ops.reshape(weights, shape)  # (K, P, P, 2s, 2s) -> (K, P, P, 4ss)


def _adaptive_axis_taps(start: Tensor, bin_size: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `_axis_taps` with one sample a feature pixel: the row that each bin begins at, and of it and those after it.

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


def roi_align_gather(inputs: RoIAlignInputs) -> Tensor:
    """RoIAlign with keras.ops alone: any backend, dtype and, but for sampling ratio 0, compiler, and TFLite builtins.

    All maps are one table of rows, so that each RoI is computed once, whichever its map, with static shapes.

    Returns:
        (K, P, P, C) in the dtype of the features.
    """
    if not inputs.sampling_ratio:
        return _gather_adaptive(inputs)
    table, rows, weights = _table_and_taps(inputs)
    if keras.backend.backend() == "jax":
        return _with_sorted_gradient(table, rows, weights)
    return _sum_of_taps(table, rows, weights)


def _sum_of_taps(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    # Subtracted, for TensorFlow turns a chain of additions into AddN, which may add in another order at each run.
    weights = -ops.cast(weights, table.dtype)
    result = 0.0
    for tap in range(weights.shape[-1]):  # one tap at a time: memory stays at one copy of the output
        result = result - weights[..., tap, None] * ops.take(table, rows[..., tap], axis=0)
    return result


def _with_sorted_gradient(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """`_sum_of_taps` under JAX, whose own gradient is a sum of sixteen tables, each made by adding at random places.

    Here all values are added to one table in float32, by row: seven times as fast on a GPU, in a third of the memory
    (docs/results/gpu.md).
    """

    @keras.ops.custom_gradient
    def pool(table: Tensor) -> tuple:
        def gradient(upstream: Tensor) -> Tensor:
            upstream = ops.reshape(ops.cast(upstream, "float32"), (-1, table.shape[-1]))  # (K, P, P, C) -> (K * PP, C)
            flat_rows, taps = ops.reshape(rows, (-1,)), rows.shape[-1]
            order = ops.argsort(flat_rows)
            values = ops.take(ops.reshape(weights, (-1,)), order)[:, None] * ops.take(upstream, order // taps, axis=0)
            flat_rows = ops.take(flat_rows, order)
            return ops.cast(ops.segment_sum(values, flat_rows, table.shape[0], sorted=True), table.dtype)

        return _sum_of_taps(table, rows, weights), gradient

    return pool(table)


def _gather_adaptive(inputs: RoIAlignInputs) -> Tensor:
    """`roi_align_gather` with sampling ratio 0: a loop over the most rows and columns that a bin reads."""
    table, size = _table(inputs.features), inputs.output_size
    first_row, (height, width), scale = _own_map(inputs)
    start, bins = _bins(ops.stop_gradient(inputs.boxes), scale, size, inputs.aligned)
    y, _, y_weights = _adaptive_axis_taps(start[:, 0], bins[:, 0], height, size)
    x, _, x_weights = _adaptive_axis_taps(start[:, 1], bins[:, 1], width, size)
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


def _table_and_taps(inputs: RoIAlignInputs) -> tuple[Tensor, Tensor, Tensor]:
    """All maps as one table (rows, C), and the row and weight of every value that a bin reads, as for `_taps`."""
    return _table(inputs.features), *_taps(inputs._replace(boxes=ops.stop_gradient(inputs.boxes)))


def _table(features: Sequence[Tensor]) -> Tensor:
    """All maps (B, H, W, C) as one table (rows, C)."""
    return ops.concatenate([ops.reshape(feature, (-1, feature.shape[-1])) for feature in features], axis=0)


def _own_map(inputs: RoIAlignInputs) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Of each RoI the row of the table that its map begins at (K,), height and width (K,) and scale (K, 1)."""
    sizes, offset = [], 0
    for feature in inputs.features:
        batch, height, width = ops.shape(feature)[:3]
        sizes.append(ops.stack([height, width, height * width, offset]))
        offset = offset + batch * height * width
    own = ops.take(ops.cast(ops.stack(sizes), "int32"), inputs.map_indices, axis=0)  # (K, 4)
    height, width, area, first_row = ops.unstack(own, axis=1)
    first_row = first_row + ops.cast(inputs.batch_indices, "int32") * area
    scale = ops.take(ops.convert_to_tensor(list(inputs.scales), "float32"), inputs.map_indices, axis=0)
    return first_row, (height, width), ops.expand_dims(scale, 1)


# The name under which `roi_align_lookup` has its sum in a graph, for the TFLite exporter.
LOOKUP_SUM = "kmaskrcnn.lookup_sum"


def roi_align_lookup(inputs: RoIAlignInputs) -> Tensor:
    """RoIAlign for TFLite, in float32, with a known number of RoIs and a sampling ratio above 0; as `roi_align_gather`.

    The sum of weighted rows is a function with the inputs of TFLite's EMBEDDING_LOOKUP_SPARSE, which the exporter puts
    in its place: that reads each value and writes each result once, where gathering moves 16 copies of the output
    through memory. Values of weight 0 are read too: to leave them out would give tensors a size that depends on the
    image (docs/results/export.md has the times).
    """
    import tensorflow as tf

    table, rows, weights = _table_and_taps(inputs)
    taps, output_size = weights.shape[-1], inputs.output_size
    bins = inputs.boxes.shape[0] * output_size * output_size
    count = bins * taps  # values read
    # The bin that each value goes to, twice, for the second column is not read. They are made from the rows, for as a
    # constant they would be as large in the file as the weights of a small model.
    bin_numbers = ops.reshape(rows, (bins, taps))[:, 0] * 0 + tf.range(bins)
    places = tf.reshape(tf.tile(tf.stack([bin_numbers, bin_numbers], axis=1), (1, taps)), (count, 2))
    ids, weights = ops.reshape(rows, (count,)), ops.reshape(weights, (count,))  # (K, P, P, 4ss) -> (K * P * P * 4ss,)

    @tf.function(
        autograph=False,
        experimental_implements=f'name: "{LOOKUP_SUM}" attr {{ key: "tfl_fusable_op" value {{ b: true }} }}',
    )
    def lookup_sum(ids: Tensor, indices: Tensor, shape: Tensor, weights: Tensor, table: Tensor) -> Tensor:
        cells = tf.cast(tf.stack([indices[:, 0], ids], axis=1), tf.int64)
        matrix = tf.SparseTensor(cells, weights, (bins, table.shape[0]))
        return tf.sparse.sparse_dense_matmul(matrix, table)

    pooled = lookup_sum(ids, places, tf.constant([bins, taps]), weights, table)
    return tf.reshape(pooled, (-1, output_size, output_size, table.shape[-1]))  # (K * P * P, C) -> (K, P, P, C)


def roi_align_crop_and_resize(inputs: RoIAlignInputs) -> Tensor:
    """RoIAlign with `tf.image.crop_and_resize`, for TensorFlow outside XLA. Result as for `roi_align_gather`.

    The RoIs are divided by map, so that each is computed once, and put back in order. With sampling ratio 0 the grid
    differs from RoI to RoI, and pooling is the product with the sparse matrix of which the gradient is made.

    The operator's own gradient adds to the map from several threads without a lock and loses values. Here the gradient
    is a product with the sparse matrix of sampling weights, in which one thread makes each row of the sum, in a fixed
    order: the same bits at each run (benchmarks/roi_align.py has the times). There is no gradient of the gradient.
    """
    import tensorflow as tf

    boxes, batch_indices = tf.stop_gradient(inputs.boxes), tf.cast(inputs.batch_indices, tf.int32)

    @tf.custom_gradient
    def pool(*maps: tf.Tensor) -> tuple:
        own = inputs._replace(features=maps, boxes=boxes, batch_indices=batch_indices)

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            # (K, P, P, C) -> (K * P * P, C)
            upstream = tf.reshape(tf.cast(tf.convert_to_tensor(upstream), tf.float32), (-1, maps[0].shape[-1]))
            # A map at a time. Parts of one product share its memory: which one a later sum takes for its result, and so
            # the order of the sum, would be a matter of timing.
            return [_map_gradient(own, index, upstream) for index in range(len(maps))]

        return crop_and_resize(own) if inputs.sampling_ratio else _adaptive(own), gradient

    return pool(*inputs.features)


def _rois_of(inputs: RoIAlignInputs, index: int) -> Tensor:
    """The RoIs (n,) that lie on a map."""
    import tensorflow as tf

    return tf.squeeze(tf.cast(tf.where(inputs.map_indices == index), tf.int32), 1)


def _map_gradient(inputs: RoIAlignInputs, index: int, upstream: Tensor) -> Tensor:
    """Gradient (B, H, W, C) of a map; upstream is (K * P * P, C)."""
    import tensorflow as tf

    feature, rois, cells = inputs.features[index], _rois_of(inputs, index), inputs.output_size**2
    own = inputs._replace(
        features=[feature],
        scales=[inputs.scales[index]],
        boxes=tf.gather(inputs.boxes, rois),
        batch_indices=tf.gather(inputs.batch_indices, rois),
        map_indices=tf.zeros_like(rois),
    )
    matrix = tf.raw_ops.SparseMatrixTranspose(input=_sampling_matrix(own), conjugate=False, type=tf.float32)
    bins = tf.reshape(tf.expand_dims(rois, 1) * cells + tf.range(cells), (-1,))  # (n * P * P,), rows of upstream
    total = tf.raw_ops.SparseMatrixMatMul(a=matrix, b=tf.gather(upstream, bins))  # (B * H * W, C)
    return tf.cast(tf.reshape(total, tf.shape(feature)), feature.dtype)


def crop_and_resize(inputs: RoIAlignInputs) -> Tensor:
    """`roi_align_crop_and_resize` with the operator's own gradient.

    The operator's grid runs from the first to the last sample, so the box handed to it begins and ends half a sample
    inside the RoI, on a map padded by one repeated pixel, since it writes 0 outside and RoIAlign clamps.
    """
    import tensorflow as tf

    size, ratio = inputs.output_size, inputs.sampling_ratio
    _, map_shape, scale = _own_map(inputs)
    start, bins = _bins(inputs.boxes, scale, size, inputs.aligned)
    margin = 0.5 / ratio
    # Between the centers of the padded map's corner pixels.
    extent = tf.cast(tf.stack(map_shape, axis=1), tf.float32) + 1.0
    first = (start + margin * bins + 1.0) / extent
    last = (start + (size - margin) * bins + 1.0) / extent
    boxes, grid = tf.concat([first, last], axis=1), (size * ratio, size * ratio)
    pooled, order = [], []
    for index, feature in enumerate(inputs.features):
        rois = _rois_of(inputs, index)
        # The operator takes no bfloat16.
        padded = tf.pad(tf.cast(feature, tf.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")
        samples = tf.image.crop_and_resize(padded, tf.gather(boxes, rois), tf.gather(inputs.batch_indices, rois), grid)
        pooled.append(tf.cast(tf.nn.avg_pool2d(samples, ratio, ratio, "VALID"), feature.dtype))
        order.append(rois)
    return tf.gather(tf.concat(pooled, axis=0), tf.math.invert_permutation(tf.concat(order, axis=0)))


def _adaptive(inputs: RoIAlignInputs) -> Tensor:
    """`roi_align_crop_and_resize` with sampling ratio 0."""
    import tensorflow as tf

    table = _table(inputs.features)
    dtype, channels = table.dtype, table.shape[-1]

    def product() -> tf.Tensor:
        return tf.raw_ops.SparseMatrixMatMul(a=_sampling_matrix(inputs), b=tf.cast(table, tf.float32))

    # The operator divides by the number of rows, which is 0 where there is no RoI.
    pooled = tf.cond(tf.size(inputs.boxes) > 0, product, lambda: tf.zeros((0, channels)))
    size = inputs.output_size
    return tf.cast(tf.reshape(pooled, (-1, size, size, channels)), dtype)  # (K * P * P, C) -> (K, P, P, C)


def _sampling_matrix(inputs: RoIAlignInputs) -> Tensor:
    """The sparse matrix (K * P * P, rows) that takes the rows of the table of all maps to the bins of the RoIs."""
    import tensorflow as tf

    size, ratio = inputs.output_size, inputs.sampling_ratio
    bins = tf.shape(inputs.boxes)[0] * size * size
    if ratio:
        taps, weights = _taps(inputs)
        taps, weights = tf.reshape(taps, (-1,)), tf.reshape(weights, (-1,))
        owner = tf.repeat(tf.range(bins), 4 * ratio * ratio)
    else:
        owner, taps, weights = _adaptive_taps(inputs)
    rows = tf.add_n([tf.reduce_prod(tf.shape(feature)[:3]) for feature in inputs.features])
    # Made bin by bin, which is the order of the taps: sorting them by pixel takes longer.
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.cast(tf.stack([owner, taps], axis=1), tf.int64),
        values=weights,
        dense_shape=tf.cast(tf.stack([bins, rows]), tf.int64),
    )


def _adaptive_taps(inputs: RoIAlignInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Bin, row of the table and weight of every value that a bin reads with sampling ratio 0, each (N,)."""
    import tensorflow as tf

    size = inputs.output_size
    first_row, (height, width), scale = _own_map(inputs)
    start, bins = _bins(inputs.boxes, scale, size, inputs.aligned)
    y, y_cells, y_weights = _adaptive_axis_taps(start[:, 0], bins[:, 0], height, size)
    x, x_cells, x_weights = _adaptive_axis_taps(start[:, 1], bins[:, 1], width, size)
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
