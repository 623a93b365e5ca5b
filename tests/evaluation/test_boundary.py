"""Boundary IoU: against the authors' own numbers, and pixel by pixel."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from kmaskrcnn.evaluation import score
from kmaskrcnn.evaluation.boundary import boundary
from kmaskrcnn.results.mask_paste import window_to_rle

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "evaluation.json").read_text())


def _encoded(mask):
    return mask_utils.encode(np.asfortranarray(mask, np.uint8))


def _slow_boundary(mask):
    """Set pixels that have an unset one, or the image's end, within the distance along rows and columns."""
    height, width = mask.shape
    distance = max(1, round(0.02 * math.hypot(height, width)))
    outside = np.pad(~mask, distance, constant_values=True)
    result = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        result[y, x] = outside[y : y + 2 * distance + 1, x : x + 2 * distance + 1].any()
    return result


def test_equals_the_authors_evaluation():
    ours = score(GOLDEN["truth"], GOLDEN["results"], "boundary")
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR")
    expected = GOLDEN["boundary"]["stats"][:9]
    assert [ours.summary[name] for name in names] == pytest.approx(expected, abs=1e-12)
    by_iou = np.array(GOLDEN["boundary"]["precision_by_iou_and_class"])
    np.testing.assert_allclose(ours.precision.mean(1), by_iou, rtol=0, atol=1e-12)
    assert list(ours.class_ap.values()) == pytest.approx(by_iou.mean(0), abs=1e-12)
    assert score(GOLDEN["truth"], GOLDEN["results"], "mask").summary["AP"] > expected[0] + 0.01


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 90), st.integers(1, 90), st.sampled_from([0.02, 0.1, 0.5]))
def test_a_boundary_is_what_lies_near_the_outside(seed, height, width, holes):
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    y0, x0 = rng.integers(0, height), rng.integers(0, width)
    mask[y0 : rng.integers(y0, height) + 1, x0 : rng.integers(x0, width) + 1] = True
    mask &= rng.uniform(0, 1, mask.shape) > holes * rng.integers(0, 2)
    np.testing.assert_array_equal(mask_utils.decode(boundary(_encoded(mask))), _slow_boundary(mask))


def test_an_empty_mask_has_none_and_a_full_image_its_frame():
    assert mask_utils.area(boundary(_encoded(np.zeros((30, 40), bool)))) == 0
    assert mask_utils.area(boundary(_encoded(np.ones((30, 40), bool)))) == 30 * 40 - 28 * 38


def _ap(kind, true, found):
    """AP of one detection of one object, masks (H, W) bool."""

    def row(mask):
        rle, area = _encoded(mask), float(mask.sum())
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        box = mask_utils.toBbox(rle).tolist()
        return {"image_id": 1, "category_id": 1, "segmentation": segmentation, "bbox": box, "area": area}

    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": true.shape[0], "width": true.shape[1]}],
        "annotations": [{**row(true), "id": 1, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    return score(truth, [{**row(found), "score": 0.9}], kind).summary["AP"]


def _share_of_thresholds(iou):
    return np.mean(np.arange(0.5, 1, 0.05) <= iou)


@pytest.mark.parametrize("shift", [4, 87])
def test_a_shift_costs_a_large_object_more_than_in_mask_ap(shift):
    true, found = np.zeros((400, 400), bool), np.zeros((400, 400), bool)
    true[5:305, 50:350] = True
    found[5 + shift : 305 + shift, 50:350] = True
    edges = [_slow_boundary(mask) for mask in (true, found)]
    iou = np.sum(edges[0] & edges[1]) / np.sum(edges[0] | edges[1])
    masks = (300 - shift) / (300 + shift)
    assert _ap("mask", true, found) == pytest.approx(_share_of_thresholds(masks))
    assert _ap("boundary", true, found) == pytest.approx(_share_of_thresholds(iou))
    assert _share_of_thresholds(iou) < _share_of_thresholds(masks)


def test_masks_that_differ_inside_count_by_mask_iou():
    true = np.zeros((64, 64), bool)
    true[2:42, 2:42] = True
    true[44:64:2, 2:62] = True  # stripes are all boundary
    found = true.copy()
    found[10:34, 10:34] = False
    edges = [_slow_boundary(mask) for mask in (true, found)]
    assert np.sum(edges[0] & edges[1]) / np.sum(edges[0] | edges[1]) > 0.8
    masks = found.sum() / true.sum()
    assert 0.7 < masks < 0.75
    assert _ap("boundary", true, found) == pytest.approx(_share_of_thresholds(masks))


def test_five_hundred_objects_of_a_large_image_take_little_memory():
    import tracemalloc

    height, width = 6000, 8000
    rng = np.random.default_rng(0)
    annotations = []
    for number in range(500):
        y, x = (int(v) for v in rng.integers(0, (height - 200, width - 200)))
        rle = window_to_rle(np.ones((200, 180), bool), y, x, height, width)
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        common = {"image_id": 1, "category_id": 1, "bbox": [x, y, 180, 200], "segmentation": segmentation}
        annotations.append({**common, "id": number + 1, "iscrowd": 0, "area": 36_000, "score": 0.9})
    tracemalloc.start()
    try:
        for annotation in annotations:
            boundary(annotation["segmentation"])
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20  # the image as one mask: 48 MB
    finally:
        tracemalloc.stop()
