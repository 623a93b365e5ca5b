"""How well anchors meet boxes, by the doctor and by the recipe."""

import numpy as np
import pytest

from kmaskrcnn.config import Config
from kmaskrcnn.data import load_coco, make_shapes
from kmaskrcnn.data.doctor.examine import examine
from kmaskrcnn.data.doctor.report import report_page
from kmaskrcnn.data.doctor.statistics import best_anchor_iou, coverage, measure
from kmaskrcnn.data.readers import read_raw
from kmaskrcnn.ops.anchors import cell_anchors, grid_anchors
from kmaskrcnn.recipe import Machine, Start, facts_of, make_recipe


def test_best_anchor_is_the_best_of_all_anchors():
    rng = np.random.default_rng(0)
    height, width = 200, 264
    corner = rng.uniform(0, (height - 40, width - 40), (40, 2))
    boxes = np.concatenate([corner, np.minimum(corner + rng.uniform(4, 160, (40, 2)), (height, width))], axis=1)
    sizes, ratios = (16.0, 32.0, 64.0, 128.0, 256.0), (0.5, 1.0, 2.0)
    found = best_anchor_iou(boxes, np.tile([height, width], (40, 1)), sizes, ratios)
    anchors = []
    for stride, side in zip((4, 8, 16, 32, 64), sizes, strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        anchors.append(np.asarray(grid_anchors(rows, columns, stride, cell_anchors(side, ratios))))
    anchors = np.concatenate(anchors).astype(np.float64)
    low = np.maximum(boxes[:, None, :2], anchors[None, :, :2])
    overlap = np.maximum(np.minimum(boxes[:, None, 2:], anchors[None, :, 2:]) - low, 0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes, anchors)]
    iou = overlap / (areas[0][:, None] + areas[1][None] - overlap)
    np.testing.assert_allclose(found, iou.max(axis=1), atol=1e-6)


def test_the_table_of_anchors_has_the_number_of_the_recipe(tmp_path):
    path = make_shapes(tmp_path, 6, 96, seed=3)
    start = Start("imagenet", {"backbone": "mobilenet_v2", "init_weights": "imagenet"}, "here")
    for given in ({}, {"crop_size": 64, "scale_jitter": (0.5, 1.5)}, {"crop_size": 0, "scale_jitter": ()}):
        config = Config().replace(resize_mode="native", **given)
        given = {"resize_mode": "native", **given}
        recipe = make_recipe(facts_of(load_coco(path)), Machine(0, 24.0), start, config, given)
        (reason,) = [choice.reason for choice in recipe.choices if choice.name == "anchor_sizes"]
        statistics = measure(examine(read_raw(path)), recipe.config.data)
        model = recipe.config.model
        own = coverage(statistics, recipe.config, tuple(model.anchor_sizes), tuple(model.anchor_aspect_ratios))
        assert f"mean IoU of {own.in_training:.2f} between" in reason
        page = report_page(examine(read_raw(path)), None, recipe.config, [])
        assert f"<td class=n>{own.in_training:.2f}</tr>" in page
    # Without crops and jitter: the boxes as they are.
    sizes = statistics.network_sizes[statistics.box_images]
    iou = best_anchor_iou(statistics.scaled, sizes, own.anchor_sizes, own.ratios)
    assert own.in_training == pytest.approx(np.minimum(iou, 0.7).mean())
    assert own.mean == pytest.approx(iou.mean())
