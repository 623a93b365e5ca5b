"""Rows in chunks: the same result, and never more rows at a time than were asked for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn.ops.chunks import in_chunks


@pytest.mark.parametrize("rows", [0, 1, 5, 6, 11, 12])
def test_chunks_give_what_all_rows_give_at_once(rows):
    x = np.random.default_rng(0).random((rows, 3)).astype(np.float32)
    seen = []

    def double(part, numbers):
        tf.numpy_function(lambda n: seen.append(int(n)), [tf.shape(part)[0]], [])
        return part * 2.0, tf.cast(numbers, tf.float32)[:, None] + part[:, :2]

    signature = keras.KerasTensor((3,), "float32"), keras.KerasTensor((2,), "float32")
    run = tf.function(
        lambda x, n: in_chunks(double, (x, n), 5, signature),
        [tf.TensorSpec((None, 3)), tf.TensorSpec((None,), tf.int32)],
        autograph=False,
    )
    doubled, summed = run(x, np.arange(rows, dtype=np.int32))
    np.testing.assert_array_equal(doubled, 2 * x)
    np.testing.assert_array_equal(summed, np.arange(rows, dtype=np.float32)[:, None] + x[:, :2])
    assert max(seen) <= 5 and len(seen) == max(1, -(-rows // 5))
