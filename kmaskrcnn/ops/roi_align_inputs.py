"""What every kernel of RoIAlign starts from: its inputs, the bins of each RoI, and all maps as one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from keras import ops

from kmaskrcnn.ops.tensor import Tensor


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


def divide_into_bins(boxes: Tensor, scale: Tensor, output_size: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """Corner (K, 2) of each RoI in feature pixels, and height and width of its bins (K, 2)."""
    first, last = ops.split(boxes, 2, axis=1)
    start = first * scale - (0.5 if aligned else 0.0)
    size = (last - first) * scale
    if not aligned:  # the original Caffe2 operator forces RoIs to be at least a feature pixel wide
        size = ops.maximum(size, 1.0)
    return start, size / output_size


def table_of_maps(features: Sequence[Tensor]) -> Tensor:
    """All maps (B, H, W, C) as one table (rows, C)."""
    return ops.concatenate([ops.reshape(feature, (-1, feature.shape[-1])) for feature in features], axis=0)


def map_of_each_roi(inputs: RoIAlignInputs) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
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
