"""The stacks of layers that the heads of RoIs are made of: 3x3 convolutions, and fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kmaskrcnn.layers import initializers
from kmaskrcnn.layers.normalization import apply_norm, make_norm
from kmaskrcnn.ops.tensor import Tensor

Layers = list[keras.layers.Layer]
Norms = list[keras.layers.Layer | None]


def conv_stack(widths: Sequence[int], norm: str, policy: Any, last_stride: int = 1) -> tuple[Layers, Norms]:
    """3x3 convolutions conv1, conv2, ... and what normalizes each, not built yet.

    Args:
        widths: of the convolutions.
        norm: normalization after each, which then has no bias.
        policy: dtype policy of the layers.
        last_stride: of the last convolution; that of the others is 1.
    """
    convs, norms = [], []
    for i, channels in enumerate(widths, 1):
        stride = last_stride if i == len(widths) else 1
        conv = keras.layers.Conv2D(
            channels,
            3,
            strides=stride,
            padding="same" if stride == 1 else "valid",  # padded on all sides, where "same" would not
            use_bias=norm == "none",
            kernel_initializer=initializers.kaiming_normal(),
            dtype=policy,
            name=f"conv{i}",
        )
        convs.append(conv)
        norms.append(make_norm(norm, channels, name=f"conv{i}_norm", dtype=policy))
    return convs, norms


def build_convs(convs: Layers, norms: Norms, shape: tuple) -> tuple[int, int, int]:
    """Build a `conv_stack` for inputs (K, S, S, C); returns the height, width and channels of its output."""
    _, height, width, channels = shape
    for conv, norm in zip(convs, norms, strict=True):
        conv.build((None, height, width, channels))
        height, width = (-(-side // conv.strides[0]) for side in (height, width))
        channels = conv.filters
        if norm is not None:
            norm.build((None, height, width, channels))
    return height, width, channels


def run_convs(
    convs: Layers, norms: Norms, x: Tensor, training: bool | None = None, valid: Tensor | None = None
) -> Tensor:
    """A `conv_stack` with ReLU on (K, S, S, C); `training` and `valid` as for `BoxHead`."""
    for conv, norm in zip(convs, norms, strict=True):
        if conv.padding == "valid":
            x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = ops.relu(apply_norm(norm, conv(x), training, valid))
    return x


def fc_stack(widths: Sequence[int], policy: Any) -> Layers:
    """Fully connected layers fc1, fc2, ... with ReLU, not built yet."""
    return [
        keras.layers.Dense(
            units,
            activation="relu",
            kernel_initializer=initializers.lecun_uniform(),
            dtype=policy,
            name=f"fc{i}",
        )
        for i, units in enumerate(widths, 1)
    ]


def build_fcs(fcs: Layers, units: int) -> int:
    """Build layers of which each reads the one before, the first `units` numbers; returns the units of the last."""
    for fc in fcs:
        fc.build((None, units))
        units = fc.units
    return units
