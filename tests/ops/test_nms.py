import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from kmaskrcnn.ops.nms import batched_nms, multiclass_nms, nms
from tests import numpy_reference

# Corners on a grid and few scores: coincidences, boxes of no area and equal scores are common.
side = st.integers(0, 5)
row = st.tuples(side, side, st.integers(-1, 4), st.integers(-1, 4), st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]))


def as_arrays(rows):
    table = np.asarray(rows, np.float32).reshape(-1, 5)
    boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1) * 8
    return boxes, table[:, 4]


@pytest.mark.parametrize("portable", [False, True])
@settings(max_examples=50, deadline=None)
@given(rows=st.lists(row, min_size=0, max_size=12), max_output=st.integers(1, 6), threshold=st.sampled_from([0.3, 0.6]))
def test_nms_equals_greedy_numpy(portable, rows, max_output, threshold):
    boxes, scores = as_arrays(rows)
    indices, count = nms(ops.array(boxes), ops.array(scores), max_output, threshold, 0.2, portable=portable)
    assert indices.shape == (max_output,)
    expected = numpy_reference.nms(boxes, scores, max_output, threshold, np.float32(0.2))
    assert list(np.asarray(indices)[: int(count)]) == expected


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("max_output", [90, 1300])
def test_nms_of_many_crowded_boxes(portable, max_output):
    """More than one tile of the portable form, long chains of boxes that drop each other, equal scores."""
    rng = np.random.default_rng(3)
    start = rng.uniform(0, 300, (1300, 2))
    boxes = np.concatenate([start, start + rng.uniform(10, 60, start.shape)], axis=1).astype(np.float32)
    boxes[:200] = np.array([0, 0, 40, 40]) + np.arange(200)[:, None]
    scores = np.concatenate([np.linspace(1, 0.5, 200), rng.integers(0, 50, 1100) / 50]).astype(np.float32)
    indices, count = nms(ops.array(boxes), ops.array(scores), max_output, 0.5, portable=portable)
    expected = numpy_reference.nms(boxes, scores, max_output, 0.5, -1)
    assert list(np.asarray(indices)[: int(count)]) == expected and len(expected) == min(max_output, int(count))


@pytest.mark.parametrize("portable", [False, True])
def test_nan_boxes_never_come_out(portable):
    boxes = ops.array([[0, 0, 10, 10], [np.nan, 0, 10, 10], [0, 0, np.inf, np.nan], [20, 20, 30, 30]], "float32")
    indices, count = nms(boxes, ops.array([0.5, 0.9, 0.8, np.nan]), 4, 0.5, portable=portable)
    assert list(np.asarray(indices)[: int(count)]) == [0]


def test_portable_form_compiles_under_xla():
    boxes, scores = as_arrays([(i % 5, i % 3, 3, 3, 0.1 + 0.05 * i) for i in range(16)])
    compiled = tf.function(lambda b, s: nms(b, s, 8, 0.5, portable=True), jit_compile=True)
    indices, count = compiled(boxes, scores)
    assert list(indices.numpy()[: int(count)]) == numpy_reference.nms(boxes, scores, 8, 0.5, -1)


@pytest.mark.parametrize("batch", [2, None])
def test_batched_nms_is_image_by_image(batch):
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 50, (2, 40, 2))
    boxes = np.concatenate([start, start + rng.uniform(5, 30, (2, 40, 2))], -1).astype(np.float32)
    scores = rng.uniform(0, 1, (2, 40)).astype(np.float32)
    signature = [tf.TensorSpec((batch, 40, 4)), tf.TensorSpec((batch, 40))]
    indices, count = tf.function(lambda b, s: batched_nms(b, s, 10, 0.4), input_signature=signature)(boxes, scores)
    for i in range(2):
        expected = numpy_reference.nms(boxes[i], scores[i], 10, 0.4, -1)
        assert list(indices[i].numpy()[: count[i]]) == expected


@pytest.mark.parametrize("portable", [False, True])
def test_a_graph_for_any_number_of_boxes_takes_none(portable):
    signature = [tf.TensorSpec((None, 4)), tf.TensorSpec((None,))]
    graph = tf.function(lambda b, s: nms(b, s, 5, 0.5, portable=portable), input_signature=signature)
    for count in (0, 1, 7):
        boxes = np.arange(count, dtype=np.float32)[:, None] * 20 + np.array([0, 0, 10, 10], np.float32)
        indices, valid = graph(boxes.reshape(-1, 4), np.linspace(1, 0, count).astype(np.float32))
        assert list(indices.numpy()) == [*range(min(count, 5)), *[0] * (5 - min(count, 5))]
        assert valid == min(count, 5)


