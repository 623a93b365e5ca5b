"""What the backbones share: convolutions padded as in torch, normalizations, and the freezing of stages."""

from __future__ import annotations

import keras

from kmaskrcnn.layers import initializers
from kmaskrcnn.layers.layer_scale import LayerScale
from kmaskrcnn.layers.normalization import make_norm

Graph = tuple[keras.KerasTensor, dict[str, keras.KerasTensor]]  # inputs and outputs of a functional model


class BackboneBuilder:
    """Adds layers to a functional backbone with one norm, epsilon, dtype and number of frozen stages.

    Layer names are the original PyTorch parameter names with "_" for "."; weights are loaded by these names.

    Attributes:
        stage: the stage that the next layers belong to: 1 the stem, 2 what ends in C2, ... 5 what ends in C5.
            Layers of stages up to `frozen_stages` are made with trainable=False.
    """

    def __init__(self, norm: str, epsilon: float, frozen_stages: int, dtype: str | None) -> None:
        self.stage = 1
        self._norm = norm
        self._epsilon = epsilon
        self._frozen_stages = frozen_stages
        self._dtype = dtype

    def _options(self, name: str) -> dict:
        return {"name": name, "dtype": self._dtype, "trainable": self.stage > self._frozen_stages}

    def _pad(self, x: keras.KerasTensor, kernel_size: int, stride: int, name: str) -> tuple[keras.KerasTensor, str]:
        """Symmetric zero padding; "same" is that only at stride 1 (at stride 2 it pads bottom and right more)."""
        if stride == 1 or kernel_size == 1:
            return x, "same"
        return self.zero_pad(x, kernel_size // 2, f"{name}_pad"), "valid"

    def zero_pad(self, x: keras.KerasTensor, pixels: int, name: str) -> keras.KerasTensor:
        """(B, H, W, C) -> (B, H + 2 pixels, W + 2 pixels, C)."""
        return keras.layers.ZeroPadding2D(pixels, **self._options(name))(x)

    def conv(
        self,
        x: keras.KerasTensor,
        filters: int,
        kernel_size: int,
        stride: int,
        name: str,
        tf_padding: bool = False,
        bias: bool = False,
    ) -> keras.KerasTensor:
        """A convolution, by default without bias; `tf_padding` is TensorFlow's "same" at every stride."""
        x, padding = (x, "same") if tf_padding else self._pad(x, kernel_size, stride, name)
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=stride,
            padding=padding,
            use_bias=bias,
            kernel_initializer=initializers.kaiming_normal(),
            **self._options(name),
        )(x)

    def patches(self, x: keras.KerasTensor, filters: int, size: int, name: str) -> keras.KerasTensor:
        """A convolution with bias of patches side by side: (B, H, W, C) -> (B, H / size, W / size, filters)."""
        return keras.layers.Conv2D(
            filters, size, strides=size, kernel_initializer=initializers.kaiming_normal(), **self._options(name)
        )(x)

    def depthwise(
        self,
        x: keras.KerasTensor,
        kernel_size: int,
        stride: int,
        name: str,
        tf_padding: bool = False,
        bias: bool = False,
    ) -> keras.KerasTensor:
        """A depthwise convolution, by default without bias."""
        x, padding = (x, "same") if tf_padding else self._pad(x, kernel_size, stride, name)
        # Fan-out of one channel, as in TensorFlow's MobileNets; torch counts all channels and starts near zero.
        return keras.layers.DepthwiseConv2D(
            kernel_size,
            strides=stride,
            padding=padding,
            use_bias=bias,
            depthwise_initializer=initializers.kaiming_normal(),
            **self._options(name),
        )(x)

    def norm(self, x: keras.KerasTensor, name: str, activation: str | None = None) -> keras.KerasTensor:
        """The chosen normalization, then the activation if one is named."""
        layer = make_norm(self._norm, x.shape[-1], self._epsilon, **self._options(name))
        assert layer is not None  # build_backbone takes no norm "none"
        x = layer(x)
        return x if activation is None else self.activation(x, activation, f"{name}_{activation}")

    def layer_norm(self, x: keras.KerasTensor, name: str, affine: bool = True) -> keras.KerasTensor:
        """Layer normalization over the channels of each cell, with or without scale and offset."""
        options = {"epsilon": self._epsilon, "center": affine, "scale": affine, **self._options(name)}
        return keras.layers.LayerNormalization(**options)(x)

    def layer_scale(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """Each channel times a learned factor (Touvron et al. 2021)."""
        return LayerScale(**self._options(name))(x)

    def activation(self, x: keras.KerasTensor, activation: str, name: str) -> keras.KerasTensor:
        """An activation by its Keras name."""
        return keras.layers.Activation(activation, **self._options(name))(x)

    def add(self, x: keras.KerasTensor, y: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """x + y."""
        return keras.layers.Add(**self._options(name))([x, y])

    def squeeze_excite(self, x: keras.KerasTensor, width: int, name: str) -> keras.KerasTensor:
        """Each channel times a factor in 0..1 that is computed from the means of all channels (Hu et al. 2018).

        As in MobileNetV3: a hidden layer of `width` with ReLU, and a hard sigmoid.
        """
        # Means over all of the map that is given, its padding too.
        gate = keras.layers.GlobalAveragePooling2D(keepdims=True, **self._options(f"{name}_pool"))(x)
        gate = self.activation(self.conv(gate, width, 1, 1, f"{name}_conv_reduce", bias=True), "relu", f"{name}_relu")
        gate = self.conv(gate, x.shape[-1], 1, 1, f"{name}_conv_expand", bias=True)
        gate = self.activation(gate, "hard_sigmoid", f"{name}_gate")
        return keras.layers.Multiply(**self._options(f"{name}_scale"))([x, gate])

    def max_pool(self, x: keras.KerasTensor, name: str, tf_padding: bool = False) -> keras.KerasTensor:
        """3x3 max-pooling of stride 2 of values of at least 0 (after a ReLU), with padding 1 or TensorFlow's."""
        if tf_padding:
            return keras.layers.MaxPooling2D(3, strides=2, padding="same", **self._options(name))(x)
        # Among values of at least 0, padding with 0 gives the same maximum as torch's padding with -inf.
        x = self.zero_pad(x, 1, f"{name}_pad")
        return keras.layers.MaxPooling2D(3, strides=2, padding="valid", **self._options(name))(x)

    def average_pool(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        """2x2 average pooling of stride 2, of maps with even sides."""
        return keras.layers.AveragePooling2D(2, **self._options(name))(x)
