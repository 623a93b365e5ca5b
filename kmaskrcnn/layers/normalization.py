"""Normalization layers and the one place where a `norm` setting becomes a layer."""

from __future__ import annotations

from typing import Any

import keras

NORMS = ("frozen_bn", "bn", "sync_bn", "gn", "none")


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class FrozenBatchNormalization(keras.layers.Layer):
    """Batch normalization whose statistics, scale and offset never change: y = x * scale + offset.

    The semantics are those of torchvision's FrozenBatchNorm2d: the four arrays are weights that are saved and loaded,
    but not trainable, and training mode does nothing. Detectors are fine-tuned with it because their batches are too
    small for statistics.

    Call: (..., C) -> (..., C), in the compute dtype; the affine pair itself is computed in float32.

    Args:
        epsilon: added to the variance before the square root; must be that of the network the weights come from.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        channels = input_shape[-1]

        def constant(name: str, initializer: str) -> keras.Variable:
            # autocast=False: half precision would round the statistics before they are combined.
            return self.add_weight(
                name=name, shape=(channels,), initializer=initializer, trainable=False, autocast=False, dtype="float32"
            )

        self.gamma = constant("gamma", "ones")
        self.beta = constant("beta", "zeros")
        self.moving_mean = constant("moving_mean", "zeros")
        self.moving_variance = constant("moving_variance", "ones")

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        scale = self.gamma * keras.ops.rsqrt(self.moving_variance + self.epsilon)
        offset = self.beta - self.moving_mean * scale
        return inputs * keras.ops.cast(scale, inputs.dtype) + keras.ops.cast(offset, inputs.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


def group_count(channels: int) -> int:
    """Groups of a GroupNormalization over `channels`: the largest divisor up to 32 that leaves a group 2 channels."""
    return max((g for g in range(1, 33) if channels % g == 0 and channels >= 2 * g), default=1)


def make_norm(norm: str, channels: int, epsilon: float = 1e-5, **kwargs: Any) -> keras.layers.Layer | None:
    """The normalization layer that a `norm` setting stands for.

    Args:
        norm: "frozen_bn", "bn", "sync_bn" (statistics over all replicas), "gn" (32 groups where the width allows, as
            in Wu & He 2018), or "none".
        channels: width of the input.
        epsilon: added to the variance.
        kwargs: name, dtype and trainable of the layer.

    Returns:
        A layer, or None for "none". Batch normalization with trainable=False runs in inference mode.

    Raises:
        ValueError: unknown norm.
    """
    if norm == "none":
        return None
    if norm == "frozen_bn":
        return FrozenBatchNormalization(epsilon=epsilon, **kwargs)
    if norm in ("bn", "sync_bn"):
        # Keras' momentum is what is kept: 0.9 is the 0.1 of torch.
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=epsilon, synchronized=norm == "sync_bn", **kwargs)
    if norm == "gn":
        return keras.layers.GroupNormalization(groups=group_count(channels), epsilon=epsilon, **kwargs)
    raise ValueError(f"norm={norm!r}: choose one of {', '.join(NORMS)}")


def apply_norm(layer: keras.layers.Layer | None, inputs: Any, training: bool | None, valid: Any = None) -> Any:
    """layer(inputs), or the inputs where there is no layer.

    `training` is handed over in words, since Keras' call context does not hold it in `stateless_call` (JAX).

    Args:
        layer: of `make_norm`.
        inputs: (K, H, W, C).
        training: whether batch normalization takes the statistics of the batch.
        valid: (K,) bool, the rows that these statistics are of (all, where none is); default: all. Statistics over
            replicas ("sync_bn") are of all rows, as Keras has no masked ones.
    """
    if layer is None:
        return inputs
    if not isinstance(layer, keras.layers.BatchNormalization):
        return layer(inputs)
    if valid is None or not training or layer.synchronized:
        return layer(inputs, training=training)
    counted = keras.ops.logical_or(valid, keras.ops.logical_not(keras.ops.any(valid)))
    return layer(inputs, training=training, mask=counted[:, None, None])
