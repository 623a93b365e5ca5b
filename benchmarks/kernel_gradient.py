"""The gradient of a 3 x 3 kernel by oneDNN and by matrix products, on one core: python -m benchmarks.kernel_gradient.

Held to AVX2: ONEDNN_MAX_CPU_ISA=AVX2 TF_ENABLE_ONEDNN_OPTS=1 before it. Prints the best of five, in milliseconds.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf

from kmaskrcnn.ops.kernel_gradient import convolve

SHAPES = ((2, 128, 256), (2, 64, 256), (2, 32, 256), (2, 16, 256))  # images, side, channels
REPEATS = 5


def milliseconds(function, x, kernel, upstream):
    """Of the gradient of the kernel alone; what nothing is fetched from is left out."""

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            outputs = function(x, kernel)
        return tape.gradient(outputs, kernel, upstream)

    run()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def main():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print("| map | oneDNN | products |\n| --- | --- | --- |")
    for images, side, channels in SHAPES:
        x, upstream = (tf.random.normal((images, side, side, channels)) for _ in range(2))
        kernel = tf.random.normal((3, 3, channels, channels))
        functions = (lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"), convolve)
        theirs, ours = (milliseconds(function, x, kernel, upstream) for function in functions)
        print(f"| {images} x {side} x {side} x {channels} | {theirs:.0f} | {ours:.0f} |", flush=True)


if __name__ == "__main__":
    main()