@pytest.mark.parametrize(("portable", "static_shapes"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("batch", [2, None])
def test_multiclass_nms_takes_every_pair_above_the_threshold(batch, portable, static_shapes):
    rng = np.random.default_rng(1)
    rois, classes = 30, 4
    start = rng.uniform(0, 60, (2, rois, classes, 2))
    boxes = np.concatenate([start, start + rng.uniform(5, 30, start.shape)], -1).astype(np.float32)
    scores = rng.uniform(0, 1, (2, rois, classes)).astype(np.float32)
    scores[1] = 0.0  # an image without detections
    signature = [tf.TensorSpec((batch, rois, classes, 4)), tf.TensorSpec((batch, rois, classes))]
    options = {"portable": portable, "static_shapes": static_shapes}
    run = tf.function(lambda b, s: multiclass_nms(b, s, 0.3, 0.5, 25, **options), input_signature=signature)
    found_boxes, found_scores, found_classes, found_rois, count = (x.numpy() for x in run(boxes, scores))
    assert list(count) == [25, 0]
    expected = []
    for c in range(classes):
        for r in numpy_reference.nms(boxes[0, :, c], scores[0, :, c], rois, 0.5, 0.3):
            expected.append((scores[0, r, c], c + 1, r))
    expected = sorted(expected, reverse=True)[:25]
    for i, (score, label, roi) in enumerate(expected):
        assert (found_scores[0, i], found_classes[0, i], found_rois[0, i]) == (score, label, roi)
        np.testing.assert_array_equal(found_boxes[0, i], boxes[0, roi, label - 1])
    assert not found_boxes[1].any() and not found_classes[1].any() and not found_scores[1].any()


@pytest.mark.parametrize("portable", [False, True])
def test_multiclass_nms_with_broken_boxes_far_coordinates_and_many_classes(portable):
    """The planes of the classes neither meet nor cost precision, and a broken box spoils none of the others."""
    rng = np.random.default_rng(2)
    rois, classes = 12, 90
    start = rng.uniform(-400, 1300, (rois, 1, 2)) + rng.uniform(0, 2, (rois, classes, 2))
    boxes = np.concatenate([start, start + rng.uniform(3, 5, start.shape)], -1).astype(np.float32)[None]
    boxes[0, 0] = boxes[0, 1] + np.float32(0.5)
    boxes[0, 2, ::2] = np.nan
    boxes[0, 3, :, 2:] = np.inf
    boxes[0, 4, :, 2:] = boxes[0, 4, :, :2]
    scores = rng.permutation(rois * classes).reshape(1, rois, classes).astype(np.float32) / (rois * classes)
    found_boxes, _, found_classes, found_rois, count = multiclass_nms(boxes, scores, 0.1, 0.5, 1000, portable)
    expected = {
        (r, c + 1) for c in range(classes) for r in numpy_reference.nms(boxes[0, :, c], scores[0, :, c], rois, 0.5, 0.1)
    }
    count = int(count[0])
    assert set(zip(np.asarray(found_rois[0, :count]), np.asarray(found_classes[0, :count]), strict=True)) == expected
    assert np.isfinite(found_boxes).all()


@pytest.mark.parametrize("portable", [False, True])
def test_class_agnostic_nms_keeps_an_object_as_one_class(portable):
    boxes = np.array([[[0, 0, 10, 10]] * 2, [[0, 0, 10, 11]] * 2, [[50, 50, 60, 60]] * 2], np.float32)[None]
    scores = np.array([[[0.9, 0.8], [0.1, 0.85], [0.2, 0.3]]], np.float32)
    *_, of_each_class = multiclass_nms(boxes, scores, 0.15, 0.5, 10, portable)
    _, found, classes, rois, count = multiclass_nms(boxes, scores, 0.15, 0.5, 10, portable, class_agnostic=True)
    assert of_each_class[0] == 4 and count[0] == 2
    np.testing.assert_allclose(found[0, :2], [0.9, 0.3])
    np.testing.assert_array_equal(classes[0, :2], [1, 2])
    np.testing.assert_array_equal(rois[0, :2], [0, 2])
