"""Normalization layers."""

import keras
import numpy as np
import pytest

from kmaskrcnn.layers.normalization import FrozenBatchNormalization, group_count, make_norm


def test_frozen_equals_batch_norm_in_inference():
    random = np.random.default_rng(0)
    frozen, reference = FrozenBatchNormalization(1e-3), keras.layers.BatchNormalization(epsilon=1e-3)
    image = random.normal(size=(2, 5, 6, 7)).astype("float32")
    values = [random.normal(size=7) for _ in range(3)] + [random.uniform(1e-4, 2, 7)]
    for layer in (frozen, reference):
        layer.build(image.shape)
        layer.set_weights(values)
    expected = reference(image, training=False)
    np.testing.assert_allclose(frozen(image), expected, rtol=1e-4, atol=1e-4)
    assert frozen.trainable_variables == [] and len(frozen.weights) == 4


def test_frozen_stays_frozen_when_its_model_is_thawed():
    layer = FrozenBatchNormalization()
    layer.build((None, 4))
    layer.trainable = True
    assert layer.trainable_variables == []


def test_half_precision_combines_the_statistics_in_float32():
    layer = FrozenBatchNormalization(dtype="mixed_bfloat16")
    layer.build((None, 1))
    # mean * scale and beta nearly cancel: rounding either to bfloat16 first would leave an error of about 0.5.
    layer.set_weights([np.ones(1), np.full(1, 100.25), np.full(1, 100.0), np.ones(1)])
    assert abs(float(np.asarray(layer(np.zeros((1, 1)))).item()) - 0.25) < 0.01


@pytest.mark.parametrize("channels", [3, 16, 24, 32, 40, 64, 112, 320, 1152])
def test_groups_divide(channels):
    groups = group_count(channels)
    assert channels % groups == 0 and 1 <= groups <= 32
    make_norm("gn", channels)(np.zeros((1, 4, 4, channels), "float32"))


def test_group_count_is_32_where_it_can_be():
    assert [group_count(c) for c in (64, 256, 2048, 24, 40, 80)] == [32, 32, 32, 12, 20, 20]


def test_names():
    assert make_norm("none", 8) is None
    assert make_norm("sync_bn", 8).synchronized and not make_norm("bn", 8).synchronized
    with pytest.raises(ValueError, match="norm='batch'"):
        make_norm("batch", 8)
