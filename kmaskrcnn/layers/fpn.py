"""Feature pyramid network (Lin et al. 2017), as Mask R-CNN uses it."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskrcnn.layers import initializers
from kmaskrcnn.layers.normalization import NORMS, apply_norm, make_norm
from kmaskrcnn.ops.kernel_gradient import convolve, products_pay

_LEVELS = (2, 3, 4, 5)


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class FPN(keras.layers.Layer):
    """{C2..C5} -> {P2..P6}: lateral 1x1 convolutions, a top-down path of nearest x2 and add, 3x3 output convolutions.

    P6 takes every second pixel of P5 (a max-pool of side 1 and stride 2) and feeds only the RPN. Same semantics as
    Detectron2's FPN with LastLevelMaxPool and torchvision's FeaturePyramidNetwork.

    Call: dict of "C2".."C5", each (B, H / stride, W / stride, any width) with strides 4, 8, 16, 32 and H, W multiples
    of 32 -> dict of "P2".."P6", each (B, H / stride, W / stride, channels), P6 at stride 64 (rounded up).

    Args:
        channels: width of every output.
        norm: normalization after each convolution ("none", "bn", "sync_bn", "gn", "frozen_bn"); with one, the
            convolutions have no bias.

    Raises:
        ValueError: unknown norm.
    """

    def __init__(self, channels: int = 256, norm: str = "none", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r}: choose one of {', '.join(NORMS)}")
        self.channels = channels
        self.norm = norm
        self.lateral_convs = [self._conv(1, f"lateral{level}") for level in _LEVELS]
        self.output_convs = [self._conv(3, f"output{level}") for level in _LEVELS]
        self.lateral_norms = [self._norm(f"lateral{level}_norm") for level in _LEVELS]
        self.output_norms = [self._norm(f"output{level}_norm") for level in _LEVELS]

    def _conv(self, kernel_size: int, name: str) -> keras.layers.Layer:
        return keras.layers.Conv2D(
            self.channels,
            kernel_size,
            padding="same",
            use_bias=self.norm == "none",
            # Uniform in +-sqrt(3 / fan_in): what Caffe2 calls Xavier, and torch kaiming_uniform with a=1.
            kernel_initializer=initializers.lecun_uniform(),
            name=name,
            dtype=self.dtype_policy,
        )

    def _norm(self, name: str) -> keras.layers.Layer | None:
        return make_norm(self.norm, self.channels, name=name, dtype=self.dtype_policy)

    def build(self, input_shape: dict[str, tuple[int | None, ...]]) -> None:
        for index, level in enumerate(_LEVELS):
            shape = tuple(input_shape[f"C{level}"])
            self.lateral_convs[index].build(shape)
            shape = (*shape[:-1], self.channels)
            self.output_convs[index].build(shape)
            for norm in (self.lateral_norms[index], self.output_norms[index]):
                if norm is not None:
                    norm.build(shape)

    def call(self, inputs: dict[str, keras.KerasTensor], training: bool | None = None) -> dict[str, keras.KerasTensor]:
        outputs = {}
        top = None
        for index in reversed(range(len(_LEVELS))):
            level = _LEVELS[index]
            lateral = self.lateral_convs[index](inputs[f"C{level}"])
            lateral = apply_norm(self.lateral_norms[index], lateral, training)
            top = lateral if top is None else _add_upsampled(lateral, top)
            outputs[f"P{level}"] = apply_norm(self.output_norms[index], self._output(index, top, training), training)
        outputs["P6"] = outputs["P5"][:, ::2, ::2]
        return {f"P{level}": outputs[f"P{level}"] for level in (*_LEVELS, 6)}

    def _output(self, index: int, x: keras.KerasTensor, training: bool | None) -> keras.KerasTensor:
        """The 3x3 convolution of a level."""
        conv = self.output_convs[index]
        if not (training and products_pay(x)):
            return conv(x)
        x = convolve(x, conv.kernel)
        return ops.add(x, conv.bias) if conv.use_bias else x

    def compute_output_shape(self, input_shape: dict[str, tuple[int | None, ...]]) -> dict[str, tuple[int | None, ...]]:
        shapes = {f"P{level}": (*input_shape[f"C{level}"][:-1], self.channels) for level in _LEVELS}
        batch, height, width, _ = shapes["P5"]
        half = [None if side is None else (side + 1) // 2 for side in (height, width)]
        return {**shapes, "P6": (batch, *half, self.channels)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "channels": self.channels, "norm": self.norm}


def _add_upsampled(fine: keras.KerasTensor, coarse: keras.KerasTensor) -> keras.KerasTensor:
    """fine (B, 2H, 2W, C) + coarse (B, H, W, C) with every pixel of coarse repeated 2 x 2 (nearest).

    Columns are doubled in a copy of half the size, rows by broadcasting.
    """
    batch, height, width, channels = ops.shape(coarse)
    rows = ops.reshape(ops.concatenate([coarse, coarse], axis=-1), (batch, height, 1, 2 * width * channels))
    fine = ops.reshape(fine, (batch, height, 2, 2 * width * channels))
    return ops.reshape(fine + rows, (batch, 2 * height, 2 * width, channels))
