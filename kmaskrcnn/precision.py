"""Which precision pays on the device at hand, measured."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import tensorflow as tf

AUTO, FLOAT32, BFLOAT16 = "auto", "float32", "mixed_bfloat16"
# bfloat16 rounds to three decimal digits: it must be faster by more than a measurement is off.
_WORTH = 1.2
_SECONDS, _LEAST_RUNS = 0.15, 2


def resolve_dtype(dtype: str) -> str:
    """The precision for a setting: itself, and for "auto" mixed_bfloat16 where it is faster, else float32."""
    if dtype != AUTO:
        return dtype
    return BFLOAT16 if bfloat16_speed() >= _WORTH else FLOAT32


@functools.cache
def bfloat16_speed() -> float:
    """How many times as fast bfloat16 is as float32 on the default device, below 1 where it is slower.

    A training step of a few layers as a detector has them is timed once in a process, in about a second: on processors
    without units for bfloat16 it is the gradients of convolutions that are slow.
    """
    return _seconds(tf.float32) / _seconds(tf.bfloat16)


def slow_bfloat16(dtype: str) -> str:
    """A line of warning where `dtype` is mixed_bfloat16 and the device is slower with it; empty otherwise."""
    if dtype != BFLOAT16 or (speed := bfloat16_speed()) >= 1:
        return ""
    return (
        f"warning: bfloat16 was {1 / speed:.1f} times slower than float32 just now, as on processors without units for "
        "it; with dtype=auto it is only used where it is faster"
    )


def _seconds(dtype: tf.DType) -> float:
    """Seconds of a forward and backward pass through a few layers, the best of several runs."""
    images, kernel = tf.ones((2, 32, 32, 64), dtype), tf.ones((3, 3, 64, 64), dtype)
    depthwise, dense = tf.ones((3, 3, 64, 1), dtype), tf.ones((4096, 256), dtype)

    @tf.function
    def step(*values: tf.Tensor) -> tf.Tensor:
        images, kernel, depthwise, dense = values
        with tf.GradientTape() as tape:
            tape.watch(values)
            x = tf.nn.relu(tf.nn.conv2d(images, kernel, 1, "SAME"))
            x = tf.nn.relu(tf.nn.depthwise_conv2d(x, depthwise, (1, 1, 1, 1), "SAME"))
            total = tf.reduce_sum(tf.cast(tf.matmul(tf.reshape(x, (-1, 4096)), dense), tf.float32))
        return tf.add_n([tf.reduce_sum(tf.cast(g, tf.float32)) for g in tape.gradient(total, values)])

    # .numpy() waits for the device.
    return _best(lambda: step(images, kernel, depthwise, dense).numpy())


def _best(run: Callable[[], None]) -> float:
    run()  # makes kernels and plans
    seconds: list[float] = []
    while len(seconds) < _LEAST_RUNS or sum(seconds) < _SECONDS:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
