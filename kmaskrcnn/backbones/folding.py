"""Batch normalization taken up by the convolution before it, wherever its statistics are fixed."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskrcnn.layers.normalization import FrozenBatchNormalization
from kmaskrcnn.ops.tensor import Tensor

_NORMS = (FrozenBatchNormalization, keras.layers.BatchNormalization)
_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


class FoldedConvolution(keras.layers.Layer):
    """norm(conv(x)) as one convolution with a bias, of the weights that the two layers have at the time.

    Scaling a kernel costs next to nothing beside scaling the maps it makes. Where the normalization takes its
    statistics from the batch, in training, the two layers run one after the other.

    Args:
        conv: a Conv2D or DepthwiseConv2D without bias and activation.
        norm: a FrozenBatchNormalization or BatchNormalization.
    """

    def __init__(self, conv: keras.layers.Layer, norm: keras.layers.Layer):
        # The scale is applied in float32: half precision would round the kernel twice.
        super().__init__(name=f"{conv.name}_folded", dtype=conv.dtype_policy, autocast=False)
        self.conv, self.norm = conv, norm
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        conv, norm = self.conv, self.norm
        if training and norm.trainable and isinstance(norm, keras.layers.BatchNormalization):
            return norm(conv(inputs), training=True)
        scale = norm.gamma * ops.rsqrt(norm.moving_variance + norm.epsilon)
        offset = ops.cast(norm.beta - norm.moving_mean * scale, self.compute_dtype)
        depthwise = isinstance(conv, keras.layers.DepthwiseConv2D)
        scale = ops.cast(scale[:, None] if depthwise else scale, conv.kernel.dtype)
        inputs = ops.cast(inputs, self.compute_dtype)
        if training and conv.trainable and not depthwise and keras.backend.backend() == "tensorflow":
            outputs = convolve_scaled(inputs, conv.kernel, scale, conv.strides, conv.padding)
            return ops.add(outputs, offset)
        kernel = ops.cast(conv.kernel * scale, self.compute_dtype)
        convolve = ops.depthwise_conv if depthwise else ops.conv
        return ops.add(convolve(inputs, kernel, conv.strides, conv.padding), offset)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.conv.compute_output_shape(input_shape)


def convolve_scaled(x: Tensor, kernel: Tensor, scale: Tensor, strides: tuple[int, int], padding: str) -> Tensor:
    """conv(x, kernel * scale), whose gradients multiply the kernel again instead of keeping the product (TensorFlow).

    The products of ResNet-50 are 0.1 GB, and one multiplication. There is no gradient of the gradient.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, C, D).
        scale: (D,), of the kernel's type.
        strides, padding: those of a Keras layer.

    Returns:
        (B, H, W, D), of the type of x.
    """
    import tensorflow as tf

    options = {"strides": (1, *strides, 1), "padding": padding.upper()}

    @tf.custom_gradient
    def run(x: Tensor, kernel: Tensor, scale: Tensor) -> tuple:
        def product() -> Tensor:
            return tf.cast(kernel * scale, x.dtype)

        def gradient(upstream: Tensor) -> list[Tensor]:
            with tf.control_dependencies([upstream]):  # or it would be the same product, and be kept
                again = product()
            of_x = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x), filter=again, out_backprop=upstream, **options
            )
            of_product = tf.raw_ops.Conv2DBackpropFilter(
                input=x, filter_sizes=tf.shape(kernel), out_backprop=upstream, **options
            )
            of_product = tf.cast(of_product, kernel.dtype)
            return [of_x, of_product * scale, tf.reduce_sum(of_product * kernel, (0, 1, 2))]

        return tf.nn.conv2d(x, product(), **options), gradient

    # A custom gradient takes no variables for arguments.
    return run(x, tf.convert_to_tensor(kernel), scale)


def fold_normalization(backbone: keras.Model) -> keras.Model:
    """The same network on the same weights, in which every batch normalization is part of a convolution.

    Training, saving and loading go on with the layers of `backbone`, whose weights may change at any time.
    """
    norm_of = {}
    for layer in backbone.layers:
        if isinstance(layer, _NORMS):
            producer = layer.input._keras_history.operation
            if isinstance(producer, _CONVOLUTIONS) and not producer.use_bias:
                norm_of[producer] = layer
    folded = set(norm_of.values())

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Tensor:
        if layer in folded:
            return args[0]
        if layer in norm_of:
            return FoldedConvolution(layer, norm_of[layer])(*args, **kwargs)
        return layer(*args, **kwargs)

    def share(layer: keras.layers.Layer | keras.Operation) -> keras.layers.Layer | keras.Operation:
        # Keras 3.8 also hands over the casts of mixed precision, which are operations and no layers.
        if not isinstance(layer, keras.layers.Layer) or layer.weights:
            return layer
        return type(layer).from_config(layer.get_config())

    return keras.models.clone_model(backbone, clone_function=share, call_function=call)
