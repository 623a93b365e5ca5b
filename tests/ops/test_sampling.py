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
        for x in sampling.sample(ops.array(labels == 1), ops.array(labels == -1), size, fraction, np.array([1]))
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
    indices, is_positive, _ = sampling.sample(positive, ops.zeros_like(positive), 4, 0.5, np.arange(4000))
    drawn = np.asarray(indices)[np.asarray(is_positive)]
    counts = np.bincount(drawn, minlength=8)
    assert counts.sum() == 8000
    assert abs(counts - 1000).max() < 150  # five standard deviations


def test_what_an_image_draws_depends_on_its_seed_alone():
    positive = ops.ones((3, 30), "bool")

    def draw(rows, seeds):
        return np.asarray(sampling.sample(positive[:rows], ops.zeros_like(positive[:rows]), 8, 0.5, np.array(seeds))[0])

    three = draw(3, [5, 6, 2**32 - 1])
    np.testing.assert_array_equal(draw(2, [6, 5]), three[[1, 0]])
    np.testing.assert_array_equal(draw(1, [2**32 - 1])[0], three[2])
    assert (three[0] != three[1]).any()


def test_noise_is_uniform_and_neither_rows_nor_columns_are_related():
    noise = np.asarray(sampling.image_noise(np.arange(300), 2000)).astype(np.float64)
    assert noise.min() >= 0.5 and noise.max() < 1.0
    counts, _ = np.histogram(noise, 64, (0.5, 1.0))
    expected = noise.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 120  # chi square of 63 degrees: 0.00002 lie above
    unit = (noise - 0.75) * np.sqrt(48)  # unit variance
    for product in (unit[1:] * unit[:-1], unit[:, 1:] * unit[:, :-1], unit[::2] * unit[1::2, ::-1]):
        assert abs(product.mean()) * np.sqrt(product.size) < 4.5  # standard deviations
