"""Masks kept by their own rectangles."""

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.results.pasted_masks import PastedMasks, cut_window, trim_window, union_window


def _random_windows(count=6, seed=0):
    rng = np.random.default_rng(seed)
    windows = []
    for _ in range(count):
        h, w = rng.integers(1, 12, 2)
        windows.append((rng.random((h, w)) < 0.3, int(rng.integers(0, 28)), int(rng.integers(0, 38))))
    return [*windows, (np.zeros((3, 4), bool), 5, 5)]


def _paste(window, height=40, width=50):
    mask, top, left = window
    whole = np.zeros((height, width), bool)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return whole


def test_masks_come_back_at_their_place():
    windows = _random_windows()
    masks = PastedMasks(windows)
    assert len(masks) == 7
    for index, window in enumerate(windows):
        np.testing.assert_array_equal(_paste(masks.window(index)), _paste(window))
        expected = mask_utils.encode(np.asfortranarray(_paste(window), np.uint8))
        assert masks.rle(index, 40, 50) == expected
    chosen = masks[np.array([4, 1])]
    np.testing.assert_array_equal(_paste(chosen.window(0)), _paste(windows[4]))
    assert len(masks[np.arange(7) > 4]) == 2
    assert len(PastedMasks()) == 0


def test_trim_union_and_cut_are_those_of_whole_masks():
    windows = _random_windows(seed=1)
    for window in windows:
        trimmed = trim_window(window)
        np.testing.assert_array_equal(_paste(trimmed), _paste(window))
        if window[0].any():
            assert all(side.any() for side in (*trimmed[0][[0, -1]], *trimmed[0].T[[0, -1]]))
        np.testing.assert_array_equal(cut_window(window, 4, 8, 20, 30), _paste(window)[4:20, 8:30])
    union = np.logical_or.reduce([_paste(w) for w in windows])
    np.testing.assert_array_equal(_paste(union_window(windows)), union)
    assert union_window([])[0].size == 0
