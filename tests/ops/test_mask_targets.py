import numpy as np
import pytest
from keras import ops

from kmaskrcnn.ops.mask_targets import mask_targets


def numpy_target(mask, frame, roi, size):
    """Two bilinear samples a bin and side, point by point."""
    m = mask.shape[-1]
    padded = np.pad(mask.astype(np.float64) / 255, 1)
    out = np.zeros((2 * size, 2 * size))
    for i in range(2 * size):
        for j in range(2 * size):
            y = roi[0] + (i + 0.5) / (2 * size) * (roi[2] - roi[0])
            x = roi[1] + (j + 0.5) / (2 * size) * (roi[3] - roi[1])
            v = np.clip((y - frame[0]) / (frame[2] - frame[0]) * m - 0.5, -1, m)
            u = np.clip((x - frame[1]) / (frame[3] - frame[1]) * m - 0.5, -1, m)
            v0, u0 = min(int(np.floor(v)), m - 1), min(int(np.floor(u)), m - 1)
            fv, fu = v - v0, u - u0
            q = padded[v0 + 1 : v0 + 3, u0 + 1 : u0 + 3]
            out[i, j] = np.array([1 - fv, fv]) @ q @ np.array([1 - fu, fu])
    return out.reshape(size, 2, size, 2).mean(axis=(1, 3))


def test_soft_targets_equal_point_by_point_sampling():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 256, (3, 12, 12)).astype(np.uint8)
    frames = np.array([[10, 20, 34, 50], [0, 0, 12, 12], [5, 5, 6, 9]], np.float32)
    rois = np.array([[5, 25, 40, 45], [3.3, 2.1, 9.7, 8.8], [4, 4, 7, 10]], np.float32)
    actual = mask_targets(ops.array(masks), ops.array(frames), ops.array(rois), 7, binary=False)
    for i in range(3):
        np.testing.assert_allclose(actual[i], numpy_target(masks[i], frames[i], rois[i], 7), atol=1e-5)


def test_roi_on_the_frame_returns_the_mask():
    mask = np.zeros((1, 28, 28), np.uint8)
    mask[0, 4:20, 7:23] = 255
    box = np.array([[100, 50, 156, 106]], np.float32)
    actual = np.asarray(mask_targets(ops.array(mask), ops.array(box), ops.array(box), 28))
    np.testing.assert_array_equal(actual, mask / 255)


def test_roi_beside_the_object_is_empty():
    mask = np.full((1, 28, 28), 255, np.uint8)
    target = mask_targets(ops.array(mask), ops.array([[0.0, 0, 10, 10]]), ops.array([[20.0, 20, 30, 30]]), 14)
    assert np.asarray(target).sum() == 0


@pytest.mark.parametrize(
    "masks", [np.full((1, 8, 8), 255, np.uint8), np.ones((1, 8, 8), bool), np.ones((1, 8, 8), np.float32)]
)
def test_a_full_mask_is_full_in_every_type(masks):
    box = np.array([[0, 0, 20, 20]], np.float32)
    np.testing.assert_array_equal(mask_targets(masks, box, box, 8), 1.0)


@pytest.mark.parametrize("masks", [np.ones((1, 8, 8), np.uint8), np.full((1, 8, 8), 255.0, np.float32)])
def test_masks_of_another_range_are_refused(masks):
    box = np.array([[0, 0, 20, 20]], np.float32)
    with pytest.raises(ValueError, match=r"masks: .*expected 0\.\."):
        mask_targets(masks, box, box, 8)
