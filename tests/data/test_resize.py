"""Resizing as torchvision and Detectron2 do it: their sizes, and their pixels."""

import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmaskrcnn.config import Config
from kmaskrcnn.data import prepare_image
from kmaskrcnn.data.resize import resize
from kmaskrcnn.data.sizes import network_size


@pytest.mark.parametrize(
    ("method", "size", "expected"),
    [
        ("antialias", (480, 640), (800, 1067)),
        ("torchvision", (480, 640), (800, 1066)),
        ("detectron2", (480, 640), (800, 1067)),
        ("torchvision", (427, 640), (800, 1199)),
        ("detectron2", (427, 640), (800, 1199)),
        ("torchvision", (400, 1000), (533, 1333)),
        ("detectron2", (400, 1000), (533, 1333)),
        ("detectron2", (1000, 333), (1333, 444)),
        ("torchvision", (1000, 333), (1333, 443)),
    ],
)
def test_sizes_of_whole_images(method, size, expected):
    assert network_size(*size, Config().replace(resize_method=method).data) == expected


def bilinear(image, height, width):
    """(H, W, C) -> (height, width, C) in float64, pixel centers on pixel centers, borders repeated, no filter."""
    for axis, target in enumerate((height, width)):
        source = image.shape[axis]
        position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(position).astype(int)
        shape = [-1 if a == axis else 1 for a in range(3)]
        share = (position - low).reshape(shape)
        high = np.minimum(low + 1, source - 1)
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    return image


@pytest.mark.parametrize("size", [(31, 23), (90, 121)])
def test_pixels(size):
    image = np.random.default_rng(0).integers(0, 256, (60, 81, 3), np.uint8)
    theirs = resize(tf.constant(image), *size, "torchvision").numpy()
    assert theirs.dtype == np.float32
    assert np.abs(theirs - bilinear(image.astype(np.float64), *size)).max() <= 2e-3
    pillow = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize(tf.constant(image), *size, "detectron2"), pillow)
    assert np.abs(resize(tf.constant(image), *size).numpy().astype(int) - pillow).max() <= 1


@pytest.mark.parametrize("method", ["torchvision", "detectron2"])
def test_prediction_takes_the_method(method):
    image = np.random.default_rng(1).integers(0, 256, (60, 81, 3), np.uint8)
    config = Config().replace(resize_method=method, min_size=50, max_size=64).data
    network_image, shape, scales = prepare_image(image, config)
    assert tuple(shape) == network_size(60, 81, config)
    np.testing.assert_allclose(scales, shape / np.array([60, 81]), rtol=1e-6)
    expected = resize(tf.constant(image), *shape, method).numpy()
    np.testing.assert_array_equal(network_image[: shape[0], : shape[1]], expected)
    assert math.prod(network_image.shape[:2]) >= math.prod(shape)
