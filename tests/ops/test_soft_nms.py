"""Soft-NMS against the authors' loop in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kmaskrcnn.ops.nms import multiclass_nms, soft_nms
from tests.numpy_reference import iou

PORTABLE = pytest.mark.parametrize("portable", [False, True])


def authors_soft_nms(boxes, scores, sigma, threshold):
    """Gaussian Soft-NMS as the authors' cpu_soft_nms walks: the best of the rest comes to the front, the rest decay."""
    rows = [[*map(float, box), float(score), i] for i, (box, score) in enumerate(zip(boxes, scores, strict=True))]
    rows = [row for row in rows if row[4] > threshold and row[2] > row[0] and row[3] > row[1]]
    front = 0
    while front < len(rows):
        best = max(range(front, len(rows)), key=lambda k: (rows[k][4], -rows[k][5]))
        rows[front], rows[best] = rows[best], rows[front]
        position = front + 1
        while position < len(rows):
            overlap = iou(rows[front][:4], rows[position][:4])
            if overlap > 0:
                rows[position][4] *= np.exp(-(overlap * overlap) / sigma)
                if rows[position][4] <= threshold:  # the last one takes its place
                    rows[position] = rows[-1]
                    rows.pop()
                    continue
            position += 1
        front += 1
    return [row[5] for row in rows], [row[4] for row in rows]


def crowd(count, seed, extent=80):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, extent, (count, 2))
    boxes = np.concatenate([start, start + rng.uniform(10, 50, start.shape)], axis=1).astype(np.float32)
    return boxes, rng.permutation(count).astype(np.float32) / count + np.float32(0.001)


@PORTABLE
@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("threshold", [0.0, 0.05])
def test_equals_the_authors_loop(portable, sigma, threshold):
    boxes, scores = crowd(60, 0)
    boxes[7], boxes[8] = boxes[3], boxes[4]  # equal boxes keep exp(-1 / sigma)
    boxes[9, 2] = boxes[9, 0]  # no area
    order, expected = authors_soft_nms(boxes, scores, sigma, threshold)
    indices, found, count = (np.asarray(x) for x in soft_nms(boxes, scores, 70, sigma, threshold, portable))
    assert count == len(order) and (count < 50) == (threshold > 0 and sigma < 1)
    np.testing.assert_allclose(found[:count], expected, rtol=1e-4)
    assert list(indices[:count]) == order
    assert not indices[count:].any() and not found[count:].any()
    first = soft_nms(boxes, scores, 10, sigma, threshold, portable)
    assert list(np.asarray(first[0])) == order[:10] and int(first[2]) == 10


@PORTABLE
def test_nothing_broken_boxes_and_equal_scores(portable):
    signature = [tf.TensorSpec((None, 4)), tf.TensorSpec((None,))]
    graph = tf.function(lambda b, s: soft_nms(b, s, 4, 0.5, 0.1, portable), input_signature=signature)
    assert graph(np.zeros((0, 4)), np.zeros(0))[2] == 0
    nan, inf = np.nan, np.inf
    boxes = [[0, 0, 9, 9], [nan, 0, 9, 9], [0, 0, inf, nan], [20, 20, 30, 30], [0, 30, 9, 39], [50, 0, 60, 9]]
    indices, scores, count = graph(boxes, [0.5, 0.9, 0.8, nan, 0.5, 0.1])
    assert (list(indices), int(count)) == ([0, 4, 0, 0], 2)
    np.testing.assert_allclose(scores, [0.5, 0.5, 0, 0])


def test_the_portable_form_compiles_under_xla():
    boxes, scores = crowd(30, 1)
    compiled = tf.function(lambda b, s: soft_nms(b, s, 12, 0.5, 0.05, portable=True), jit_compile=True)
    order, expected = authors_soft_nms(boxes, scores, 0.5, 0.05)
    indices, found, _ = compiled(ops.array(boxes), ops.array(scores))
    assert list(indices.numpy()) == order[:12]
    np.testing.assert_allclose(found, expected[:12], rtol=1e-4)


@pytest.mark.parametrize(("portable", "static_shapes"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_scores_decay_within_their_class(portable, static_shapes, class_agnostic):
    boxes, scores = crowd(60, 2)
    boxes, scores = boxes.reshape(1, 20, 3, 4), scores.reshape(1, 20, 3)
    options = {"portable": portable, "static_shapes": static_shapes, "class_agnostic": class_agnostic}
    found = multiclass_nms(boxes, scores, 0.05, 0.5, 25, soft_sigma=0.5, **options)
    found_boxes, found_scores, classes, rois, count = (np.asarray(x)[0] for x in found)
    expected = []
    for group in [range(3)] if class_agnostic else [[0], [1], [2]]:
        chosen = [(roi, c) for roi in range(20) for c in group]
        rows = [boxes[0, roi, c] for roi, c in chosen], [scores[0, roi, c] for roi, c in chosen]
        for i, score in zip(*authors_soft_nms(*rows, 0.5, 0.05), strict=True):
            expected.append((score, chosen[i][1] + 1, chosen[i][0]))
    expected = sorted(expected, reverse=True)[:25]
    assert count == 25 == len(expected)
    assert list(zip(classes, rois, strict=True)) == [row[1:] for row in expected]
    np.testing.assert_allclose(found_scores, [row[0] for row in expected], rtol=1e-3)
    np.testing.assert_array_equal(found_boxes, boxes[0, rois, classes - 1])
