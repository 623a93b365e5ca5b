"""Points of RoIs against their definitions, pixel by pixel in float64."""

import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn.ops.mask_targets import point_targets
from kmaskrcnn.ops.points import grid_points, most_uncertain, points_in_image, sample_points, uncertain_points
from kmaskrcnn.ops.sampling import image_noise


def hat_sample(image, points):
    """Bilinear samples of an image (H, W, C) at points (P, 2), as a sum over all pixels, nothing beyond them."""
    y, x = (
        np.maximum(1 - np.abs(points[:, axis, None] - (np.arange(size) + 0.5)), 0)
        for axis, size in enumerate(image.shape[:2])
    )
    return np.einsum("pi,pj,ijc->pc", y, x, image.astype(np.float64))


@pytest.fixture
def maps():
    return np.random.default_rng(0).normal(size=(3, 5, 7, 2)).astype(np.float32)


def test_samples_are_bilinear_and_fade_to_0_beyond_the_border(maps):
    points = np.random.default_rng(1).uniform(-2, 9, (4, 60, 2)).astype(np.float32)
    points[0, :6] = [[0, 0], [0.5, 0.5], [5, 7], [4.5, 6.5], [2.5, 7.25], [-0.5, 3]]
    owners = np.array([2, 0, 2, 1], np.int32)
    found = sample_points(maps, points, owners)
    expected = [hat_sample(maps[owner], own.astype(np.float64)) for owner, own in zip(owners, points, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found[0, 1], maps[2, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found[0, 0], maps[2, 0, 0] / 4, rtol=1e-6)  # where RoIAlign would take all of it
    assert sample_points(maps, points[:0], owners[:0]).shape == (0, 60, 2)


def test_points_that_are_no_numbers_or_far_away_give_0(maps):
    points = np.array([[[np.nan, 1], [np.inf, 1], [2, -np.inf], [1e30, 1e30], [2.5, 3.5]]], np.float32)
    found = np.asarray(sample_points(maps, points, np.array([1], np.int32)))[0]
    assert not found[:4].any()
    np.testing.assert_allclose(found[4], maps[1, 2, 3], rtol=1e-6)


def test_the_gradient_is_the_weights_summed_in_float32(maps):
    maps = tf.cast(maps, tf.bfloat16)
    points = np.random.default_rng(1).uniform(0, 7, (2, 500, 2)).astype(np.float32)
    owners = np.array([1, 1], np.int32)
    ones = np.eye(35).reshape(35, 5, 7).transpose(1, 2, 0)  # an image a pixel
    expected = hat_sample(ones, points.reshape(-1, 2).astype(np.float64)).sum(0).reshape(5, 7, 1)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        found = sample_points(maps, points, owners)
        total = tf.reduce_sum(found)
    gradient = tape.gradient(total, maps)
    assert found.dtype == tf.float32 and gradient.dtype == tf.bfloat16
    # As near as one rounding to bfloat16: a sum in bfloat16 would stall.
    np.testing.assert_allclose(tf.cast(gradient, tf.float32)[1], np.repeat(expected, 2, -1), rtol=2**-8, atol=1e-4)
    assert not tf.cast(gradient, tf.float32).numpy()[::2].any()


def test_a_grid_is_of_the_centers_of_cells_and_boxes_place_it():
    np.testing.assert_allclose(grid_points(2), [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]])
    boxes = np.array([[10, 20, 14, 28], [0, 0, 1, 1]], np.float32)
    found = points_in_image(boxes, np.asarray(grid_points(2))[None])
    np.testing.assert_allclose(found[0], [[11, 22], [11, 26], [13, 22], [13, 26]])
    np.testing.assert_allclose(found[1], grid_points(2))


def test_the_most_uncertain_are_nearest_to_0():
    logits = np.array([[3, -0.1, 2, 0.2, -9], [1, 2, 3, -4, -0.5]], np.float32)
    np.testing.assert_array_equal(most_uncertain(logits, 2), [[1, 3], [4, 0]])


@pytest.mark.parametrize("importance", [0.0, 0.75, 1.0])
def test_points_to_train_on_are_drawn_evenly_and_the_uncertain_ones_kept(importance):
    logits = np.random.default_rng(2).normal(0, 3, (4, 7, 7)).astype(np.float32)
    seeds = np.array([5, 6, 7, 2**40], np.int64)
    found = np.asarray(uncertain_points(logits, 20, 3, importance, seeds))
    assert found.shape == (4, 20, 2)
    kept = int(20 * importance)
    drawn = 2 * np.asarray(image_noise(seeds, 2 * (60 + 20 - kept))).reshape(4, -1, 2) - 1
    for own, logit, points in zip(drawn, logits, found, strict=True):
        values = np.abs(hat_sample(logit[..., None], own[:60] * 7))[:, 0]
        np.testing.assert_array_equal(points[:kept], own[np.argsort(values, kind="stable")[:kept]])
        np.testing.assert_array_equal(points[kept:], own[60:])
    assert found.min() >= 0 and found.max() < 1
    if importance:
        sampled = [np.abs(hat_sample(m[..., None], p[:kept] * 7)).mean() for m, p in zip(logits, found, strict=True)]
        assert np.mean(sampled) < 0.6 * np.abs(logits).mean()
    # A RoI's points are its own, whatever is beside it, and others under another seed.
    np.testing.assert_array_equal(uncertain_points(logits[2:3], 20, 3, importance, seeds[2:3])[0], found[2])
    assert not np.isin(uncertain_points(logits[2:3], 20, 3, importance, seeds[1:2])[0, :, 0], found[2, :, 0]).any()


def test_random_points_are_even():
    points = np.asarray(uncertain_points(np.zeros((200, 7, 7), np.float32), 100, 1, 0.0, np.arange(200)))
    counts, _, _ = np.histogram2d(*points.reshape(-1, 2).T, bins=4, range=[[0, 1], [0, 1]])
    np.testing.assert_allclose(counts / counts.sum(), 1 / 16, rtol=0.1)


@pytest.mark.parametrize("kind", ["image", "cells"])
def test_targets_are_the_coverage_at_the_points(kind):
    """Of masks of a whole image, whose cells are pixels, as Detectron2 has it; and of masks cropped to frames."""
    rng = np.random.default_rng(3)
    masks = rng.integers(0, 256, (3, 16, 16)).astype(np.uint8)
    frames = np.array([[0, 0, 16, 16]] * 3, np.float32)
    if kind == "cells":
        frames = np.array([[2, 3, 10, 19], [5, 5, 6, 6], [0, 0, 64, 32]], np.float32)
    rois = np.array([[1, 2, 12, 15], [4, 4, 7, 8], [-5, -5, 70, 20]], np.float32)
    points = rng.random((3, 50, 2)).astype(np.float32)
    found = np.asarray(point_targets(masks, frames, rois, points))
    for own, mask, frame, roi, at in zip(found, masks, frames, rois, points, strict=True):
        places = (roi[:2] + at.astype(np.float64) * (roi[2:] - roi[:2]) - frame[:2]) / (frame[2:] - frame[:2]) * 16
        np.testing.assert_allclose(own, hat_sample(mask[..., None] / 255, places)[:, 0], atol=1e-4)
    flags = masks > 127
    expected = point_targets((flags * 255).astype(np.uint8), frames, rois, points)
    np.testing.assert_allclose(point_targets(flags, frames, rois, points), expected, atol=1e-6)
    assert found.max() <= 1 and np.ptp(found) > 0.5
