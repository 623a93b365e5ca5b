import numpy as np
import pytest
from keras import ops

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
