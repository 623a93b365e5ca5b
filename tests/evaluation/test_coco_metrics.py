"""COCO scores: against pycocotools' own summary, by hand, and where there is nothing."""

import contextlib
import io
import time

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kmaskrcnn.evaluation import score
from kmaskrcnn.evaluation.sparse_eval import SparseCOCOeval

SIDE = 128


def _rle(box):
    x, y, w, h = (round(v) for v in box)
    mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    rle = mask_utils.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def _truth(boxes_by_image, categories=(3, 7)):
    annotations = []
    for image_id, rows in boxes_by_image.items():
        for category, box in rows:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": _rle(box),
                }
            )
    images = [{"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE} for i in boxes_by_image]
    names = [{"id": c, "name": f"class {c}"} for c in categories]
    return {"images": images, "annotations": annotations, "categories": names}


def _result(image_id, category, box, value):
    return {
        "image_id": image_id,
        "category_id": category,
        "score": value,
        "bbox": list(box),
        "segmentation": _rle(box),
    }


def _random_case(seed=3):
    rng = np.random.default_rng(seed)

    def box(least=8, most=110):
        w, h = rng.integers(least, most, 2)
        return [int(rng.integers(0, SIDE - w)), int(rng.integers(0, SIDE - h)), int(w), int(h)]

    truth = _truth({i: [(int(rng.choice([3, 7])), box()) for _ in range(6)] for i in range(1, 8)})
    truth["annotations"][4]["iscrowd"] = 1
    results = []
    for annotation in truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        near = [x, y, max(4, w - int(rng.integers(0, w // 3 + 1))), h]
        results.append(_result(annotation["image_id"], annotation["category_id"], near, float(rng.random())))
        results.append(_result(annotation["image_id"], int(rng.choice([3, 7])), box(), float(rng.random())))
    return truth, results


@pytest.mark.parametrize(("kind", "iou_type"), [("box", "bbox"), ("mask", "segm")])
def test_equals_pycocotools_summary(kind, iou_type):
    truth, results = _random_case()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"info": {}, **truth}
        coco.createIndex()
        keep = ("image_id", "category_id", "score", "bbox" if kind == "box" else "segmentation")
        reference = COCOeval(coco, coco.loadRes([{k: r[k] for k in keep} for r in results]), iou_type)
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    ours = score(truth, results, kind).summary
    expected = [*reference.stats[:6], *reference.stats[6:9]]
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR"]
    assert [ours[n] for n in names] == pytest.approx(expected, abs=1e-12)
    assert 0.05 < ours["AP"] < 0.95


def test_masks_rank_by_their_mask_score_and_boxes_by_the_score():
    """The same scores under either name give the same numbers."""
    truth, results = _random_case()
    rng = np.random.default_rng(0)
    scored = [r | {"mask_score": float(rng.random())} for r in results]
    swapped = [r | {"score": r["mask_score"]} for r in scored]
    plain = {kind: score(truth, results, kind) for kind in ("box", "mask", "boundary")}
    found = {kind: score(truth, scored, kind) for kind in plain}
    assert found["box"].summary == plain["box"].summary
    for kind in ("mask", "boundary"):
        expected = score(truth, [{k: v for k, v in r.items() if k != "mask_score"} for r in swapped], kind)
        assert found[kind].summary == expected.summary != plain[kind].summary
        assert found[kind].counts == expected.counts
        np.testing.assert_array_equal(found[kind].precision, expected.precision)


def _crowded_case(seed):
    """Scores, overlaps and areas with many ties, crowd and ignored objects, and images of nothing."""
    rng = np.random.default_rng(seed)

    def box():
        w, h = rng.choice([4, 8, 40, 100], 2)
        return [int(rng.integers(0, (SIDE - w) // 4 + 1)) * 4, int(rng.integers(0, (SIDE - h) // 4 + 1)) * 4, w, h]

    images = {i: [(int(rng.choice([3, 7])), box()) for _ in range(30 * (i < 4))] for i in range(1, 6)}
    # The first detection is as near to one object as to the other, and the second one is the other.
    images[6] = [(3, (0, 0, 40, 10)), (3, (20, 0, 40, 10))]
    truth = _truth(images)
    results = [_result(6, 3, (10, 0, 40, 10), 0.9), _result(6, 3, (20, 0, 40, 10), 0.8)]
    for annotation in truth["annotations"][:-2]:
        annotation["iscrowd"] = int(rng.random() < 0.1)
        for _ in range(2):
            x, y, w, h = annotation["bbox"]
            near = (x, y, w, max(4, h - 4 * int(rng.integers(0, 3))))
            results.append(_result(annotation["image_id"], annotation["category_id"], near, rng.integers(1, 5) / 4))
    results += [_result(5, 3, box(), 0.75) for _ in range(3)]
    return truth, results


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("kind", "iou_type"), [("box", "bbox"), ("mask", "segm")])
def test_sparse_matching_equals_pycocotools_to_the_last_bit(kind, iou_type, seed):
    truth, results = _crowded_case(seed)
    evals = []
    for evaluation in (COCOeval, SparseCOCOeval):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = {"info": {}, **truth}
            coco.createIndex()
            keep = ("image_id", "category_id", "score", "bbox" if kind == "box" else "segmentation")
            one = evaluation(coco, coco.loadRes([{k: r[k] for k in keep} for r in results]), iou_type)
            one.params.maxDets = [1, 10, 25]
            one.evaluate()
            one.accumulate()
        evals.append(one)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(evals[0].eval[name], evals[1].eval[name])
    matches = 0
    for theirs, ours in zip(*(e.evalImgs for e in evals), strict=True):
        assert (theirs is None) == (ours is None)
        if ours:
            np.testing.assert_array_equal(theirs["dtMatches"] > 0, ours["dtMatches"])
            np.testing.assert_array_equal(theirs["dtIgnore"], ours["dtIgnore"])
            matches += ours["dtMatches"].sum()
    assert matches


def test_an_image_of_two_thousand_objects_is_scored_in_a_second():
    grid = [(3, (x, y, 2, 2)) for x in range(0, 120, 3) for y in range(0, 120, 3)]
    truth = _truth({1: grid + [(7, (x, y, 3, 3)) for _, (x, y, _, _) in grid[:400]]})
    results = [_result(1, a["category_id"], a["bbox"], 0.9) for a in truth["annotations"]]
    begin = time.process_time()
    assert score(truth, results, "mask").summary["AP"] == pytest.approx(1.0)
    assert time.process_time() - begin < 5  # pycocotools: some 20 s


def test_perfect_results_score_one_and_count_every_object():
    truth = _truth({1: [(3, (5, 5, 30, 40)), (7, (60, 60, 20, 20))], 2: [(3, (10, 10, 100, 90))]})
    results = [_result(a["image_id"], a["category_id"], a["bbox"], 0.9) for a in truth["annotations"]]
    for kind in ("box", "mask"):
        scores = score(truth, results, kind)
        assert scores.summary["AP"] == pytest.approx(1.0)
        assert scores.class_ap == pytest.approx({"class 3": 1.0, "class 7": 1.0})
        assert set(scores.counts.values()) == {(3, 0, 0)}
        assert scores.overlap_scores() == [1.0] * 5


def test_counts_take_detections_above_the_working_score_and_leave_crowds_out():
    truth = _truth({1: [(3, (0, 0, 40, 40)), (3, (60, 0, 40, 40)), (3, (0, 60, 40, 40))]})
    truth["annotations"][2]["iscrowd"] = 1
    results = [
        _result(1, 3, (0, 0, 40, 32), 0.9),  # IoU 0.8
        _result(1, 3, (60, 0, 40, 40), 0.4),  # right, but below the working score
        _result(1, 3, (0, 60, 20, 20), 0.8),  # in the crowd: neither right nor wrong
        _result(1, 7, (60, 60, 20, 20), 0.7),  # of no object
    ]
    counts = score(truth, results, "mask").counts
    assert counts[0.5] == (1, 1, 1)
    assert counts[0.7] == (1, 1, 1)
    assert counts[0.9] == (0, 2, 2)
    assert score(truth, results, "mask", working_score=0.3).counts[0.5] == (2, 1, 0)


def test_no_detections_score_zero_and_no_objects_minus_one():
    truth = _truth({1: [(3, (5, 5, 30, 40))]})
    nothing = score(truth, [], "mask")
    assert nothing.summary["AP"] == 0.0
    assert nothing.counts[0.5] == (0, 0, 1)
    empty = score(_truth({1: []}), [], "box")
    assert empty.summary["AP"] == -1.0
    assert empty.overlap_scores()[0] == -1.0


def test_more_than_a_hundred_detections_count_where_asked():
    boxes = [(3, (x, y, 4, 4)) for x in range(0, 120, 8) for y in range(0, 120, 8)]  # 225 objects
    truth = _truth({1: boxes})
    results = [_result(1, 3, box, 0.9) for _, box in boxes]
    cut = score(truth, results, "mask", max_detections=100)
    assert cut.max_detections == 100
    assert cut.summary["AR"] == pytest.approx(100 / 225)
    every = score(truth, results, "mask")  # as many as the image has objects
    assert every.max_detections == 225
    assert every.summary["AR"] == pytest.approx(1.0)
    assert score(truth, results, "mask", image_ids=[]).max_detections == 100


def test_only_the_images_asked_for_are_scored():
    truth = _truth({1: [(3, (5, 5, 30, 40))], 2: [(3, (5, 5, 30, 40))]})
    results = [_result(1, 3, (5, 5, 30, 40), 0.9)]
    assert score(truth, results, "box").counts[0.5] == (1, 0, 1)
    assert score(truth, results, "box", image_ids=[1]).counts[0.5] == (1, 0, 0)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="box, mask or boundary"):
        score(_truth({1: []}), [], "keypoints")
