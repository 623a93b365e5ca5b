import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn.ops.sparse_gradient import convolve_twice


def plain(x, kernel, bias, out_kernel, out_bias):
    hidden = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias))
    return tf.nn.bias_add(tf.nn.conv2d(hidden, out_kernel, 1, "SAME"), out_bias)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("count", [0, 1, 9, 80])  # 80 of 126 are not few
def test_outputs_and_gradients_equal_those_of_convolutions(count, in_graph):
    """In float64, on cells at every border and in the corners, neighbors among them."""
    rng = np.random.default_rng(count)
    shapes = [(2, 7, 9, 4), (3, 3, 4, 5), (5,), (1, 1, 5, 6), (6,)]
    inputs = [tf.constant(rng.normal(size=shape)) for shape in shapes]
    upstream = np.zeros((2, 7, 9, 6))
    corners = np.array([0, 8, 54, 62, 63, 64, 73, 125, 30])
    cells = corners[:count] if count <= 9 else rng.permutation(126)[:count]
    upstream.reshape(126, 6)[cells] = rng.normal(size=(len(cells), 6))

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(*inputs)
        return outputs, tape.gradient(outputs, inputs, tf.constant(upstream))

    run = tf.function(gradients) if in_graph else gradients
    (outputs, own), (expected, reference) = run(convolve_twice), run(plain)
    np.testing.assert_array_equal(outputs, expected)
    for ours, theirs in zip(own, reference, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert count == 0 or np.abs(own[0]).max() > 0.1


def test_half_precision_and_unknown_sizes():
    rng = np.random.default_rng(0)
    shapes = [(1, 16, 16, 8), (3, 3, 8, 8), (8,), (1, 1, 8, 3), (3,)]
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    upstream = np.zeros((1, 16, 16, 3), np.float32)
    upstream[0, 4:7, 5:8] = rng.normal(size=(3, 3, 3))

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 8), tf.bfloat16)])
    def half(x):
        kernels = [tf.cast(v, tf.bfloat16) for v in inputs[1:]]
        with tf.GradientTape() as tape:
            tape.watch([x, *kernels])
            outputs = convolve_twice(x, *kernels)
        return tape.gradient(outputs, [x, *kernels], tf.cast(upstream, tf.bfloat16))

    values = [tf.constant(v) for v in inputs]
    with tf.GradientTape() as tape:
        tape.watch(values)
        outputs = plain(*values)
    for ours, theirs in zip(
        half(tf.cast(inputs[0], tf.bfloat16)), tape.gradient(outputs, values, upstream), strict=True
    ):
        assert ours.dtype == tf.bfloat16
        np.testing.assert_allclose(tf.cast(ours, tf.float32), theirs, atol=0.03 * np.abs(theirs).max())
