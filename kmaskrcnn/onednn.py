"""oneDNN, which has TensorFlow's convolutions on x86-64, set up by the environment variables that TensorFlow reads."""

from __future__ import annotations

import os
import platform

from kmaskrcnn.errors import ConfigError

_FROZEN = "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"


def set_up(frozen_weights: bool) -> None:
    """Turn it on where the environment doesn't say otherwise; before TensorFlow is imported.

    TensorFlow leaves it off on processors without AVX-512, where it is faster too.

    Args:
        frozen_weights: this process changes no weights once they have been used. Each kernel is then brought into
            oneDNN's own order once, and for single images it must be for the fast convolutions of AVX2. Where weights
            do change, or convolutions run outside of a tf.function, results would be those of older weights.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if frozen_weights:
        os.environ.setdefault(_FROZEN, "1")


def check_trainable() -> None:
    """Raise ConfigError where TensorFlow takes the weights for frozen: each step would see those of the first one."""
    if os.environ.get(_FROZEN, "").lower() in ("1", "true"):
        raise ConfigError(f"{_FROZEN}={os.environ[_FROZEN]} is for programs that train nothing: unset it")
