import keras
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from kmaskrcnn.ops import sampling


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([1, -1, 0]), min_size=1, max_size=40), st.integers(1, 16), st.sampled_from([0.25, 0.5]))
def test_sample_is_full_balanced_and_positives_first(labels, size, fraction):
    labels = np.array([labels])
    indices, is_positive, is_valid = (
        np.asarray(x)[0]
        for x in sampling.sample(ops.array(labels == 1), ops.array(labels == -1), size, fraction, seed=1)
    )
    positives = min((labels == 1).sum(), int(size * fraction))
    negatives = min((labels == -1).sum(), size - positives)
    assert indices.shape == (size,)
    assert is_valid.sum() == positives + negatives
    assert is_valid[: positives + negatives].all()
    assert is_positive[:positives].all() and is_positive.sum() == positives
    assert (labels[0, indices[:positives]] == 1).all()
    assert (labels[0, indices[positives : positives + negatives]] == -1).all()
    drawn = indices[is_valid]
    assert len(set(drawn)) == len(drawn)


def test_every_positive_is_drawn_equally_often():
    positive = ops.ones((4000, 8), "bool")
    seed = keras.random.SeedGenerator(3)
    indices, is_positive, _ = sampling.sample(positive, ops.zeros_like(positive), 4, 0.5, seed)
    drawn = np.asarray(indices)[np.asarray(is_positive)]
    counts = np.bincount(drawn, minlength=8)
    assert counts.sum() == 8000
    assert abs(counts - 1000).max() < 150  # five standard deviations


def test_the_same_seed_draws_the_same():
    positive = ops.ones((2, 30), "bool")
    draw = [np.asarray(sampling.sample(positive, ops.zeros_like(positive), 8, 0.5, seed)[0]) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draw[0], draw[1])
    assert (draw[0] != draw[2]).any()
