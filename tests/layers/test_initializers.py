"""What weights start from: drawn, or zeros where a file's weights follow."""

import keras
import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.layers import initializers
from tests.conftest import TINY

VARIATIONS = {"mask_scoring": True, "cascade_ious": (0.5, 0.6), "box_conv_channels": (8,), "rpn_conv_layers": 2}


def kernels(model):
    return {v.path: np.asarray(v.value) for v in model.trainable_variables if len(v.shape) > 1}


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_large", "convnext_tiny"])
def test_nothing_is_drawn_where_weights_follow(backbone):
    settings = TINY | VARIATIONS | {"backbone": backbone, "backbone_norm": "frozen_bn"}
    if backbone == "convnext_tiny":
        del settings["backbone_norm"]
    with initializers.weights_follow():
        empty = kernels(MaskRCNN(**settings))
    drawn = kernels(MaskRCNN(**settings))
    assert empty.keys() == drawn.keys()
    assert not any(kernel.any() for kernel in empty.values())
    assert all(kernel.std() > 0 for kernel in drawn.values())


@pytest.mark.parametrize(
    ("initializer", "deviation"),
    [
        (initializers.kaiming_normal, (2 / (9 * 64)) ** 0.5),
        (initializers.lecun_uniform, (1 / (9 * 32)) ** 0.5),
        (lambda: initializers.normal(0.01), 0.01),
    ],
)
def test_deviations_are_those_of_the_sources(initializer, deviation):
    keras.utils.set_random_seed(0)
    drawn = np.asarray(initializer()((3, 3, 32, 64)))
    assert abs(drawn.mean()) < 0.05 * deviation
    np.testing.assert_allclose(drawn.std(), deviation, rtol=0.03)


def test_an_error_within_leaves_drawing_on():
    with pytest.raises(RuntimeError), initializers.weights_follow():
        raise RuntimeError
    assert np.asarray(initializers.normal(1.0)((4,))).any()
