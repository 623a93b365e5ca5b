"""The distributions that weights start from, and the way to leave them out where a file's weights follow."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import keras

_weights_follow = contextvars.ContextVar("weights_follow", default=False)


@contextlib.contextmanager
def weights_follow() -> Iterator[None]:
    """Layers that are made within start from zeros: drawing the weights of a ResNet-50 takes a second."""
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def _unless_weights_follow(initializer: keras.initializers.Initializer) -> keras.initializers.Initializer:
    return keras.initializers.Zeros() if _weights_follow.get() else initializer


def kaiming_normal() -> keras.initializers.Initializer:
    """For layers before a ReLU (He et al. 2015): torch's `kaiming_normal_(mode="fan_out")`."""
    return _unless_weights_follow(keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"))


def lecun_uniform() -> keras.initializers.Initializer:
    """From the number of inputs: torch's `kaiming_uniform_(a=1)`, Caffe2's XavierFill."""
    return _unless_weights_follow(keras.initializers.LecunUniform())


def normal(stddev: float) -> keras.initializers.Initializer:
    """Of mean 0."""
    return _unless_weights_follow(keras.initializers.RandomNormal(stddev=stddev))
