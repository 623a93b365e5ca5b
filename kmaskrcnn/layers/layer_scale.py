"""A learned factor for each channel of a residual branch."""

from __future__ import annotations

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class LayerScale(keras.layers.Layer):
    """y = x * gamma, gamma one number for each channel (Touvron et al. 2021, "Going deeper with Image Transformers").

    Call: (..., C) -> (..., C), in the compute dtype.

    Args:
        initial_value: of gamma; small, so that a residual network begins near the identity.
    """

    def __init__(self, initial_value: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.initial_value = initial_value

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        initializer = keras.initializers.Constant(self.initial_value)
        self.gamma = self.add_weight(name="gamma", shape=(input_shape[-1],), initializer=initializer)

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return inputs * self.gamma

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "initial_value": self.initial_value}
