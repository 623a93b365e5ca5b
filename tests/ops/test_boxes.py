import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from kmaskrcnn.ops import boxes as box_ops

# In sixteenths of a pixel: areas of tiny boxes would pass below the smallest float32, where IoU is 0 by rounding.
coordinate = st.integers(-800, 2400).map(lambda sixteenths: sixteenths / 16)
box_rows = st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=0, max_size=6)


def as_boxes(rows):
    return np.asarray(rows, np.float32).reshape(-1, 4)


def numpy_overlap(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    result = np.zeros((len(a), len(b)))
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            h = min(p[2], q[2]) - max(p[0], q[0])
            w = min(p[3], q[3]) - max(p[1], q[1])
            result[i, j] = max(h, 0) * max(w, 0)
    return result


def numpy_area(a):
    a = a.astype(np.float64)
    return np.maximum(a[:, 2] - a[:, 0], 0) * np.maximum(a[:, 3] - a[:, 1], 0)


@settings(max_examples=50, deadline=None)
@given(box_rows, box_rows)
def test_iou_and_ioa_equal_the_definition(rows, other_rows):
    a, b = as_boxes(rows), as_boxes(other_rows)
    overlap = numpy_overlap(a, b)
    union = numpy_area(a)[:, None] + numpy_area(b)[None] - overlap
    expected = np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)
    np.testing.assert_allclose(box_ops.iou(ops.array(a), ops.array(b)), expected, rtol=2e-3, atol=1e-3)
    share = np.divide(overlap, numpy_area(b)[None], out=np.zeros_like(overlap), where=overlap > 0)
    np.testing.assert_allclose(box_ops.ioa(ops.array(a), ops.array(b)), share, rtol=2e-3, atol=1e-3)


def test_boxes_without_area_overlap_nothing():
    boxes = ops.array([[5.0, 5, 5, 5], [0, 0, 10, 10], [8, 8, 2, 2]])
    iou = ops.convert_to_numpy(box_ops.iou(boxes, boxes))
    assert iou[1, 1] == 1
    assert iou.sum() == 1


@pytest.mark.parametrize("weights", [box_ops.RPN_CODING_WEIGHTS, box_ops.BOX_HEAD_CODING_WEIGHTS])
def test_decode_undoes_encode(weights):
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 100, (2, 200, 2))
    boxes = np.concatenate([start, start + rng.uniform(2, 80, (2, 200, 2))], -1).astype(np.float32)
    anchors = boxes[:, ::-1].copy()
    deltas = box_ops.encode(ops.array(boxes), ops.array(anchors), weights)
    np.testing.assert_allclose(box_ops.decode(deltas, ops.array(anchors), weights), boxes, atol=1e-3)


def test_encode_is_the_published_parametrisation():
    anchor, box = np.array([[10.0, 20, 30, 60]]), np.array([[16.0, 20, 26, 100]])
    expected = [10 * (21 - 20) / 20, 10 * (60 - 40) / 40, 5 * math.log(10 / 20), 5 * math.log(80 / 40)]
    actual = box_ops.encode(ops.array(box, "float32"), ops.array(anchor, "float32"), box_ops.BOX_HEAD_CODING_WEIGHTS)
    np.testing.assert_allclose(actual[0], expected, rtol=1e-6)


def test_encode_of_padded_rows_is_zero_and_decode_is_clamped():
    rows = ops.array([[0.0, 0, 0, 0], [5, 5, 4, 9]])
    np.testing.assert_array_equal(box_ops.encode(rows, rows), np.zeros((2, 4)))
    decoded = box_ops.decode(ops.array([[0.0, 0, 1e4, 1e4]]), ops.array([[0.0, 0, 16, 32]]))
    np.testing.assert_allclose(decoded[0], [8 - 500, 16 - 1000, 8 + 500, 16 + 1000], rtol=1e-5)


def test_clip_is_by_image():
    boxes = ops.array([[[-5.0, -5, 50, 50]], [[-5.0, 2, 50, 50]]])
    clipped = box_ops.clip(boxes, ops.array([[20, 30], [100, 10]]))
    np.testing.assert_array_equal(clipped, [[[0, 0, 20, 30]], [[0, 2, 50, 10]]])


def test_take_rows_equals_indexing():
    x = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    indices = np.array([[4, 0, 4], [1, 2, 3]], np.int32)
    actual = box_ops.take_rows(ops.array(x), ops.array(indices))
    np.testing.assert_array_equal(actual, np.stack([x[0][indices[0]], x[1][indices[1]]]))
    np.testing.assert_array_equal(
        box_ops.take_rows(ops.array(x[..., 0]), ops.array(indices)), np.asarray(actual)[..., 0]
    )
