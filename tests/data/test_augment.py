"""Augmentation: pixels, boxes and masks go through the same transform."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from kmaskrcnn.config import Config
from kmaskrcnn.data import augment
from kmaskrcnn.data.augment import Transform
from kmaskrcnn.ops.mask_paste import paste_mask


def _data(**changes):
    return Config().replace(**changes).data


def _instances(height, width, rng, count=3):
    """Rectangles with whole corners, each filling the left half of its frame."""
    boxes = np.zeros((count, 4), np.float32)
    for i in range(count):
        h, w = 2 * rng.integers(3, height // 4), 2 * rng.integers(3, width // 4)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        boxes[i] = y, x, y + h, x + w
    masks = np.zeros((count, 28, 28), np.uint8)
    masks[:, :, :14] = 255
    boxes_of_masks = boxes.copy()
    boxes_of_masks[:, 3] = (boxes[:, 1] + boxes[:, 3]) / 2
    return {
        "boxes": boxes_of_masks,
        "classes": np.arange(1, count + 1, dtype=np.int32),
        "is_crowd": np.zeros(count, bool),
        "masks": masks,
        "mask_frames": boxes,
    }


def _pixels(image, transform, config):
    return augment.transform_image(tf.constant(image), *map(tf.constant, augment.as_arrays(transform)), config).numpy()


def test_identity_returns_the_input_bit_for_bit():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (37, 53, 3), np.uint8)
    config = _data(color_jitter=0.5, horizontal_flip=True, vertical_flip=True)
    transform = Transform((0, 0, 37, 53), (37, 53))
    plain = _data(horizontal_flip=True, vertical_flip=True)
    np.testing.assert_array_equal(_pixels(image, transform, plain), image)
    np.testing.assert_allclose(_pixels(image, transform, config).astype(int), image, atol=1)
    instances = _instances(37, 53, rng)
    for name, value in augment.transform_instances(instances, transform).items():
        np.testing.assert_array_equal(value, instances[name])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.integers(0, 3), st.sampled_from([1, 2]))
def test_boxes_and_masks_follow_the_pixels(seed, flip_x, flip_y, turns, scale):
    rng = np.random.default_rng(seed)
    height, width = 48, 64
    instances = _instances(height, width, rng)
    # Each instance is painted in its own channel, so that the pixels tell where it went.
    image = np.zeros((height, width, 3), np.uint8)
    for i, (frame, mask) in enumerate(zip(instances["mask_frames"], instances["masks"], strict=True)):
        image[..., i] = 255 * paste_mask(mask / 255, frame, height, width)
    window = (int(rng.integers(0, 9)), int(rng.integers(0, 9)), height - 8, width - 8)
    transform = Transform(window, (window[2] * scale, window[3] * scale), flip_x, flip_y, turns)
    config = _data(horizontal_flip=True, vertical_flip=True, crop_size=64, rotate90=True)
    moved = _pixels(image, transform, config)
    assert moved.shape[:2] == transform.output_size
    result = augment.transform_instances(instances, transform)
    kept = result["classes"].tolist()
    for row, number in enumerate(kept):
        truth = moved[..., number - 1] > 127
        mask = paste_mask(result["masks"][row] / 255, result["mask_frames"][row], *transform.output_size)
        assert (mask ^ truth).sum() <= 0.02 * truth.size / 4 + 2 * (mask.shape[0] + mask.shape[1]) * (scale - 1)
        y, x = np.nonzero(truth)
        np.testing.assert_allclose(result["boxes"][row], [y.min(), x.min(), y.max() + 1, x.max() + 1], atol=1.6 * scale)
    for number in {1, 2, 3} - set(kept):
        visible = (moved[..., number - 1] > 127).sum() / scale**2
        whole = (image[..., number - 1] > 127).sum()
        assert visible <= 0.15 * whole + 16  # dropped only where next to nothing is left


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 300), st.integers(20, 300))
def test_drawn_transforms_stay_inside_and_leave_no_empty_boxes(seed, height, width):
    rng = np.random.default_rng(seed)
    config = _data(
        resize_mode="native", crop_size=96, scale_jitter=(0.3, 3.0), rotate90=True, vertical_flip=True, color_jitter=0.4
    )
    instances = _instances(height, width, rng, count=5)
    transform = augment.draw_transform(height, width, instances["boxes"], config, rng)
    y, x, h, w = transform.window
    assert y >= 0
    assert x >= 0
    assert y + h <= height
    assert x + w <= width
    assert min(h, w, *transform.size) >= 1
    assert max(transform.size) <= 96
    result = augment.transform_instances(instances, transform)
    size = result["boxes"][:, 2:] - result["boxes"][:, :2]
    assert (size >= 1 - 1e-4).all()
    limit = np.array([*transform.output_size] * 2)
    assert (result["boxes"] >= -1e-4).all()
    assert (result["boxes"] <= limit + 1e-4).all()


def test_short_side_and_long_side():
    config = _data(min_size=800, max_size=1333)
    assert augment.scaled_size(480, 640, augment.base_scale(480, 640, config)) == (800, 1067)
    assert augment.scaled_size(400, 1000, augment.base_scale(400, 1000, config)) == (533, 1333)
    assert augment.scaled_size(400, 1000, augment.base_scale(400, 1000, config, short_side=400)) == (400, 1000)
    native = _data(resize_mode="native", native_scale=0.5)
    assert augment.scaled_size(401, 1000, augment.base_scale(401, 1000, native)) == (200, 500)


def test_a_crowd_region_is_clipped_not_dropped():
    instances = _instances(48, 64, np.random.default_rng(4), count=1)
    instances["mask_frames"][0] = instances["boxes"][0] = 0, 0, 48, 64
    instances["is_crowd"][0] = True
    result = augment.transform_instances(instances, Transform((10, 40, 20, 20), (20, 20)))
    np.testing.assert_allclose(result["boxes"], [[0, 0, 20, 20]])


def test_resize_low_passes_smaller_images_and_keeps_batches():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = augment.resize(tf.constant(stripes), tf.constant(16), tf.constant(16)).numpy()
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 3
    both = augment.resize(tf.constant(np.stack([stripes] * 2)), tf.constant(16), tf.constant(16)).numpy()
    np.testing.assert_array_equal(both[1], small)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_invert(value):
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    config = _data(invert_probability=1.0, horizontal_flip=False)
    result = _pixels(image, Transform((0, 0, 8, 8), (8, 8), invert=bool(value)), config).astype(int)
    np.testing.assert_allclose(result, 255 - image.astype(int) if value else image, atol=1)
