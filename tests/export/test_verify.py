"""The comparison of an artifact with its model: what passes, and that what must not does not."""

import dataclasses

import numpy as np
import pytest

from kmaskrcnn.export.client import ImageError
from kmaskrcnn.export.verify import BOUNDS, bounds_of, verify
from kmaskrcnn.results.prediction import Prediction
from tests.export.conftest import LABELS

BOUND = BOUNDS["saved_model"]


def reference(path):
    """Three objects, the last too weak to be looked for."""
    boxes = np.array([[10, 10, 40, 50], [50, 20, 90, 60], [5, 60, 30, 90]], np.float32)
    masks = np.random.default_rng(0).random((3, 28, 28)).astype(np.float32)
    return Prediction(100, 100, boxes, np.array([0.9, 0.6, 0.2], np.float32), np.array([1, 2, 3]), masks, LABELS)


def truth_of(prediction):
    """Its objects as the ground truth of one image, for `verify`."""
    truth = {
        "images": [{"id": 7, "file_name": "a", "height": 100, "width": 100}],
        "categories": [{"id": i, "name": n} for i, n in zip(LABELS.category_ids, LABELS.class_names, strict=True)],
        "annotations": [{"id": i, "iscrowd": 0, "area": 1000.0, **r} for i, r in enumerate(prediction.to_coco(7), 1)],
    }
    return truth, [7]


def changed(**fields):
    return lambda path: dataclasses.replace(
        reference(path), **{n: f(getattr(reference(path), n)) for n, f in fields.items()}
    )


def test_the_model_itself_passes():
    report = verify(["a", "b"], reference, reference, BOUND)
    assert report.problems == ()
    assert "images compared            2" in str(report)
    assert "matched                    4 of 4 (100.0%)" in str(report)


def test_a_model_that_finds_nothing_is_not_verified():
    """Nothing to find again is no success: the report says so, and what to do."""

    def weak(path):
        return dataclasses.replace(reference(path), scores=np.array([0.2, 0.1, 0.05], np.float32))

    for artifact in (weak, lambda path: weak(path).above(1.0)):
        report = verify(["a"], weak, artifact, BOUND)
        assert report.problems == ("the model finds nothing with a score of at least 0.3 in these images",)
        assert "matched  " not in str(report) and "100.0%" not in str(report)
        assert "nothing was compared: train on, or verify on images with objects" in report.verdict


def test_the_verdict_says_whether_the_file_is_usable():
    truth = truth_of(reference("a"))
    assert verify(["a"], reference, reference, BOUND).verdict.startswith("usable")
    moved = changed(scores=lambda x: x - np.float32(0.01))
    assert verify(["a"], reference, moved, BOUND).verdict.startswith("not known: verify on images with ground truth")
    assert verify(["a"], reference, moved, BOUND, truth).verdict.startswith("usable: single detections differ")
    lost = verify(["a"], reference, lambda path: reference(path).above(1.0), BOUND, truth)
    assert lost.verdict.startswith("not usable") and lost.verdict in str(lost)


def test_order_and_weak_detections_do_not_count():
    def artifact(path):
        found = reference(path)
        fields = ("boxes", "scores", "classes", "mask_probabilities")
        return dataclasses.replace(found, **{n: getattr(found, n)[[1, 0]] for n in fields})

    assert verify(["a"], reference, artifact, BOUND).problems == ()


