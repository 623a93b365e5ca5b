"""Ground-truth masks as a RoI sees them (Mask R-CNN, section 3: the M x M target of each positive RoI)."""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any


def _interpolation(start: Tensor, stop: Tensor, frame_start: Tensor, frame_stop: Tensor, out: int, m: int) -> Tensor:
    """(K, out, m) matrices that average two bilinear samples a bin of [start, stop) from cells of the frame."""
    points = (ops.arange(2 * out, dtype="float32") + 0.5) / (2 * out)
    position = start[:, None] + points * (stop - start)[:, None]  # (K, 2 * out), image pixels
    cell = (position - frame_start[:, None]) / ops.maximum(frame_stop - frame_start, 1e-6)[:, None] * m - 0.5
    # Outside the frame there is no object: the hat function fades to 0 within one cell, as in the paste.
    weights = ops.maximum(1.0 - ops.abs(cell[:, :, None] - ops.arange(m, dtype="float32")), 0.0)
    return ops.mean(ops.reshape(weights, (-1, out, 2, m)), axis=2)  # (K, 2 * out, m) -> (K, out, 2, m) -> (K, out, m)


def mask_targets(masks: Tensor, frames: Tensor, rois: Tensor, size: int, binary: bool = True) -> Tensor:
    """Masks cut out along RoIs and resampled without rounding to size x size.

    Args:
        masks: (K, m, m) 0..255, the object's coverage of each cell of its frame.
        frames: (K, 4) yxyx pixels, the rectangle that the m x m cells tile.
        rois: (K, 4) yxyx pixels.
        size: side of the target.
        binary: threshold the target at one half (Detectron2); else leave it soft (torchvision).

    Returns:
        (K, size, size) float32 in 0..1.
    """
    m = masks.shape[-1]
    rows = _interpolation(rois[:, 0], rois[:, 2], frames[:, 0], frames[:, 2], size, m)
    columns = _interpolation(rois[:, 1], rois[:, 3], frames[:, 1], frames[:, 3], size, m)
    masks = ops.cast(masks, "float32") / 255.0
    targets = ops.matmul(ops.matmul(rows, masks), ops.transpose(columns, (0, 2, 1)))
    return ops.cast(targets >= 0.5, "float32") if binary else targets
