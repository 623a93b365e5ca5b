"""The mask head: a small fully convolutional network on each RoI (He et al. 2017, section 3 and figure 4 right)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kmaskrcnn.layers import initializers
from kmaskrcnn.layers.stacks import build_convs, conv_stack, run_convs
from kmaskrcnn.ops.tensor import Tensor


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class MaskHead(keras.layers.Layer):
    """3x3 convolutions with ReLU, a 2x2 stride-2 deconvolution with ReLU, a 1x1 convolution to one mask a class.

    Class-agnostic, there is one mask for all classes, and `classes` is not read.

    Call with pooled features (K, S, S, C) and the class of each RoI (K,) in 0..num_classes; returns the logits
    (K, 2 * S, 2 * S), float32, of that class's mask alone: no other class's mask is ever used, neither by the loss
    nor by inference, so none is computed. `valid` (K,) is as for `BoxHead`.

    Args:
        num_classes: object classes, background not counted (its output, row 0, exists as in the published weights).
        conv_channels: widths of the 3x3 convolutions; the deconvolution is as wide as the last.
        norm: normalization after the 3x3 convolutions, which then have no bias.
        class_agnostic: one mask for all classes.
    """

    def __init__(
        self,
        num_classes: int,
        conv_channels: Sequence[int] = (256, 256, 256, 256),
        norm: str = "none",
        class_agnostic: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_classes, self.norm, self.conv_channels = num_classes, norm, tuple(conv_channels)
        self.class_agnostic = class_agnostic
        self.convs, self.norms = conv_stack(self.conv_channels, norm, self.dtype_policy)

    def build(self, input_shape: tuple) -> None:
        height, width, channels = build_convs(self.convs, self.norms, input_shape)
        self.deconv = keras.layers.Conv2DTranspose(
            channels,
            2,
            strides=2,
            activation="relu",
            kernel_initializer=initializers.kaiming_normal(),
            dtype=self.dtype_policy,
            name="deconv",
        )
        self.deconv.build((None, height, width, channels))
        # The 1x1 convolution, (class, C): a row a class, so that a RoI takes its class's row.
        masks = 1 if self.class_agnostic else self.num_classes + 1
        self.logits_kernel = self.add_weight(
            name="logits_kernel",
            shape=(masks, channels),
            initializer=initializers.normal(0.001),
        )
        self.logits_bias = self.add_weight(name="logits_bias", shape=(masks,), initializer="zeros")
        self.built = True

    def call(
        self, features: Tensor, classes: Tensor, training: bool | None = None, valid: Tensor | None = None
    ) -> Tensor:
        features = run_convs(self.convs, self.norms, features, training, valid)
        _, height, width, channels = features.shape
        features = self._deconvolve(ops.reshape(features, (-1, channels)))  # (K * SS, C) -> (K * SS, 4 * C)
        features = ops.reshape(features, (-1, height * width * 4, self.deconv.filters))  # -> (K, SS4, C)
        classes = ops.zeros_like(classes) if self.class_agnostic else classes
        kernel = ops.cast(ops.take(self.logits_kernel, classes, axis=0), features.dtype)
        logits = ops.matmul(features, kernel[:, :, None])  # (K, SS4, C) x (K, C, 1) -> (K, SS4, 1)
        logits = ops.cast(ops.reshape(logits, (-1, height, width, 2, 2)), "float32")
        logits = ops.reshape(ops.transpose(logits, (0, 1, 3, 2, 4)), (-1, 2 * height, 2 * width))  # -> (K, 2S, 2S)
        return logits + ops.cast(ops.take(self.logits_bias, classes, axis=0), "float32")[:, None, None]

    def _deconvolve(self, cells: Tensor) -> Tensor:
        """The 2 x 2 outputs that the deconvolution makes of each cell: (N, C) -> (N, 2 * 2 * filters).

        At stride 2 they do not overlap, so it is a matrix product, which runs faster than a transposed convolution;
        the outputs are put in their places once they are logits, when there is one number where there were `filters`.
        """
        kernel = ops.transpose(self.deconv.kernel, (3, 0, 1, 2))  # (2, 2, filters, C) -> (C, 2, 2, filters)
        kernel = ops.reshape(kernel, (kernel.shape[0], -1))
        return ops.relu(ops.add(ops.matmul(cells, kernel), ops.tile(self.deconv.bias, (4,))))

    def get_config(self) -> dict:
        config = {
            "num_classes": self.num_classes,
            "conv_channels": self.conv_channels,
            "norm": self.norm,
            "class_agnostic": self.class_agnostic,
        }
        return {**super().get_config(), **config}