@pytest.mark.parametrize(
    ("artifact", "words"),
    [
        (changed(boxes=lambda x: x + np.float32(1)), "box (share of side) differs by"),
        (changed(scores=lambda x: x - np.float32(0.01)), "score differs by 1.00e-02"),
        (changed(mask_probabilities=lambda x: x * np.float32(0.9)), "mask probability differs by"),
        (changed(mask_probabilities=lambda x: x * np.nan), "mask probability differs by inf"),
        (changed(classes=lambda x: x[::-1]), "only 50.0% of the model's detections are matched"),
        (lambda path: reference(path).above(0.7), "only 50.0% of the model's detections are matched"),
        (lambda path: reference(path).above(1.0), "only 0.0% of the model's detections are matched"),
    ],
)
def test_each_difference_is_a_problem(artifact, words):
    problems = verify(["a"], reference, artifact, BOUND).problems
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize(("moved", "passes"), [(10, True), (11, False)])
def test_one_in_twenty_may_be_another_where_weights_are_rounded(moved, passes):
    """200 detections of 100 images; NMS keeps another candidate in some."""
    other = changed(boxes=lambda x: x + np.float32([[0, 0, 9, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    pictures = [str(i) for i in range(100)]
    report = verify(pictures, reference, lambda p: (other if int(p) < moved else reference)(p), BOUNDS["float16"])
    assert (report.problems == ()) == passes
    assert "box (share of side)        95% within" in str(report) and "worst 3.00e-01" in str(report)
    assert verify(pictures[:1], reference, other, BOUNDS["float16"]).problems  # of two, neither may


def test_refused_pictures_are_named_and_prove_nothing():
    def artifact(path):
        raise ImageError("too large")

    report = verify(["a.jpg"], reference, artifact, BOUND)
    assert "refused: a.jpg: too large" in report.lines
    assert report.problems == ("no image could be compared",)


def test_lower_ap_is_a_problem():
    truth = truth_of(reference("a"))
    assert verify(["a"], reference, reference, BOUND, truth).problems == ()
    weak = changed(scores=lambda x: x, boxes=lambda x: x + np.float32([0, 0, 0, 30]))
    problems = verify(["a"], reference, weak, BOUNDS["int8"], truth).problems
    assert any(problem.startswith("box AP falls by") for problem in problems), problems


def test_a_match_that_falls_below_the_score_is_told():
    """It is found again, though it is not among the artifact's own detections above 0.3."""
    artifact = changed(scores=lambda s: np.where(s == np.float32(0.6), np.float32(0.29), s))
    lines = verify(["a"], reference, artifact, BOUNDS["int8"]).lines
    assert lines[1] == "detections above 0.3       2 in the model, 1 exported"
    assert lines[2].endswith("2 of 2 (100.0%), at least 90%; of these, 1 score below 0.3 in the exported model")
    assert "; of these" not in verify(["a"], reference, reference, BOUND).lines[2]


@pytest.mark.parametrize(("change", "words"), [(-0.01, "score differs by 1.00e-02"), (None, "score differs by inf")])
def test_mask_scores_are_scores_too(change, words):
    def scored(path, change=0.0):
        mask_scores = None if change is None else reference(path).scores * 0.8 + np.float32(change)
        return dataclasses.replace(reference(path), mask_scores=mask_scores)

    assert verify(["a"], scored, scored, BOUND).problems == ()
    assert any(words in problem for problem in verify(["a"], scored, lambda path: scored(path, change), BOUND).problems)


def test_drawn_images():
    """Low scores are compared too, and a model that finds nothing in them is no failure."""
    assert verify(["a"], reference, reference, BOUND, drawn=True).lines[1].startswith("detections above 0.1       3 in")
    report = verify(["a"], reference, lambda path: reference(path).above(0.5), BOUND, drawn=True)
    assert report.problems and report.verdict.startswith("not usable")
    nothing = verify(["a"], lambda path: reference(path).above(1.0), reference, BOUND, drawn=True)
    assert nothing.problems == () and nothing.verdict.startswith("not known: the model finds nothing in drawn images")


def test_a_mask_of_point_rend_may_have_another_cell_refined():
    """In one of a hundred: more is no tie."""
    assert bounds_of("saved_model", False) == BOUND and bounds_of("int8", True) == BOUNDS["int8"]
    bounds = bounds_of("saved_model", True)
    assert bounds.within == 0.99 and bounds.mask == BOUND.mask and bounds.matched == 1.0
    other = changed(mask_probabilities=lambda x: x + np.float32([0.02, 0, 0])[:, None, None])
    pictures = [str(i) for i in range(100)]
    for moved, problems in ((2, 0), (3, 1)):  # of 200 detections
        report = verify(pictures, reference, lambda p, moved=moved: (other if int(p) < moved else reference)(p), bounds)
        assert len(report.problems) == problems, report
