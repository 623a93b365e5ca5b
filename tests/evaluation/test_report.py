"""The report, from answers whose errors are known."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.data import load_coco, make_shapes
from kmaskrcnn.evaluation import evaluate
from kmaskrcnn.evaluation.error_kinds import calibration, confusion_matrix, match_images
from kmaskrcnn.evaluation.report import draw_matches, read_compared, write_report
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.mask_paste import window_to_rle
from tests.evaluation.test_evaluator import Oracle


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return load_coco(make_shapes(tmp_path_factory.mktemp("shapes"), 8, 96, seed=5))


class _Wrong(Oracle):
    """Takes every circle for a square, and finds nothing in the third image."""

    def predict_batch(self, batch):
        found = []
        for image_id, prediction in zip(batch["image_ids"].numpy(), super().predict_batch(batch), strict=True):
            classes = np.where(prediction.classes == 1, 2, prediction.classes).astype(np.int32)
            changed = dataclasses.replace(prediction, classes=classes)
            found.append(changed.above(1.0) if image_id == self.dataset.image_ids[2] else changed)
        return found


def _evaluate(oracle, dataset):
    return evaluate(oracle, dataset, Config().replace(resize_mode="native", eval_overlays=0))


def _rectangle(y0, x0, y1, x1, score, category, image_id=1):
    rle = window_to_rle(np.ones((y1 - y0, x1 - x0), bool), y0, x0, 50, 60)
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    box = [x0, y0, x1 - x0, y1 - y0]
    return {
        "image_id": image_id,
        "category_id": category,
        "score": score,
        "bbox": box,
        "segmentation": segmentation,
        "area": box[2] * box[3],
    }


@pytest.fixture
def scene():
    """Two cats, a dog and a crowd of dogs; and seven detections of every kind."""
    objects = [
        _rectangle(0, 0, 10, 10, 0, 1),
        _rectangle(0, 20, 10, 30, 0, 1),
        _rectangle(20, 0, 30, 10, 0, 7),
        _rectangle(30, 30, 50, 60, 0, 7),
    ]
    annotations = [{**o, "id": i, "iscrowd": int(i == 3)} for i, o in enumerate(objects)]
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 60}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    results = [
        _rectangle(0, 0, 10, 9, 0.9, 1),  # right
        _rectangle(0, 1, 10, 10, 0.8, 1),  # the same one again
        _rectangle(0, 20, 10, 30, 0.7, 7),  # a cat taken for a dog
        _rectangle(20, 0, 30, 10, 0.3, 7),  # right, but below the working score
        _rectangle(32, 32, 40, 40, 0.95, 7),  # in the crowd
        _rectangle(40, 0, 50, 10, 0.6, 1),  # nothing there
    ]
    return truth, results


def test_every_detection_is_told_for_what_it_is(scene):
    (image,) = match_images(*scene, [1])
    rows = zip(image.results, image.matched, image.taken_for, strict=True)
    by_score = {r["score"]: (m, t) for r, m, t in rows}
    assert by_score == {0.95: (-2, -1), 0.9: (0, -1), 0.8: (-1, -1), 0.7: (-1, 1), 0.6: (-1, -1), 0.3: (2, -1)}
    assert image.counts == (1, 3, 2)
    assert image.f1 == pytest.approx(2 / 7)
    matrix = confusion_matrix([image], [1, 7])
    # is cat: one found, one as a dog; is dog: missed; nothing: two found as cats
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 0, 1], [2, 0, 0]])


def test_calibration_by_hand(scene):
    values = calibration(match_images(*scene, [1]))
    assert values.counts.tolist() == [0, 0, 0, 1, 0, 0, 1, 1, 1, 1]
    right = {3: 1.0, 6: 0.0, 7: 0.0, 8: 0.0, 9: 1.0}
    assert {i: values.precisions[i] for i in right} == right
    assert values.error == pytest.approx((0.7 + 0.6 + 0.7 + 0.8 + 0.1) / 5)
    assert np.isnan(values.precisions[0])
    assert calibration([]).error == 0


def test_misses_and_false_finds_are_drawn_in_their_colors(scene):
    (image,) = match_images(*scene, [1])
    picture = np.asarray(draw_matches(image, np.zeros((50, 60, 3), np.uint8), {1: "cat", 7: "dog"})).astype(int)
    factor = picture.shape[0] // 50
    red, green, yellow = (picture[y * factor, x] for y, x in ((45, 5 * factor), (5, factor // 2), (25, 5 * factor)))
    assert red[0] > 2 * red[1]
    assert green[1] > green[0]
    assert yellow[0] > 50 < yellow[1]
    assert yellow[2] < 20


def test_the_page_holds_everything_itself(shapes, tmp_path):
    labels = Labels(tuple(shapes.class_names), tuple(shapes.category_ids))
    good, bad = _evaluate(Oracle(shapes), shapes), _evaluate(_Wrong(shapes), shapes)
    write_report(tmp_path / "good", good, shapes, labels, "good <run>")
    page = write_report(tmp_path / "bad", bad, shapes, labels, "bad", compare=tmp_path / "good").read_text()
    assert "good &lt;run&gt;" in (tmp_path / "good" / "report.html").read_text()
    sources = re.findall(r'src="([^"]*)"', page)
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"<(script|link)|href=\"http", page)
    pictures = [base64.b64decode(s.split(",")[1]) for s in sources if s.startswith("data:image/jpeg")]
    assert len(pictures) >= 6
    assert all(max(Image.open(io.BytesIO(p)).size) >= 640 for p in pictures)
    drawings = [base64.b64decode(s.split(",")[1]) for s in sources if s.startswith("data:image/svg")]
    assert len(drawings) == 6
    # The numbers of the table are those of the scores, with the change against the other run.
    scores = json.loads((tmp_path / "bad" / "scores.json").read_text())
    change = scores["mask_AP"] - json.loads((tmp_path / "good" / "scores.json").read_text())["mask_AP"]
    assert change < -0.1
    assert f'{scores["mask_AP"]:.3f} <span class="down">{change:+.3f}</span>' in page
    # What went wrong, beside the other run: circles of the wrong class, and an image without detections.
    assert scores["mask_dAP/Cls"] > 0.1 < scores["mask_dAP/Miss"]
    costs = page.split('id="kinds-of-error"')[1].split("<h2")[0]
    assert f'<td>Cls</td><td>{scores["mask_dAP/Cls"]:.3f} <span class="down">+' in costs
    assert f'{scores["boundary_AP"]:.3f} <span class="down">' in page.split("<th>boundaries</th>")[1].split("</tr>")[1]
    thresholds = page.split('id="score-thresholds"')[1].split("<h2")[0]
    assert "<td>circle</td><td>7</td><td>-</td>" in thresholds
    assert thresholds.count("<td>-</td>") == 2  # no detection is called a circle: neither threshold nor calibration
    assert f"<td>{scores['score_threshold/square']:.3f}</td>" in thresholds
    worst = page.split('id="worst-images"')[1].split("<h2")[0]
    assert "00002.png: 0 correct, 0 false" in worst
    assert "Images that changed most" in page


def test_all_right_leaves_no_worst_images(shapes, tmp_path):
    labels = Labels(tuple(shapes.class_names), tuple(shapes.category_ids))
    page = write_report(tmp_path, _evaluate(Oracle(shapes), shapes), shapes, labels, "good").read_text()
    assert page.split('id="worst-images"')[1].split("</h2>")[1].startswith("<p>None.</p>")


def test_results_of_another_set_are_refused(shapes, tmp_path):
    labels = Labels(tuple(shapes.class_names), tuple(shapes.category_ids))
    evaluation = _evaluate(Oracle(shapes), shapes)
    with pytest.raises(ConfigError, match=r"compare=.*no results"):
        write_report(tmp_path / "a", evaluation, shapes, labels, "x", compare=tmp_path / "none")
    (tmp_path / "results.json").write_text(json.dumps([{**evaluation.results[0], "image_id": 999}]))
    with pytest.raises(ConfigError, match="other images, such as id 999"):
        write_report(tmp_path / "a", evaluation, shapes, labels, "x", compare=tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"images": [], "annotations": []}))  # as predict writes it
    with pytest.raises(ConfigError, match=r"its results\.json is not that of an evaluation"):
        read_compared(tmp_path, shapes, len(shapes))


def test_a_run_on_fewer_images_is_not_compared(shapes, tmp_path, monkeypatch):
    """What it never saw would count as missed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    some = evaluate(Oracle(shapes), shapes, Config().replace(resize_mode="native", eval_max_images=2))
    some.write(tmp_path / "some")
    with pytest.raises(ConfigError, match="it was scored on 2 images, and this run is on 3"):
        read_compared(tmp_path / "some", shapes, 3)
    assert {r["image_id"] for r in read_compared("~/some", shapes, 1)} == {int(shapes.image_ids[0])}


def test_class_summary_is_that_of_the_class_alone(shapes):
    scores = _evaluate(_Wrong(shapes), shapes).mask
    assert scores.class_summary["circle"]["AP"] == scores.class_ap["circle"] == 0
    mean = np.mean([values["AP75"] for values in scores.class_summary.values() if values["AP75"] >= 0])
    assert mean == pytest.approx(scores.summary["AP75"])
    assert scores.precision.shape == (10, 101, 4)
