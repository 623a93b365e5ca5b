"""A function of many rows, some rows at a time, so that its memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmaskrcnn.ops.tensor import Tensor


def in_chunks(function: Callable[..., Any], inputs: tuple[Tensor, ...], most: int, signature: Any) -> Any:
    """`function(*inputs)` on at most `most` rows at a time, one chunk after the other. TensorFlow only.

    Args:
        function: takes tensors of K rows and returns one or several of as many rows, each made of its row alone.
        inputs: tensors of the same number of rows, which may be 0.
        most: rows at a time; the chunks are of about equal size, so few rows are filled up with zeros.
        signature: shape and dtype of a row of each result: a keras.KerasTensor, or a tuple of them.
    """
    import tensorflow as tf

    rows = tf.shape(inputs[0])[0]
    chunks = tf.maximum(-(-rows // most), 1)
    each = -(-rows // chunks)

    def split(x: tf.Tensor) -> tf.Tensor:
        x = tf.pad(x, [(0, chunks * each - rows)] + [(0, 0)] * (x.shape.rank - 1))
        return tf.reshape(x, (chunks, each, *x.shape[1:]))

    results = tf.map_fn(
        lambda parts: function(*parts),
        tuple(map(split, inputs)),
        parallel_iterations=1,
        fn_output_signature=tf.nest.map_structure(
            lambda spec: tf.TensorSpec((None, *spec.shape), spec.dtype), signature
        ),
    )
    return tf.nest.map_structure(lambda x: tf.reshape(x, (chunks * each, *x.shape[2:]))[:rows], results)
