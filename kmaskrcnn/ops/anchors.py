"""Anchor boxes of the RPN (Faster R-CNN, section 3.1.1; FPN, section 4.1: one size a level)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from keras import ops

from kmaskrcnn.ops.tensor import Tensor


def cell_anchors(size: float, aspect_ratios: Sequence[float], rounded: bool = False) -> np.ndarray:
    """Anchors (A, 4) yxyx of one cell, centered on 0, of area size ** 2 and the given height / width ratios.

    `rounded` takes the corners to whole pixels (half to even), as torchvision does.
    """
    ratios = np.sqrt(np.asarray(aspect_ratios, np.float64))
    height, width = size * ratios, size / ratios
    anchors = np.stack([-height, -width, height, width], axis=-1) / 2
    return (np.round(anchors) if rounded else anchors).astype(np.float32)


def grid_anchors(
    height: int | Tensor, width: int | Tensor, stride: int | tuple[int | Tensor, int | Tensor], cell: np.ndarray
) -> Tensor:
    """Anchors (H * W * A, 4) of a feature map of H x W cells: cell (i, j) is centered on (i, j) * stride pixels.

    `stride` is one number, or one for y and one for x.
    """
    stride_y, stride_x = stride if isinstance(stride, tuple) else (stride, stride)
    y = ops.cast(ops.arange(height), "float32") * ops.cast(stride_y, "float32")
    x = ops.cast(ops.arange(width), "float32") * ops.cast(stride_x, "float32")
    y, x = ops.meshgrid(y, x, indexing="ij")
    shifts = ops.stack([y, x, y, x], axis=-1)  # (H, W, 4)
    anchors = shifts[:, :, None, :] + ops.convert_to_tensor(cell)  # (H, W, A, 4)
    return ops.reshape(anchors, (-1, 4))  # (H, W, A, 4) -> (H * W * A, 4)
