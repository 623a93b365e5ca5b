"""Any input at all, broken rows included, against float64 NumPy written from the definitions."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from kmaskrcnn.data.sets.masks import rasterize_polygons
from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops import losses
from kmaskrcnn.ops.mask_targets import mask_targets
from tests.ops.test_mask_targets import numpy_target

NAN = float("nan")
number = st.floats(-100, 200, width=32, allow_subnormal=False)  # which hardware may take for 0
side = st.sampled_from([0.0, 0.5, 1.0, 3.0, 17.0, 120.0])
good_box = st.tuples(number, number, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
any_box = st.one_of(good_box, st.tuples(number, number, number, number), st.just((NAN,) * 4), st.just((0.0,) * 4))
rows = st.lists(st.tuples(any_box, any_box), max_size=8)
many = settings(max_examples=100, deadline=None)


def pairs(examples):
    table = np.array(examples, np.float32).reshape(-1, 2, 4)
    return table[:, 0], table[:, 1]


@many
@given(rows, st.sampled_from([box_ops.RPN_CODING_WEIGHTS, box_ops.BOX_HEAD_CODING_WEIGHTS]))
def test_encode(examples, weights):
    boxes, anchors = pairs(examples)
    expected = np.zeros((len(boxes), 4))
    for i, (b, a) in enumerate(zip(boxes.astype(np.float64), anchors.astype(np.float64), strict=True)):
        for axis in (0, 1):
            # The sides as float32 has them: a side that rounding makes 0 is 0.
            own = float(np.float32(boxes[i, axis + 2]) - np.float32(boxes[i, axis]))
            other = float(np.float32(anchors[i, axis + 2]) - np.float32(anchors[i, axis]))
            if own > 0 and other > 0:
                expected[i, axis] = ((b[axis] + b[axis + 2]) / 2 - (a[axis] + a[axis + 2]) / 2) / other * weights[axis]
                expected[i, axis + 2] = math.log(own / other) * weights[axis + 2]
    actual = np.asarray(box_ops.encode(ops.array(boxes), ops.array(anchors), weights))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-2)


@many
@given(st.lists(st.tuples(st.tuples(*[st.floats(-8, 8, width=32)] * 4), good_box), max_size=8))
def test_decode(examples):
    deltas, anchors = pairs(examples)
    expected = np.zeros((len(deltas), 4))
    for i, (d, a) in enumerate(zip(deltas.astype(np.float64), anchors.astype(np.float64), strict=True)):
        for axis in (0, 1):
            size = a[axis + 2] - a[axis]
            center = (a[axis] + a[axis + 2]) / 2 + d[axis] * size
            new = size * min(math.exp(d[axis + 2]), 1000 / 16)
            expected[i, axis], expected[i, axis + 2] = center - new / 2, center + new / 2
    actual = box_ops.decode(ops.array(deltas), ops.array(anchors))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-2)


@many
@given(st.lists(any_box, max_size=6), st.integers(1, 150), st.integers(1, 150))
def test_clip_stays_in_the_image(examples, height, width):
    boxes = np.array(examples, np.float32).reshape(1, -1, 4)
    actual = np.asarray(box_ops.clip(ops.array(boxes), ops.array([[height, width]])))
    known = ~np.isnan(boxes)
    limits = np.broadcast_to(np.array([height, width, height, width], np.float32), boxes.shape)
    np.testing.assert_array_equal(actual[known], np.clip(boxes, 0, limits)[known])


@many
@given(rows)
def test_iou_of_broken_boxes_is_a_number(examples):
    a, b = pairs(examples)
    actual = np.asarray(box_ops.iou(ops.array(a), ops.array(b)))
    assert actual.shape == (len(a), len(a))
    assert np.all((actual >= 0) & (actual <= 1 + 1e-5))
    assert not actual[np.isnan(a).any(1)].any()


@many
@given(st.lists(st.tuples(st.floats(-60, 60, width=32, allow_subnormal=False), st.floats(0, 1, width=32)), max_size=20))
def test_binary_cross_entropy(examples):
    logits, targets = np.array(examples, np.float32).reshape(-1, 2).T
    x, t = logits.astype(np.float64), targets.astype(np.float64)
    expected = t * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)
    actual = losses.binary_cross_entropy(ops.array(logits), ops.array(targets))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)


@many
@given(st.integers(0, 6), st.integers(1, 5), st.sampled_from([0.0, 1.0, 50.0]), st.integers(0, 10**6))
def test_softmax_cross_entropy(count, classes, spread, seed):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1, (count, classes)).astype(np.float32) * spread  # a spread of 0: all scores equal
    labels = random.integers(0, classes, count)
    x = logits.astype(np.float64)
    expected = np.log(np.exp(x - x.max(1, keepdims=True, initial=-1e9)).sum(1)) + x.max(1, initial=-1e9)
    expected -= x[np.arange(count), labels]
    actual = losses.softmax_cross_entropy(ops.array(logits), ops.array(labels, "int32"))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@many
@given(st.lists(st.tuples(number, number), max_size=10), st.sampled_from([0.0, 1 / 9, 1.0]))
def test_smooth_l1(examples, beta):
    table = np.array(examples, np.float32).reshape(-1, 2)
    d = np.abs((table[:, 0] - table[:, 1]).astype(np.float64))
    expected = [x - beta / 2 if x >= beta else x * x / (2 * beta) for x in d]  # beta 0: L1, Detectron2's default
    actual = losses.smooth_l1(ops.array(table[:, 0]), ops.array(table[:, 1]), beta)
    np.testing.assert_allclose(actual, np.array(expected), rtol=1e-5, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(good_box, good_box), max_size=3), st.integers(0, 10**6))
def test_mask_targets(examples, seed):
    frames, rois = pairs(examples)
    frames[:, 2:] = np.maximum(frames[:, 2:], frames[:, :2] + 0.25)  # a frame has an area, a RoI need not
    masks = np.random.default_rng(seed).integers(0, 256, (len(frames), 5, 5)).astype(np.uint8)
    actual = np.asarray(mask_targets(ops.array(masks), ops.array(frames), ops.array(rois), 3, binary=False))
    assert actual.shape == (len(frames), 3, 3)
    for row in range(len(frames)):
        expected = numpy_target(masks[row], frames[row].astype(np.float64), rois[row].astype(np.float64), 3)
        # Far from a small frame float32 places a sample by its own rounding.
        cell = np.min(frames[row, 2:] - frames[row, :2]) / 5
        slack = 1e-4 + 4 * 3e-5 * np.abs(np.concatenate([frames[row], rois[row]])).max() / max(cell, 1e-3) / 200
        np.testing.assert_allclose(actual[row], expected, atol=max(slack, 2e-3))


def inside(polygon, y, x):
    """Even-odd rule at points, in float64."""
    result = np.zeros(y.shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y0 != y1:
            result ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return result


def test_targets_are_the_polygon_in_the_roi():
    """Detectron2 draws the polygon itself into the RoI; stored masks give the same target but on its outline."""
    random = np.random.default_rng(0)
    for _ in range(20):
        angles = np.sort(random.uniform(0, 2 * np.pi, 9))
        radii = random.uniform(25, 90, 9)
        polygon = np.stack([150 + radii * np.cos(angles), 140 + radii * np.sin(angles)], axis=1)
        box = np.array([*polygon.min(0)[::-1], *polygon.max(0)[::-1]], np.float32)
        cells = rasterize_polygons([polygon.ravel()], box, 112)
        roi = box + random.uniform(-8, 8, 4).astype(np.float32)
        target = np.asarray(mask_targets(cells[None], box[None], roi[None], 28))[0]
        centers = (np.arange(28) + 0.5) / 28
        y, x = np.meshgrid(roi[0] + centers * (roi[2] - roi[0]), roi[1] + centers * (roi[3] - roi[1]), indexing="ij")
        exact = inside(polygon.astype(np.float64), y.astype(np.float64), x.astype(np.float64))
        assert np.mean(target != exact) < 0.03
        assert exact.mean() > 0.1
