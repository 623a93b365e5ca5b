"""The stored form of masks against the full-size mask that pycocotools makes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from kmaskrcnn.data.sets.masks import CropCache, decode_crop, mask_frame, rasterize_polygons, resample_area
from kmaskrcnn.results.mask_paste import paste_mask

SIDE = 160


def _iou(a, b):
    union = (a | b).sum()
    return (a & b).sum() / union if union else 1.0


@st.composite
def polygons(draw):
    """A star-shaped polygon inside the image with a radius of 12 to 70 pixels."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    count = draw(st.integers(5, 14))
    radius = draw(st.floats(12, 70))
    center = rng.uniform(radius, SIDE - radius, 2) if radius < SIDE / 2 else np.array([SIDE / 2] * 2)
    angles = np.sort(rng.uniform(0, 2 * np.pi, count))
    radii = radius * rng.uniform(0.6, 1.0, count)
    points = center + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return points.reshape(-1)


def _box(mask):
    y, x = np.nonzero(mask)
    return float(y.min()), float(x.min()), float(y.max() + 1), float(x.max() + 1)


@settings(max_examples=60, deadline=None)
@given(polygons())
def test_stored_polygons_keep_their_shape(polygon):
    full = mask_utils.decode(mask_utils.frPyObjects([polygon.tolist()], SIDE, SIDE))[..., 0].astype(bool)
    if full.sum() < 100:
        return
    frame = mask_frame([polygon], _box(full), SIDE, SIDE)
    stored = rasterize_polygons([polygon], np.array(frame), 112) / 255
    # pycocotools counts a pixel on the outline as inside, which is worth half a pixel along it.
    outline = 2 * (frame[2] - frame[0] + frame[3] - frame[1])
    difference = (paste_mask(stored, np.array(frame), SIDE, SIDE) ^ full).sum()
    assert difference <= 0.8 * outline


def test_cells_of_large_polygons_are_the_mean_of_their_quarters():
    polygon = np.array([3.3, 5.1, 140.2, 20.7, 90.5, 150.9, 20.0, 99.0])
    fine = polygon * 56 / SIDE
    mask = mask_utils.decode(mask_utils.frPyObjects([fine.tolist()], 56, 56))[..., 0].astype(int)
    expected = 255 * mask.reshape(28, 2, 28, 2).sum((1, 3)) // 4
    assert len(np.unique(expected)) == 5
    found = rasterize_polygons([polygon], np.array([0, 0, SIDE, SIDE]), 28)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("cells", [28, 112])
@pytest.mark.parametrize("shape", [(480, 640), (7, 3000), (3000, 7), (64, 48), (1, 1)])
def test_cells_of_a_crop_are_exact_in_area_and_made_on_one_thread(monkeypatch, shape, cells):
    crop = np.random.default_rng(0).integers(0, 2, shape, np.uint8)
    # Each pixel as `cells` parts a side, so that the cells are whole: sums without a fraction.
    total = crop.astype(np.int64)
    for axis in (0, 1):
        sums = np.concatenate([[0 * total.take(0, axis)], np.cumsum(np.moveaxis(total, axis, 0), 0)])
        edges = np.arange(cells + 1) * shape[axis]
        whole, part = edges // cells, edges % cells
        upper = sums[np.minimum(whole + 1, shape[axis])]
        total = np.moveaxis(np.diff(sums[whole] * cells + (upper - sums[whole]) * part[:, None], axis=0), 0, axis)
    exact = total * 255 / (shape[0] * shape[1])
    products, matmul = [], np.matmul

    def recorded(a, b, **options):
        products.append(a.shape[0] * a.shape[1] * b.shape[1])
        return matmul(a, b, **options)

    monkeypatch.setattr(np, "matmul", recorded)
    assert np.abs(resample_area(crop, cells) - exact).max() <= 0.5 + 1e-3
    assert products
    assert max(products) <= 2**18  # from where on OpenBLAS takes threads


@settings(max_examples=60, deadline=None)
@given(polygons(), st.sampled_from([28, 56, 112]))
def test_stored_rle_keeps_area_and_shape(polygon, cells):
    rle = mask_utils.merge(mask_utils.frPyObjects([polygon.tolist()], SIDE, SIDE))
    full = mask_utils.decode(rle).astype(bool)
    if full.sum() < 100:
        return
    frame = np.array(mask_frame(rle, _box(full), SIDE, SIDE))
    crop = decode_crop(rle, frame)
    stored = resample_area(crop, cells) / 255
    area = (frame[2] - frame[0]) * (frame[3] - frame[1])
    assert stored.mean() * area == pytest.approx(full.sum(), rel=0.01)
    assert _iou(paste_mask(stored, frame, SIDE, SIDE), full) > (0.9 if cells == 28 else 0.95)


def test_a_crop_of_whole_pixels_at_its_own_size_is_exact():
    rng = np.random.default_rng(1)
    mask = (rng.random((30, 20)) > 0.5).astype(np.uint8)
    coverage = resample_area(np.repeat(np.repeat(mask, 2, 0), 3, 1), 60)
    np.testing.assert_array_equal(coverage, np.repeat(np.repeat(mask, 2, 0), 3, 1) * np.uint8(255))


def test_cache_gives_the_same_crops_within_its_limit():
    cache = CropCache(limit_bytes=200)
    for _ in range(2):
        for key in range(20):
            mask = np.asfortranarray(np.random.default_rng(key).random((24, 24)) > 0.6, np.uint8)
            rle = mask_utils.encode(mask)
            frame = np.array([2.0, 3.0, 20.0, 23.0])
            np.testing.assert_array_equal(cache.crop(key, rle, frame), mask[2:20, 3:23])
    assert 0 < cache.used_bytes <= 200


def test_a_crop_is_decoded_from_the_runs_of_its_columns_alone(monkeypatch):
    rng = np.random.default_rng(0)
    shapes = [rng.random((40, 60)) > 0.5, np.ones((40, 60)), np.pad(np.ones((10, 12)), ((13, 17), (20, 28)))]
    rles = [mask_utils.encode(np.asfortranarray(mask, np.uint8)) for mask in shapes]
    monkeypatch.setattr(mask_utils, "decode", None)  # which would make an array of the image's size
    for mask, rle in zip(shapes, rles, strict=True):
        for y0, x0, y1, x1 in ((0, 0, 40, 60), (13, 20, 23, 32), (39, 59, 40, 60), (0, 5, 40, 6)):
            np.testing.assert_array_equal(decode_crop(rle, np.array([y0, x0, y1, x1])), mask[y0:y1, x0:x1])
