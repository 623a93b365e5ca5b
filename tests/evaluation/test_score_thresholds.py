"""The threshold of best F1, against every threshold tried."""

import numpy as np
import pytest

from kmaskrcnn.evaluation.error_kinds import ImageMatches
from kmaskrcnn.evaluation.score_thresholds import best_thresholds


def _image(objects, found):
    """An image of objects by class, and (score, class, matched) of its detections."""
    found = sorted(found, reverse=True)
    results = [{"score": score, "category_id": category} for score, category, _ in found]
    matched = np.array([owner for *_, owner in found], int)
    return ImageMatches({}, [{"category_id": c} for c in objects], results, matched, np.full(len(found), -1))


def _f1(images, category, threshold):
    right = false = objects = 0
    for image in images:
        objects += sum(o["category_id"] == category for o in image.objects)
        for result, owner in zip(image.results, image.matched, strict=True):
            if result["category_id"] == category and result["score"] >= threshold and owner != -2:
                right, false = right + (owner >= 0), false + (owner < 0)
    precision, recall = right / max(right + false, 1), right / max(objects, 1)
    return 2 * precision * recall / max(precision + recall, 1e-12), precision, recall


def _calibration_error(images, category):
    bins = [[] for _ in range(10)]
    for image in images:
        for result, owner in zip(image.results, image.matched, strict=True):
            if result["category_id"] == category and owner != -2:
                bins[int(result["score"] * 10)].append((result["score"], owner >= 0))
    gaps = [abs(sum(score - right for score, right in rows)) for rows in bins]
    return sum(gaps) / max(sum(map(len, bins)), 1)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_threshold_has_a_better_f1(seed):
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(4):
        objects = rng.choice([1, 5], 6).tolist()
        found = [(float(np.float32(rng.beta(3, 2))), objects[i], i) for i in range(6) if rng.uniform() < 0.7]
        found += [
            (round(float(rng.beta(2, 4)), 1), int(rng.choice([1, 5])), int(rng.choice([-1, -1, -2]))) for _ in "12345"
        ]
        images.append(_image(objects, found))
    thresholds = best_thresholds(images, {1: "cat", 5: "dog"})
    assert list(thresholds) == ["cat", "dog"]
    for category, best in zip((1, 5), thresholds.values(), strict=True):
        scores = [r["score"] for image in images for r in image.results]
        tried = max(_f1(images, category, score)[0] for score in scores)
        assert best.f1 == pytest.approx(tried)
        assert (best.f1, best.precision, best.recall) == pytest.approx(_f1(images, category, best.threshold))
        assert best.f1_at_working_score == pytest.approx(_f1(images, category, 0.5)[0])
        assert best.calibration_error == pytest.approx(_calibration_error(images, category))


def test_the_threshold_lies_between_the_last_kept_and_the_next_score():
    image = _image([1, 1], [(0.9, 1, 0), (0.8, 1, 1), (0.3, 1, -1)])
    assert best_thresholds([image], {1: "cat"})["cat"].threshold == 0.55
    near = _image([1], [(0.7000001, 1, 0), (0.7, 1, -1)])
    assert 0.7 < best_thresholds([near], {1: "cat"})["cat"].threshold <= 0.7000001
    # Equal scores stay together.
    tied = _image([1, 1], [(0.9, 1, 0), (0.5, 1, 1), (0.5, 1, -1)])
    assert best_thresholds([tied], {1: "cat"})["cat"].f1 == pytest.approx(4 / 5)
    # Of several that are as good, the one with fewer detections.
    level = _image([1, 1, 1], [(0.9, 1, 0), (0.6, 1, 1), (0.5, 1, -1), (0.5, 1, -1), (0.4, 1, 2)])
    assert best_thresholds([level], {1: "cat"})["cat"].threshold == 0.55


def test_a_class_without_a_right_detection_has_no_threshold():
    image = _image([1], [(0.9, 1, -1), (0.9, 2, -1), (0.8, 3, -2)])
    for best, objects in zip(
        best_thresholds([image], {1: "a", 2: "b", 3: "c", 4: "d"}).values(), (1, 0, 0, 0), strict=True
    ):
        assert (best.objects, best.threshold, best.f1) == (objects, None, 0.0)
    assert best_thresholds([image], {1: "a"})["a"].calibration_error == pytest.approx(0.9)
    assert best_thresholds([image], {4: "d"})["d"].calibration_error is None
