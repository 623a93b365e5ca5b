"""A convolution whose kernel's gradient is a matrix product for each of its cells (TensorFlow on the CPU)."""

from __future__ import annotations

import functools

import keras

from kmaskrcnn.ops.tensor import Tensor


@functools.cache
def _on_cpu() -> bool:
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


def products_pay(x: Tensor) -> bool:
    """Whether `convolve` is for this map: float32, on a CPU.

    oneDNN's own gradient of a 3 x 3 kernel slows down on large maps: with 256 channels of 2 x 128 x 128 cells it takes
    2.8 times as long as the products on a core with AVX2, 1.3 times with AVX-512; on the smallest maps they are equal.
    """
    return keras.backend.standardize_dtype(x.dtype) == "float32" and _on_cpu()


def convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """conv(x) with stride 1 and zeros around the map, whose gradients are those of the convolution but for rounding.

    There is no gradient of the gradient.

    Args:
        x: (B, H, W, C).
        kernel: (k, k, C, D), k odd.

    Returns:
        (B, H, W, D).
    """
    import tensorflow as tf

    @tf.custom_gradient
    def run(x: Tensor, kernel: Tensor) -> tuple:
        def gradient(upstream: Tensor) -> list[Tensor]:
            of_x = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=upstream, strides=[1] * 4, padding="SAME"
            )
            return [of_x, _of_kernel(x, upstream, kernel.shape[0])]

        return tf.nn.conv2d(x, kernel, 1, "SAME"), gradient

    # A custom gradient takes no variables for arguments.
    return run(tf.convert_to_tensor(x), tf.convert_to_tensor(kernel))


def _of_kernel(x: Tensor, upstream: Tensor, side: int) -> Tensor:
    """The sum over all cells of x at each place of the window, times what comes from above: (k, k, C, D).

    With borders that make both maps of one size, a place of the window is a distance between rows of the two as
    matrices, so that no window is copied; what lies between rows and images meets the zeros of the border.
    """
    import tensorflow as tf

    before, border = side // 2, side - 1
    wide = tf.pad(x, [[0, 0], [before, border - before], [before, border - before], [0, 0]])
    upstream = tf.pad(upstream, [[0, 0], [0, border], [0, border], [0, 0]])
    columns = tf.shape(wide)[2]
    wide, upstream = (tf.reshape(v, (-1, v.shape[-1])) for v in (wide, upstream))
    cells = tf.shape(wide)[0]
    products = []
    for row in range(side):
        for column in range(side):
            distance = row * columns + column
            read = tf.slice(wide, [distance, 0], [cells - distance, -1])
            products.append(tf.matmul(read, upstream[: cells - distance], transpose_a=True))
    return tf.reshape(tf.stack(products), (side, side, wide.shape[-1], upstream.shape[-1]))
