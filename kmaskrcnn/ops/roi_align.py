"""RoIAlign (He et al. 2017, section 3), in three forms that give the same numbers.

A RoI is divided into P x P bins without rounding; each bin is the mean of s x s bilinear samples, or of as many as it
has feature pixels (rounded up, in each direction) where the sampling ratio s is 0. Sample positions are clamped as in
torchvision and Detectron2: beyond one pixel outside the map a sample is 0, within that it takes the border's value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import ops

Tensor = Any

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


def _bins(boxes: Tensor, scale: float | Tensor, output_size: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """Corner (K, 2) of each RoI in feature pixels, and height and width of its bins (K, 2)."""
    start = boxes[:, :2] * scale - (0.5 if aligned else 0.0)
    size = (boxes[:, 2:] - boxes[:, :2]) * scale
    if not aligned:  # the original Caffe2 operator forces RoIs to be at least a feature pixel wide
        size = ops.maximum(size, 1.0)
    return start, size / output_size


def _axis_taps(start: Tensor, bin_size: Tensor, length: Tensor, output_size: int, ratio: int) -> tuple[Tensor, Tensor]:
    """Feature rows (or columns) that each bin reads along one axis, and their weights, both (K, P, 2 * s).

    start and bin_size are (K,); length, the size of the map, is () or (K,).
    """
    samples = (ops.arange(output_size * ratio, dtype="float32") + 0.5) / ratio
    position = start[:, None] + samples * bin_size[:, None]  # (K, P * s)
    limit = ops.cast(length, "float32")[..., None]
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


def _taps(
    boxes: Tensor,
    first_row: Tensor,
    map_shape: tuple[Tensor, Tensor],
    scale: float | Tensor,
    size: int,
    ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor]:
    """Row of the flattened map and weight of every value that a bin reads, both (K, P, P, 4 * s * s).

    first_row (K,) is where the map of each RoI begins; map_shape is its height and width, each () or (K,).
    """
    start, bins = _bins(boxes, scale, size, aligned)
    height, width = map_shape
    y, y_weight = _axis_taps(start[:, 0], bins[:, 0], height, size, ratio)
    x, x_weight = _axis_taps(start[:, 1], bins[:, 1], width, size, ratio)
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
    limit = ops.broadcast_to(ops.cast(length, "float32"), ops.shape(start))[:, None, None]
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
    cells = ops.max(offsets, axis=-1) + 1
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
    # Subtracted, for TensorFlow turns a chain of additions into AddN, which may add in another order at each run.
    weights = -ops.cast(weights, table.dtype)
    result = 0.0
    for tap in range(weights.shape[-1]):  # one tap at a time: memory stays at one copy of the output
        result = result - weights[..., tap, None] * ops.take(table, rows[..., tap], axis=0)
    return result


def _gather_adaptive(inputs: RoIAlignInputs) -> Tensor:
    """`roi_align_gather` with sampling ratio 0: a loop over the most rows and columns that a bin reads."""
    table, first_row, scale, (height, width) = _table(inputs)
    size = inputs.output_size
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
    """All maps as one table (rows, C), and the row and weight of every value that a bin reads, as of `_taps`."""
    table, first_row, scale, shape = _table(inputs)
    options = (inputs.output_size, inputs.sampling_ratio, inputs.aligned)
    return table, *_taps(ops.stop_gradient(inputs.boxes), first_row, shape, scale, *options)


def _table(inputs: RoIAlignInputs) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """All maps as one table (rows, C); of each RoI its map's first row (K,), scale (K, 1), height and width (K,)."""
    features, batch_indices, map_indices = inputs.features, inputs.batch_indices, inputs.map_indices
    channels = features[0].shape[-1]
    table, sizes, offset = [], [], 0
    for feature in features:
        height, width = ops.shape(feature)[1:3]
        sizes.append(ops.stack([height, width, height * width, offset]))
        table.append(ops.reshape(feature, (-1, channels)))  # (B, H, W, C) -> (B * H * W, C)
        offset = offset + ops.shape(feature)[0] * height * width
    own = ops.take(ops.cast(ops.stack(sizes), "int32"), map_indices, axis=0)  # (K, 4)
    first_row = own[:, 3] + ops.cast(batch_indices, "int32") * own[:, 2]
    scale = ops.take(ops.convert_to_tensor(list(inputs.scales), "float32"), map_indices, axis=0)[:, None]
    return ops.concatenate(table, axis=0), first_row, scale, (own[:, 0], own[:, 1])


# The name under which `roi_align_lookup` has its sum in a graph, for the TFLite exporter.
LOOKUP_SUM = "kmaskrcnn.lookup_sum"


