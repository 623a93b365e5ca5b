"""PyTorch's arrays of weights -> those of Keras."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def same(x: np.ndarray) -> np.ndarray:
    return x


def to_conv(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out); a deconvolution has (in, out, h, w)


def to_depthwise(kernel: np.ndarray) -> np.ndarray:
    return kernel.transpose(2, 3, 0, 1)  # (channels, 1, h, w) -> (h, w, channels, 1)


def to_dense(kernel: np.ndarray) -> np.ndarray:
    return kernel.T  # (out, in) -> (in, out)


def flattened(side: int) -> Callable[[np.ndarray], np.ndarray]:
    """Of the first fully connected layer, over (C, H, W) in torch and (H, W, C) here, H = W = side."""

    def apply(kernel: np.ndarray) -> np.ndarray:
        out, units = kernel.shape
        kernel = kernel.reshape(out, units // (side * side), side, side)  # (O, CHW) -> (O, C, H, W)
        return kernel.transpose(2, 3, 1, 0).reshape(units, out)  # (O, C, H, W) -> (H, W, C, O) -> (HWC, O)

    return apply
