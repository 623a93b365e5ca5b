"""The convolutions of the RPN with a gradient that costs by the sampled anchor (TensorFlow)."""

from __future__ import annotations

from kmaskrcnn.ops.tensor import Tensor

# The gradient runs cell by cell where at most one cell in so many has one, and else as that of a convolution.
_FEW = 8


def convolve_twice(x: Tensor, kernel: Tensor, bias: Tensor, out_kernel: Tensor, out_bias: Tensor) -> Tensor:
    """conv1x1(relu(conv(x) + bias)) + out_bias, for outputs of which nearly all have a gradient of exactly 0.

    The losses of the RPN see 256 anchors of the 65,000 to 270,000 of an image. Where an output has no gradient, the
    products that make up the gradients of the map and of the kernels are 0 too: they are left out, and what is left is
    the same sum. There is no gradient of the gradient.

    Args:
        x: (B, H, W, C).
        kernel, bias: (k, k, C, D), k odd, and (D,).
        out_kernel, out_bias: (1, 1, D, A) and (A,).

    Returns:
        (B, H, W, A).
    """
    import tensorflow as tf

    def forward(x: Tensor, kernel: Tensor, bias: Tensor, out_kernel: Tensor, out_bias: Tensor) -> Tensor:
        hidden = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))
        return tf.nn.bias_add(tf.nn.conv2d(hidden, out_kernel, 1, "SAME"), out_bias)

    @tf.custom_gradient
    def run(*inputs: Tensor) -> tuple:
        outputs = forward(*inputs)

        def everywhere(upstream: Tensor) -> list[Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                again = forward(*inputs)
            return list(tape.gradient(again, inputs, upstream))

        def gradient(upstream: Tensor) -> list[Tensor]:
            cells = tf.cast(tf.where(tf.reduce_any(upstream != 0, axis=-1)), tf.int32)  # (n, 3)
            few = tf.shape(cells)[0] * _FEW <= tf.reduce_prod(tf.shape(upstream)[:3])
            return tf.cond(few, lambda: _cell_gradients(inputs, upstream, cells), lambda: everywhere(upstream))

        return outputs, gradient

    # A custom gradient takes no variables for arguments.
    return run(*(tf.convert_to_tensor(v) for v in (x, kernel, bias, out_kernel, out_bias)))


def _cell_gradients(inputs: tuple[Tensor, ...], upstream: Tensor, cells: Tensor) -> list[Tensor]:
    """Gradients of the five inputs; cells (n, 3) are the image, row and column of each output that has one."""
    import tensorflow as tf

    x, kernel, bias, out_kernel, _ = inputs
    side, _, channels, width = kernel.shape
    _, height, columns, _ = tf.unstack(tf.shape(x))
    image, y, column = tf.unstack(cells, axis=1)
    own = tf.gather_nd(upstream, cells)  # (n, A)
    # Rows of the map that each cell's window reads, -1 outside.
    shift = tf.range(side) - side // 2
    rows, places = y[:, None] + shift, column[:, None] + shift  # (n, k)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((places >= 0) & (places < columns))[:, None, :]
    read = (image[:, None, None] * height + rows[:, :, None]) * columns + places[:, None, :]
    read = tf.reshape(tf.where(inside, read, -1), (-1,))  # (n * k * k,)
    windows = tf.gather(tf.reshape(x, (-1, channels)), tf.maximum(read, 0))
    windows = tf.where(read[:, None] >= 0, windows, tf.zeros((), x.dtype))
    windows = tf.reshape(windows, (-1, side * side * channels))  # (n, k * k * C)
    matrix, out_matrix = tf.reshape(kernel, (-1, width)), tf.reshape(out_kernel, (width, -1))
    # Computed again, (n, D): the maps of the forward pass would lie in memory until now.
    hidden = tf.nn.relu(tf.nn.bias_add(tf.matmul(windows, matrix), bias))
    # 0 where the ReLU was
    own_hidden = tf.matmul(own, out_matrix, transpose_b=True) * tf.cast(hidden > 0, hidden.dtype)
    of_windows = tf.reshape(tf.matmul(own_hidden, matrix, transpose_b=True), (-1, channels))  # (n * k * k, C)
    # Windows overlap: half precision would round each sum.
    total = of_windows if x.dtype == tf.float64 else tf.cast(of_windows, tf.float32)
    total = tf.math.unsorted_segment_sum(total, read, tf.size(x) // channels)
    return [
        tf.cast(tf.reshape(total, tf.shape(x)), x.dtype),
        tf.reshape(tf.matmul(windows, own_hidden, transpose_a=True), kernel.shape),
        tf.reduce_sum(own_hidden, axis=0),
        tf.reshape(tf.matmul(hidden, own, transpose_a=True), out_kernel.shape),
        tf.reduce_sum(own, axis=0),
    ]
