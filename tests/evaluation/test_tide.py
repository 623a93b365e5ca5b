"""TIDE: against the authors' package, and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from kmaskrcnn.evaluation import score
from kmaskrcnn.evaluation.tide import tide_errors

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "evaluation.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["tide"])
def test_equals_tidecv(case):
    kind, limit = case.split()
    ours = tide_errors(GOLDEN["truth"], GOLDEN["results"], kind, int(limit))
    expected = GOLDEN["tide"][case]  # in percent
    assert ours.ap * 100 == pytest.approx(expected["ap"], abs=1e-9)
    assert {k: v * 100 for k, v in ours.main.items()} == pytest.approx(expected["main"], abs=1e-9)
    assert {k: v * 100 for k, v in ours.special.items()} == pytest.approx(expected["special"], abs=1e-9)


def _row(x, score=None, category=1, image_id=1, width=10, **more):
    row = {"image_id": image_id, "category_id": category, "bbox": [x, 0, width, 10], "area": 10 * width, **more}
    return row if score is None else {**row, "score": score}


def _truth(annotations, images=1):
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 200} for i in range(1, images + 1)],
        "annotations": [{**a, "id": i, "iscrowd": a.get("iscrowd", 0)} for i, a in enumerate(annotations, 1)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


@pytest.mark.parametrize(
    ("kind", "wrong", "cost"),
    [
        # A cat at 0.9, the error, a cat: precision 2/3 at the recalls above 1/2, in one class of two.
        ("Dupe", _row(1, 0.8), 50 / 101 / 3 / 2),
        ("Bkg", _row(100, 0.8), 50 / 101 / 3 / 2),
        # A dog beside a cat (IoU 0.25), before the only true dog: precision 1/2.
        ("Both", _row(6, 0.8, category=2), 1 / 2 / 2),
    ],
)
def test_an_error_costs_what_ap_gains_without_it(kind, wrong, cost):
    truth = _truth([_row(0), _row(50), _row(150, category=2)])
    results = [_row(0, 0.9), wrong, _row(50, 0.7), _row(150, 0.6, category=2)]
    errors = tide_errors(truth, results, "box")
    assert errors.ap == pytest.approx(1 - cost)
    assert errors.main == pytest.approx({**dict.fromkeys(errors.main, 0.0), kind: cost})
    assert errors.special == pytest.approx({"FalsePos": cost, "FalseNeg": 0.0})


def test_a_misplaced_box_and_a_wrong_class_are_corrected_to_hits():
    truth = _truth([_row(0), _row(50), _row(150, category=2)])
    misplaced = tide_errors(truth, [_row(0, 0.9), _row(54, 0.8), _row(150, 0.6, category=2)], "box")
    assert misplaced.main["Loc"] == pytest.approx((1 - 51 / 101) / 2)
    assert misplaced.main["Miss"] == 0.0  # the object is not missed: better placed it were found
    confused = tide_errors(truth, [_row(0, 0.9), _row(50, 0.8, category=2), _row(150, 0.6, category=2)], "box")
    assert confused.main["Cls"] == pytest.approx(1 - confused.ap)
    assert confused.main["Miss"] == 0.0


def test_a_missed_object_and_an_image_without_detections():
    truth = _truth([_row(0), _row(0, image_id=2)], images=2)
    errors = tide_errors(truth, [_row(0, 0.9)], "box")
    assert errors.ap == pytest.approx(51 / 101)
    assert errors.main["Miss"] == errors.special["FalseNeg"] == pytest.approx(50 / 101)
    alone = tide_errors(truth, [_row(0, 0.9)], "box", image_ids=[1])
    assert alone.ap == pytest.approx(1.0)
    assert set(alone.main.values()) == {0.0}


def test_the_best_scored_of_two_candidates_is_corrected_and_crowds_take_detections():
    truth = _truth([_row(0), _row(100, iscrowd=1, width=60)])
    errors = tide_errors(truth, [_row(4, 0.5), _row(-4, 0.9), _row(110, 0.95)], "box")
    assert errors.ap == 0.0
    assert errors.main["Loc"] == pytest.approx(1.0)  # the other candidate is left out, not a false positive
    assert errors.main["Bkg"] == 0.0


def test_ap_is_that_of_coco_where_every_class_has_objects():
    truth = {**GOLDEN["truth"], "categories": GOLDEN["truth"]["categories"][:2]}
    results = [r for r in GOLDEN["results"] if r["category_id"] != 12]
    for kind in ("box", "mask"):
        # Of other categories nothing counts.
        assert tide_errors(truth, GOLDEN["results"], kind) == tide_errors(truth, results, kind)
        assert tide_errors(truth, results, kind).ap == pytest.approx(score(truth, results, kind).summary["AP50"])


def test_masks_rank_by_their_mask_score():
    rng = np.random.default_rng(0)
    results = [r | {"mask_score": float(rng.random())} for r in GOLDEN["results"]]
    swapped = [r | {"score": r["mask_score"]} for r in results]
    truth = GOLDEN["truth"]
    assert tide_errors(truth, results, "box") == tide_errors(truth, GOLDEN["results"], "box")
    assert tide_errors(truth, results, "mask") == tide_errors(truth, swapped, "mask")
    assert tide_errors(truth, results, "mask", 3) == tide_errors(truth, swapped, "mask", 3)
    assert tide_errors(truth, results, "mask") != tide_errors(truth, GOLDEN["results"], "mask")


def test_nothing_at_all():
    assert tide_errors(_truth([]), [], "box").ap == -1.0
    errors = tide_errors(_truth([_row(0)]), [], "box")
    assert errors.ap == 0.0
    # Without an object and a detection the class is no class, as in tidecv.
    assert errors.main["Miss"] == 0.0