def roi_align_lookup(inputs: RoIAlignInputs) -> Tensor:
    """RoIAlign for TFLite, in float32, with a known number of RoIs and a sampling ratio above 0; as `roi_align_gather`.

    The sum of weighted rows is a function with the inputs of TFLite's EMBEDDING_LOOKUP_SPARSE, which the exporter puts
    in its place: that reads each value and writes each result once, where gathering moves 16 copies of the output
    through memory. Values of weight 0 are read too: to leave them out would give tensors a size that depends on the
    image (docs/guide/export.md has the times).
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

    @tf.function(experimental_implements=f'name: "{LOOKUP_SUM}" attr {{ key: "tfl_fusable_op" value {{ b: true }} }}')
    def lookup_sum(ids: Tensor, indices: Tensor, shape: Tensor, weights: Tensor, table: Tensor) -> Tensor:
        cells = tf.cast(tf.stack([indices[:, 0], ids], axis=1), tf.int64)
        matrix = tf.SparseTensor(cells, weights, (bins, table.shape[0]))
        return tf.sparse.sparse_dense_matmul(matrix, table)

    pooled = lookup_sum(ids, places, tf.constant([bins, taps]), weights, table)
    return tf.reshape(pooled, (-1, output_size, output_size, table.shape[-1]))  # (K * P * P, C) -> (K, P, P, C)


def roi_align_crop_and_resize(inputs: RoIAlignInputs) -> Tensor:
    """RoIAlign with `tf.image.crop_and_resize`, for TensorFlow outside XLA. Result as of `roi_align_gather`.

    The RoIs are divided by map, so that each is computed once, and put back in order. With sampling ratio 0 the grid
    differs from RoI to RoI, and pooling is the product with the sparse matrix of which the gradient is made.

    The operator's own gradient adds to the map from several threads without a lock and loses values. Here the gradient
    is a product with the sparse matrix of sampling weights, in which one thread makes each row of the sum, in a fixed
    order: the same bits at each run (benchmarks/roi_align.py has the times). There is no gradient of the gradient.
    """
    import tensorflow as tf

    features, scales, map_indices = inputs.features, inputs.scales, inputs.map_indices
    options = (inputs.output_size, inputs.sampling_ratio, inputs.aligned)
    boxes, batch_indices = tf.stop_gradient(inputs.boxes), tf.cast(inputs.batch_indices, tf.int32)
    pool_one_map = crop_and_resize_one_map if inputs.sampling_ratio else _adaptive_one_map

    @tf.custom_gradient
    def pool(*maps: tf.Tensor) -> tuple:
        own = [tf.cast(tf.where(map_indices == i)[:, 0], tf.int32) for i in range(len(maps))]
        pooled = [
            pool_one_map(feature, tf.gather(boxes, rois), tf.gather(batch_indices, rois), scale, *options)
            for feature, scale, rois in zip(maps, scales, own, strict=True)
        ]
        back = tf.math.invert_permutation(tf.concat(own, axis=0))

        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            # (K, P, P, C) -> (K * P * P, C)
            upstream = tf.reshape(tf.cast(tf.convert_to_tensor(upstream), tf.float32), (-1, maps[0].shape[-1]))
            return [
                _map_gradient(feature, upstream, boxes, batch_indices, rois, scale, *options)
                for feature, scale, rois in zip(maps, scales, own, strict=True)
            ]

        return tf.gather(tf.concat(pooled, axis=0), back), gradient

    return pool(*features)


def crop_and_resize_one_map(
    feature: Tensor, boxes: Tensor, batch_indices: Tensor, scale: float, size: int, ratio: int, aligned: bool
) -> Tensor:
    """Boxes (n, 4) of one map (B, H, W, C) -> (n, P, P, C).

    The operator's grid runs from the first to the last sample, so the box handed to it begins and ends half a sample
    inside the RoI, on a map padded by one repeated pixel, since it writes 0 outside and RoIAlign clamps.
    """
    import tensorflow as tf

    start, bins = _bins(boxes, scale, size, aligned)
    margin = 0.5 / ratio
    extent = tf.cast(tf.shape(feature)[1:3], tf.float32) + 1.0  # between the centres of the padded map's corner pixels
    first = (start + margin * bins + 1.0) / extent
    last = (start + (size - margin) * bins + 1.0) / extent
    # The operator takes no bfloat16.
    padded = tf.pad(tf.cast(feature, tf.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), "SYMMETRIC")
    grid = (size * ratio, size * ratio)
    samples = tf.image.crop_and_resize(padded, tf.concat([first, last], axis=1), batch_indices, grid)
    return tf.cast(tf.nn.avg_pool2d(samples, ratio, ratio, "VALID"), feature.dtype)


def _adaptive_one_map(
    feature: Tensor, boxes: Tensor, batch_indices: Tensor, scale: float, size: int, ratio: int, aligned: bool
) -> Tensor:
    """Boxes (n, 4) of one map (B, H, W, C) -> (n, P, P, C) with sampling ratio 0."""
    import tensorflow as tf

    channels = feature.shape[-1]

    def product() -> tf.Tensor:
        matrix = _sampling_matrix(tf.shape(feature), boxes, batch_indices, scale, size, ratio, aligned)
        rows = tf.reshape(tf.cast(feature, tf.float32), (-1, channels))  # (B, H, W, C) -> (B * H * W, C)
        return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=rows)

    # The operator divides by the number of rows, which is 0 where no RoI lies on the map.
    pooled = tf.cond(tf.size(boxes) > 0, product, lambda: tf.zeros((0, channels)))
    return tf.cast(tf.reshape(pooled, (-1, size, size, channels)), feature.dtype)  # (n * P * P, C) -> (n, P, P, C)


def _sampling_matrix(
    shape: Tensor, boxes: Tensor, batch_indices: Tensor, scale: float, size: int, ratio: int, aligned: bool
) -> Tensor:
    """The sparse matrix (n * P * P, B * H * W) that takes the pixels of a map of `shape` (4,) to the bins of boxes."""
    import tensorflow as tf

    first_row, map_shape = batch_indices * (shape[1] * shape[2]), (shape[1], shape[2])
    if ratio:
        taps, weights = _taps(boxes, first_row, map_shape, scale, size, ratio, aligned)
        taps, weights = tf.reshape(taps, (-1,)), tf.reshape(weights, (-1,))
        owner = tf.repeat(tf.range(tf.shape(boxes)[0] * size * size), 4 * ratio * ratio)
    else:
        owner, taps, weights = _adaptive_taps(boxes, first_row, map_shape, scale, size, aligned)
    # Made bin by bin, which is the order of the taps: sorting them by pixel takes longer.
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.cast(tf.stack([owner, taps], axis=1), tf.int64),
        values=weights,
        dense_shape=tf.cast(tf.stack([tf.shape(boxes)[0] * size * size, shape[0] * shape[1] * shape[2]]), tf.int64),
    )


def _adaptive_taps(
    boxes: Tensor, first_row: Tensor, map_shape: tuple[Tensor, Tensor], scale: float, size: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Bin, row of the flattened map and weight of every value that a bin reads with sampling ratio 0, each (N,)."""
    import tensorflow as tf

    start, bins = _bins(boxes, scale, size, aligned)
    y, y_cells, y_weights = _adaptive_axis_taps(start[:, 0], bins[:, 0], map_shape[0], size)
    x, x_cells, x_weights = _adaptive_axis_taps(start[:, 1], bins[:, 1], map_shape[1], size)
    counts = tf.reshape(y_cells[:, :, None] * x_cells[:, None, :], (-1,))  # (n * P * P,), values that a bin reads
    owner = tf.repeat(tf.range(tf.size(counts)), counts)
    place = tf.range(tf.size(owner)) - tf.gather(tf.cumsum(counts, exclusive=True), owner)
    roi, in_roi = owner // (size * size), owner % (size * size)
    y_bin, x_bin = roi * size + in_roi // size, roi * size + in_roi % size  # rows of (n, P) tables
    columns = tf.gather(tf.reshape(x_cells, (-1,)), x_bin)
    row, column = place // columns, place % columns

    def value(table: Tensor, bins: Tensor, cell: Tensor) -> Tensor:
        return tf.gather(tf.reshape(table, (-1,)), bins * tf.shape(table)[-1] + cell)

    weights = value(y_weights, y_bin, row) * value(x_weights, x_bin, column)
    own_y, own_x = tf.gather(tf.reshape(y, (-1,)), y_bin) + row, tf.gather(tf.reshape(x, (-1,)), x_bin) + column
    return owner, tf.gather(first_row, roi) + own_y * map_shape[1] + own_x, weights


def _map_gradient(
    feature: Tensor,
    upstream: Tensor,
    boxes: Tensor,
    batch_indices: Tensor,
    rois: Tensor,
    scale: float,
    size: int,
    ratio: int,
    aligned: bool,
) -> Tensor:
    """Gradient (B, H, W, C) of the map that the RoIs (n,) of boxes (K, 4) lie on; upstream is (K * P * P, C)."""
    import tensorflow as tf

    shape = tf.shape(feature)
    own = (tf.gather(boxes, rois), tf.gather(batch_indices, rois))
    matrix = _sampling_matrix(shape, *own, scale, size, ratio, aligned)
    matrix = tf.raw_ops.SparseMatrixTranspose(input=matrix, conjugate=False, type=tf.float32)
    bins = tf.reshape(rois[:, None] * (size * size) + tf.range(size * size), (-1,))  # (n * P * P,), rows of upstream
    total = tf.raw_ops.SparseMatrixMatMul(a=matrix, b=tf.gather(upstream, bins))  # (B * H * W, C)
    return tf.cast(tf.reshape(total, shape), feature.dtype)
