"""RoIAlign (He et al. 2017, section 3), in three forms that give the same numbers.

A RoI is divided into P x P bins without rounding; each bin is the mean of s x s bilinear samples, or of as many as it
has feature pixels (rounded up, in each direction) where the sampling ratio s is 0. Sample positions are clamped as in
torchvision and Detectron2: beyond one pixel outside the map a sample is 0, within that it takes the border's value.
"""

from __future__ import annotations

import keras
from keras import ops

from kmaskrcnn.ops.roi_align_adaptive import adaptive_taps, gather_adaptive
from kmaskrcnn.ops.roi_align_inputs import RoIAlignInputs, divide_into_bins, map_of_each_roi, table_of_maps
from kmaskrcnn.ops.tensor import Tensor


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
    first_row, (height, width), scale = map_of_each_roi(inputs)
    start, bins = divide_into_bins(inputs.boxes, scale, size, inputs.aligned)
    (y_start, x_start), (y_bins, x_bins) = ops.unstack(start, axis=1), ops.unstack(bins, axis=1)
    y, y_weight = _axis_taps(y_start, y_bins, height, size, ratio)
    x, x_weight = _axis_taps(x_start, x_bins, width, size, ratio)
    y = first_row[:, None, None] + y * ops.cast(width, "int32")[..., None, None]
    rows = y[:, :, None, :, None] + x[:, None, :, None, :]  # (K, P, P, 2s, 2s)
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    shape = (-1, size, size, 4 * ratio * ratio)
    return ops.reshape(rows, shape), ops.reshape(weights, shape)  # (K, P, P, 2s, 2s) -> (K, P, P, 4ss)


def roi_align_gather(inputs: RoIAlignInputs) -> Tensor:
    """RoIAlign with keras.ops alone: any backend, dtype and, but for sampling ratio 0, compiler, and TFLite builtins.

    All maps are one table of rows, so that each RoI is computed once, whichever its map, with static shapes.

    Returns:
        (K, P, P, C) in the dtype of the features.
    """
    if not inputs.sampling_ratio:
        return gather_adaptive(inputs)
    return weighted_rows(*_table_and_taps(inputs))


def weighted_rows(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Sums over the last axis of rows (..., n) int32 of a table (N, C), times weights (..., n) -> (..., C)."""
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


def _table_and_taps(inputs: RoIAlignInputs) -> tuple[Tensor, Tensor, Tensor]:
    """All maps as one table (rows, C), and the row and weight of every value that a bin reads, as for `_taps`."""
    return table_of_maps(inputs.features), *_taps(inputs._replace(boxes=ops.stop_gradient(inputs.boxes)))


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

        return crop_and_resize(own) if inputs.sampling_ratio else _pool_by_matrix(own), gradient

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
    _, map_shape, scale = map_of_each_roi(inputs)
    start, bins = divide_into_bins(inputs.boxes, scale, size, inputs.aligned)
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


def _pool_by_matrix(inputs: RoIAlignInputs) -> Tensor:
    """`roi_align_crop_and_resize` with sampling ratio 0."""
    import tensorflow as tf

    table = table_of_maps(inputs.features)
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
        owner, taps, weights = adaptive_taps(inputs)
    rows = tf.add_n([tf.reduce_prod(tf.shape(feature)[:3]) for feature in inputs.features])
    # Made bin by bin, which is the order of the taps: sorting them by pixel takes longer.
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.cast(tf.stack([owner, taps], axis=1), tf.int64),
        values=weights,
        dense_shape=tf.cast(tf.stack([bins, rows]), tf.int64),
    )
