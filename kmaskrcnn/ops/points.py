"""Points of RoIs: where they lie, the values of maps there, and which to look at (PointRend, Kirillov et al. 2020).

Points are (K, P, 2) yx. Those of a RoI are in 0..1 of its height and width; those of a map are in its pixels,
continuous (pixel i is centered at i + 0.5), so that a map of stride s has the image's point p at p / s.
"""

from __future__ import annotations

from keras import ops

from kmaskrcnn.ops.roi_align import weighted_rows
from kmaskrcnn.ops.sampling import image_noise
from kmaskrcnn.ops.tensor import Tensor


def grid_points(side: int) -> Tensor:
    """The centers of side x side cells, row by row, (side * side, 2) in 0..1."""
    centers = (ops.arange(side, dtype="float32") + 0.5) / side
    return ops.reshape(ops.stack(ops.meshgrid(centers, centers, indexing="ij"), axis=-1), (-1, 2))


def points_in_image(boxes: Tensor, points: Tensor) -> Tensor:
    """Points (K, P, 2) in 0..1 of boxes (K, 4) yxyx -> (K, P, 2) in pixels of the image."""
    first, last = ops.split(boxes[:, None], 2, axis=-1)  # (K, 1, 2)
    return first + points * (last - first)


def sample_points(maps: Tensor, points: Tensor, owners: Tensor) -> Tensor:
    """Bilinear samples of maps, which are 0 beyond their border (torch's grid_sample without align_corners).

    So a sample fades to half of the border's value at the border, where one of RoIAlign, which clamps, is all of it.

    Args:
        maps: (B, H, W, C), of any dtype. The samples are float32, and so is the sum that is the gradient of the maps.
        points: (K, P, 2) in pixels of the maps; one that is not finite gives 0.
        owners: (K,) int32, the map of each row of points.

    Returns:
        (K, P, C) float32. Points get no gradient.
    """
    _, height, width, channels = ops.shape(maps)
    points = ops.stop_gradient(points)
    (y, y_weight), (x, x_weight) = (_axis_taps(points[..., i], size) for i, size in enumerate((height, width)))
    y = y + (ops.cast(owners, "int32") * height)[:, None, None]
    rows = y[..., :, None] * width + x[..., None, :]  # (K, P, 2, 2)
    weights = y_weight[..., :, None] * x_weight[..., None, :]
    shape = (-1, points.shape[1], 4)
    table = ops.reshape(ops.cast(maps, "float32"), (-1, channels))
    return weighted_rows(table, ops.reshape(rows, shape), ops.reshape(weights, shape))


def _axis_taps(position: Tensor, size: int | Tensor) -> tuple[Tensor, Tensor]:
    """The two pixels beside each position (K, P) along one axis, and their weights, both (K, P, 2)."""
    size = ops.cast(size, "float32")
    position = position - 0.5
    # Farther out, or not a number, would be an index that gathering does not check everywhere.
    position = ops.where(ops.logical_and(position > -1.0, position < size), position, -1.0)
    low = ops.floor(position)
    taps = ops.stack([low, low + 1.0], axis=-1)
    weights = 1.0 - ops.abs(position[..., None] - taps)
    inside = ops.logical_and(taps >= 0.0, taps < size)
    return ops.cast(ops.minimum(ops.maximum(taps, 0.0), size - 1.0), "int32"), ops.where(inside, weights, 0.0)


def most_uncertain(logits: Tensor, count: int) -> Tensor:
    """Of each row of logits (K, N) the `count` that are nearest to 0: their places (K, count) int32."""
    return ops.cast(ops.top_k(-ops.abs(logits), count)[1], "int32")


def uncertain_points(logits: Tensor, count: int, oversampling: int, importance: float, seeds: Tensor) -> Tensor:
    """Random points to train on, most of them where a mask is uncertain (PointRend, section 3.1, training).

    Of oversampling * count points drawn evenly the importance * count at which the mask's logit is nearest to 0 are
    taken; the others are drawn evenly.

    Args:
        logits: (K, S, S) of masks over the RoIs.
        count: points a RoI.
        oversampling: k of the paper, at least 1.
        importance: beta of the paper, in 0..1.
        seeds: (K,) integers, of the draw of each RoI.

    Returns:
        (K, count, 2) in 0..1 of the RoI, without a gradient.
    """
    candidates, uncertain = count * oversampling, int(count * importance)
    drawn = 2.0 * image_noise(seeds, 2 * (candidates + count - uncertain)) - 1.0  # from [0.5, 1)
    drawn = ops.reshape(drawn, (-1, candidates + count - uncertain, 2))
    # The logit of a point tells, not those of the cells around it: between -1 and 1 it may be 0.
    owners = ops.arange(ops.shape(logits)[0], dtype="int32")
    sampled = sample_points(logits[..., None], drawn[:, :candidates] * logits.shape[1], owners)[..., 0]
    places = most_uncertain(ops.stop_gradient(sampled), uncertain)
    chosen = ops.take_along_axis(drawn[:, :candidates], places[..., None], axis=1)
    return ops.concatenate([chosen, drawn[:, candidates:]], axis=1)
