import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from kmaskrcnn.results.mask_paste import paste_mask, paste_to_rle, rle_to_window, window_to_rle


def numpy_paste(mask, box, height, width):
    """Pixel by pixel in float64: bilinear at the pixel's center, zero outside the mask."""
    y0, x0, y1, x1 = np.asarray(box, np.float64)
    out = np.zeros((height, width))
    if y1 <= y0 or x1 <= x0:
        return out
    padded = np.pad(mask.astype(np.float64), 1)
    m = mask.shape[0]
    for y in range(height):
        for x in range(width):
            v, u = (y + 0.5 - y0) / (y1 - y0) * m - 0.5, (x + 0.5 - x0) / (x1 - x0) * m - 0.5
            if not (-1 < v < m and -1 < u < m):
                continue
            i, j = int(np.floor(v)), int(np.floor(u))
            q = padded[i + 1 : i + 3, j + 1 : j + 3]
            out[y, x] = np.array([1 - (v - i), v - i]) @ q @ np.array([1 - (u - j), u - j])
    return out


coordinate = st.floats(-15, 35)


@settings(max_examples=50, deadline=None)
@given(st.tuples(coordinate, coordinate, coordinate, coordinate), st.integers(0, 1000))
def test_paste_equals_sampling_at_pixel_centers(box, seed):
    mask = np.random.default_rng(seed).uniform(0, 1, (6, 6)).astype(np.float32)
    expected = numpy_paste(mask, box, 20, 25)
    actual = paste_mask(mask, np.array(box), 20, 25)
    clear = np.abs(expected - 0.5) > 1e-4  # on the edge itself float32 may fall on either side
    np.testing.assert_array_equal(actual[clear], expected[clear] >= 0.5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 4), st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0]))
def test_window_code_is_that_of_pycocotools(seed, top, left, share):
    window = np.random.default_rng(seed).uniform(0, 1, (6, 5)) < share
    image = np.zeros((10, 10), np.uint8)
    image[top : top + 6, left : left + 5] = window
    assert window_to_rle(window, top, left, 10, 10) == mask_utils.encode(np.asfortranarray(image))


def test_whole_columns_run_on_into_each_other():
    window = np.ones((10, 4), bool)
    image = np.zeros((10, 12), np.uint8)
    image[:, 8:] = 1
    assert window_to_rle(window, 0, 8, 10, 12) == mask_utils.encode(np.asfortranarray(image))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 70), st.integers(1, 70), st.sampled_from([0.0, 0.01, 0.5, 0.99, 1.0]))
def test_a_code_is_read_as_pycocotools_reads_it(seed, height, width, share):
    image = np.random.default_rng(seed).uniform(0, 1, (height, width)) < share
    rle = mask_utils.encode(np.asfortranarray(image, np.uint8))
    for counts in (rle["counts"], rle["counts"].decode()):
        window, top, left = rle_to_window({"size": rle["size"], "counts": counts})
        columns = np.flatnonzero(image.any(0))
        np.testing.assert_array_equal(
            window, image[:, columns[0] : columns[-1] + 1] if len(columns) else np.zeros((0, 0))
        )
        assert (top, left) == (0, columns[0] if len(columns) else 0)


def test_a_small_object_of_a_huge_image_is_read_in_memory_of_its_columns():
    rle = window_to_rle(np.ones((90, 30), bool), 30_000, 50_000, 60_000, 60_000)  # numbers of many characters
    window, top, left = rle_to_window(rle)
    assert (window.shape, top, left) == ((60_000, 30), 0, 50_000)
    assert window.sum() == 2700
    assert window[30_000:30_090].all()


def test_paste_to_rle_is_the_pasted_mask_and_boxes_outside_are_empty():
    mask = np.random.default_rng(0).uniform(0, 1, (28, 28)).astype(np.float32)
    box = np.array([3.3, 5.8, 31.2, 44.9])
    decoded = mask_utils.decode(paste_to_rle(mask, box, 30, 40))
    np.testing.assert_array_equal(decoded, paste_mask(mask, box, 30, 40))
    for empty in ([50, 50, 60, 60], [5, 5, 5, 9], [np.nan, 0, 5, 5]):
        assert mask_utils.area(paste_to_rle(mask, np.array(empty, float), 30, 40)) == 0


def test_a_full_mask_fills_its_box():
    pasted = paste_mask(np.ones((28, 28), np.float32), np.array([2.0, 3, 12, 17]), 20, 20)
    assert pasted[2:12, 3:17].all() and pasted.sum() == 140
