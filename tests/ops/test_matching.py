import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from kmaskrcnn.ops import matching


def numpy_match(boxes, gt, valid, crowd, high, low, keep_low_quality):
    """One image, written out from the description: loops, float64."""

    def iou(p, q, own_only=False):
        h, w = min(p[2], q[2]) - max(p[0], q[0]), min(p[3], q[3]) - max(p[1], q[1])
        overlap = max(h, 0) * max(w, 0)
        if overlap == 0:
            return 0.0
        own = (p[2] - p[0]) * (p[3] - p[1])
        return overlap / own if own_only else overlap / (own + (q[2] - q[0]) * (q[3] - q[1]) - overlap)

    real = [j for j in range(len(gt)) if valid[j] and not crowd[j]]
    table = np.array([[iou(b, gt[j]) for j in real] for b in boxes]).reshape(len(boxes), len(real))
    result = []
    for i, box in enumerate(boxes):
        best = table[i].max() if real else -1
        if best >= high:
            result.append(real[int(table[i].argmax())])
        elif best >= low:
            result.append(matching.IGNORED)
        else:
            inside = any(
                valid[j] and crowd[j] and iou(box, gt[j], own_only=True) >= matching.CROWD_IOA for j in range(len(gt))
            )
            result.append(matching.IGNORED if inside else matching.NEGATIVE)
        if keep_low_quality and real:
            top = table.max(axis=0)
            if any(table[i, j] == top[j] and top[j] > 0 for j in range(len(real))):
                result[-1] = real[int(table[i].argmax())]
    return result


# Corners on a coarse grid: ties and exact coincidences are common, and float32 areas are exact.
corner = st.integers(0, 6)
box = st.tuples(corner, corner, st.integers(0, 4), st.integers(0, 4)).map(
    lambda b: [8.0 * b[0], 8.0 * b[1], 8.0 * (b[0] + b[2]), 8.0 * (b[1] + b[3])]
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(box, min_size=1, max_size=8),
    st.lists(st.tuples(box, st.booleans(), st.booleans()), min_size=1, max_size=5),
    st.booleans(),
)
def test_match_equals_the_description(boxes, rows, keep_low_quality):
    gt = np.array([r[0] for r in rows], np.float32)
    valid, crowd = np.array([r[1] for r in rows]), np.array([r[2] for r in rows])
    actual = matching.match(
        ops.array(boxes, "float32"),
        ops.array(gt[None]),
        ops.array(valid[None]),
        ops.array(crowd[None]),
        0.7,
        0.3,
        keep_low_quality,
    )
    assert list(np.asarray(actual)[0]) == numpy_match(boxes, gt, valid, crowd, 0.7, 0.3, keep_low_quality)


def test_padded_rows_make_no_anchor_positive():
    boxes = ops.array([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    no = ops.zeros((1, 3), "bool")
    actual = matching.match(boxes, ops.zeros((1, 3, 4)), no, no, 0.7, 0.3, keep_low_quality=True)
    np.testing.assert_array_equal(actual, [[matching.NEGATIVE, matching.NEGATIVE]])


def test_many_rows_of_ground_truth_give_what_one_table_gives():
    """More rows than are compared at a time, with ties over all of them; the table is the description's."""
    rng = np.random.default_rng(0)
    rows = 3 * matching.ROWS_AT_ONCE + 5
    corners = rng.integers(0, 12, (2, rows, 2)) * 8.0
    gt = np.concatenate([corners, corners + rng.integers(0, 5, (2, rows, 2)) * 8.0], -1).astype(np.float32)
    corners = rng.integers(0, 12, (200, 2)) * 8.0
    boxes = np.concatenate([corners, corners + rng.integers(1, 5, (200, 2)) * 8.0], -1).astype(np.float32)
    valid, crowd = rng.random((2, rows)) < 0.8, rng.random((2, rows)) < 0.1
    for keep_low_quality in (False, True):
        actual = matching.match(
            ops.array(boxes), ops.array(gt), ops.array(valid), ops.array(crowd), 0.7, 0.3, keep_low_quality
        )
        for b in range(2):
            expected = numpy_match(boxes, gt[b], valid[b], crowd[b], 0.7, 0.3, keep_low_quality)
            assert list(np.asarray(actual)[b]) == expected
        assert np.asarray(actual).max() > 2 * matching.ROWS_AT_ONCE
