"""Ground-truth masks as a RoI sees them (Mask R-CNN, section 3: the M x M target of each positive RoI)."""

from __future__ import annotations

import functools

import keras
import numpy as np
from keras import ops

from kmaskrcnn.ops.points import points_in_image, sample_points
from kmaskrcnn.ops.tensor import Tensor


def _interpolation(
    start: Tensor, stop: Tensor, frame_start: Tensor, frame_stop: Tensor, out: int, m: int, samples: int
) -> Tensor:
    """(K, out, m) matrices that average bilinear samples, `samples` a bin of [start, stop), from cells of the frame."""
    if samples:
        count, most = ops.full_like(start, samples), samples
    else:  # one a pixel, so each RoI has its own number
        count = ops.maximum(ops.ceil((stop - start) / out), 1.0)
        most = ops.cast(ops.max(ops.concatenate([count, ops.ones((1,), "float32")])), "int32")
    bins = ops.arange(out, dtype="float32")
    bin_size = ((stop - start) / out)[:, None]
    cell_size = ops.maximum(frame_stop - frame_start, 1e-6)[:, None] / m

    def add_sample(index: Tensor, total: Tensor) -> Tensor:
        sample = ops.cast(index, "float32")
        position = start[:, None] + (bins + ((sample + 0.5) / count)[:, None]) * bin_size  # (K, out), image pixels
        cell = (position - frame_start[:, None]) / cell_size - 0.5
        # Outside the frame there is no object: the hat function fades to 0 within one cell, as in the paste.
        weights = ops.maximum(1.0 - ops.abs(cell[..., None] - ops.arange(m, dtype="float32")), 0.0)  # (K, out, m)
        share = ops.where(sample < count, 1.0 / count, 0.0)
        return total + weights * share[:, None, None]

    nothing = ops.zeros((ops.shape(start)[0], out, m), "float32")
    if samples:
        return functools.reduce(lambda total, index: add_sample(index, total), range(samples), nothing)
    return ops.fori_loop(0, most, add_sample, nothing)


def check_mask_values(masks: np.ndarray) -> None:
    """Refuse masks that are not what their type says: integers in 0..255, floats in 0..1, or bool.

    Raises:
        ValueError: the message names the range that they have and the one expected.
    """
    if not masks.size or masks.dtype == bool:
        return
    low, high = float(masks.min()), float(masks.max())
    if np.issubdtype(masks.dtype, np.floating):
        if not (low >= 0 and high <= 1):
            raise ValueError(f"masks: floats in {low:g}..{high:g}, expected 0..1, or uint8 in 0..255")
    elif low < 0 or high > 255:
        raise ValueError(f"masks: values in {low:g}..{high:g}, expected 0..255")
    elif high == 1:
        raise ValueError("masks: integers in 0..1, expected 0..255: multiply by 255, or give them as bool")


def mask_targets(
    masks: Tensor, frames: Tensor, rois: Tensor, size: int, binary: bool = True, samples: int = 2
) -> Tensor:
    """Masks cut out along RoIs and resampled without rounding to size x size.

    Args:
        masks: (K, m, m), the object's coverage of each cell of its frame: integers in 0..255, floats in 0..1, or bool.
        frames: (K, 4) yxyx pixels, the rectangle that the m x m cells tile.
        rois: (K, 4) yxyx pixels.
        size: side of the target.
        binary: threshold the target at one half (Detectron2); else leave it soft (torchvision).
        samples: bilinear samples along each side of a target's cell; 0 takes one a pixel (torchvision), which has no
            fixed shape and so no XLA form.

    Returns:
        (K, size, size) float32 in 0..1.

    Raises:
        ValueError: a NumPy array of masks in another range.
    """
    if isinstance(masks, np.ndarray):
        check_mask_values(masks)
    m = masks.shape[-1]
    rows = _interpolation(rois[:, 0], rois[:, 2], frames[:, 0], frames[:, 2], size, m, samples)
    columns = _interpolation(rois[:, 1], rois[:, 3], frames[:, 1], frames[:, 3], size, m, samples)
    targets = ops.matmul(ops.matmul(rows, _coverage(masks)), ops.transpose(columns, (0, 2, 1)))
    return ops.cast(targets >= 0.5, "float32") if binary else targets


def point_targets(masks: Tensor, frames: Tensor, rois: Tensor, points: Tensor) -> Tensor:
    """Coverage of masks at points of their RoIs: bilinear between the centers of cells, 0 outside the frame.

    As in Detectron2, which samples masks of the whole image, whose cells are pixels, and does not threshold.

    Args:
        masks, frames, rois: as for `mask_targets`.
        points: (K, P, 2) yx in 0..1 of the RoIs.

    Returns:
        (K, P) float32 in 0..1.
    """
    first, last = ops.split(frames[:, None], 2, axis=-1)  # (K, 1, 2)
    cell_size = ops.maximum(last - first, 1e-6) / masks.shape[-1]
    cells = (points_in_image(rois, points) - first) / cell_size
    owners = ops.arange(ops.shape(rois)[0], dtype="int32")
    return sample_points(_coverage(masks)[..., None], cells, owners)[..., 0]


def share_inside(masks: Tensor, frames: Tensor, rois: Tensor) -> Tensor:
    """The share of the area of each mask that lies inside its RoI; of a cell that the border cuts, the part inside.

    Args:
        masks, frames, rois: as for `mask_targets`.

    Returns:
        (K,) float32 in 0..1; 0 for masks without area.
    """
    m = masks.shape[-1]
    cells, low = (frames[:, 2:] - frames[:, :2]) / m, frames[:, :2]

    def inside(axis: int) -> Tensor:
        """(K, m): of each row or column of cells."""
        first = low[:, axis, None] + ops.arange(m, dtype="float32") * cells[:, axis, None]
        last = ops.minimum(first + cells[:, axis, None], rois[:, axis + 2, None])
        length = ops.maximum(last - ops.maximum(first, rois[:, axis, None]), 0.0)
        return length / ops.maximum(cells[:, axis, None], 1e-6)

    masks = _coverage(masks)
    area = ops.matmul(ops.matmul(inside(0)[:, None], masks), inside(1)[..., None])[:, 0, 0]
    return ops.minimum(area / ops.maximum(ops.sum(masks, axis=(1, 2)), 1e-6), 1.0)


def _coverage(masks: Tensor) -> Tensor:
    """Masks of any type in float32, 0..1."""
    dtype = keras.backend.standardize_dtype(masks.dtype)
    return ops.cast(masks, "float32") / (1.0 if dtype == "bool" or "float" in dtype else 255.0)
