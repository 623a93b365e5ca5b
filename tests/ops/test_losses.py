import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops import losses


def test_binary_cross_entropy_equals_the_definition_and_does_not_overflow():
    logits = np.linspace(-20, 20, 41)
    probability = 1 / (1 + np.exp(-logits))
    for target in (0.0, 0.3, 1.0):
        expected = -target * np.log(probability) - (1 - target) * np.log1p(-probability)
        actual = losses.binary_cross_entropy(ops.array(logits, "float32"), ops.full((41,), target))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    extreme = losses.binary_cross_entropy(ops.array([1e4, -1e4]), ops.array([0.0, 1.0]))
    np.testing.assert_allclose(extreme, [1e4, 1e4])


def test_softmax_cross_entropy_equals_the_definition():
    rng = np.random.default_rng(0)
    logits, classes = rng.normal(0, 5, (2, 7, 4)), rng.integers(0, 4, (2, 7))
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(softmax, classes[..., None], -1)[..., 0])
    actual = losses.softmax_cross_entropy(ops.array(logits, "float32"), ops.array(classes))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_is_continuous_with_slope_one_outside(beta):
    d = np.linspace(-3, 3, 61)
    expected = np.abs(d) - beta / 2
    if beta:
        expected = np.where(np.abs(d) < beta, d * d / (2 * beta), expected)
    actual = losses.smooth_l1(ops.array(d, "float32"), ops.zeros(61), beta)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def giou_reference(a, b):
    """Of two boxes, in float64, from the definition."""
    top, left, bottom, right = np.maximum(a, b)[0], np.maximum(a, b)[1], np.minimum(a, b)[2], np.minimum(a, b)[3]
    overlap = max(bottom - top, 0) * max(right - left, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return 1 - (overlap / union - (hull - union) / hull)


def boxes_and_others():
    """Pairs that overlap, touch, hold each other and lie apart, yxyx."""
    rng = np.random.default_rng(0)
    start, size = rng.uniform(0, 60, (2, 200, 2)), rng.uniform(1, 60, (2, 200, 2))
    boxes, others = np.concatenate([start, start + size], axis=-1)
    others[:20] = boxes[:20] + np.array([-3, -2, 4, 5])
    others[20:40] = boxes[20:40] + np.array([500, 0.25, 500, 0.25])
    return boxes, others


def test_giou_equals_the_definition_with_its_gradient():
    boxes, others = boxes_and_others()
    variable = tf.constant(boxes, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = losses.giou(variable, ops.array(others, "float32"))
    expected = np.array([giou_reference(a, b) for a, b in zip(boxes, others, strict=True)])
    assert 0 < expected.min() < 0.3 and 1.5 < expected.max() < 2
    np.testing.assert_allclose(loss, expected, atol=1e-6)
    step = 1e-6 * np.eye(4)
    slopes = [
        [(giou_reference(a + d, b) - giou_reference(a - d, b)) / 2e-6 for d in step]
        for a, b in zip(boxes, others, strict=True)
    ]
    np.testing.assert_allclose(tape.gradient(loss, variable), slopes, atol=1e-6)


def test_giou_of_boxes_without_area_is_finite_with_its_gradient():
    boxes = tf.constant([[0, 0, 0, 0], [5, 5, 5, 9], [3, 3, 8, 8]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        loss = losses.giou(boxes, tf.constant([[0, 0, 0, 0], [5, 5, 5, 9], [4, 4, 4, 4]], tf.float32))
    assert np.isfinite(loss).all() and np.isfinite(tape.gradient(loss, boxes)).all()


@pytest.mark.parametrize("weights", [box_ops.RPN_CODING_WEIGHTS, box_ops.BOX_HEAD_CODING_WEIGHTS])
def test_giou_is_of_the_boxes_that_deltas_make_and_smooth_l1_of_the_deltas(weights):
    anchors, targets = (ops.array(x, "float32") for x in boxes_and_others())
    deltas = box_ops.encode(targets, anchors, weights)
    for kind, columns in (("giou", 1), ("smooth_l1", 4)):
        right = losses.box_regression(deltas, anchors, targets, weights, kind, 0.0)
        assert right.shape == (200, columns)
        np.testing.assert_allclose(right, np.zeros_like(right), atol=1e-4)
    zero = ops.zeros_like(deltas)
    moved = losses.box_regression(zero, anchors, targets, weights, "giou", 0.0)
    np.testing.assert_allclose(moved[:, 0], losses.giou(anchors, targets), atol=1e-6)
    off = losses.box_regression(zero, anchors, targets, weights, "smooth_l1", 0.0)
    np.testing.assert_allclose(off, np.abs(deltas), rtol=1e-6)
