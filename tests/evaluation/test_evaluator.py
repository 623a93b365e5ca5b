"""Evaluation from model output to scores: a predictor that knows the answer must score it."""

import json

import numpy as np
import pytest
from PIL import Image

from kmaskrcnn.config import Config
from kmaskrcnn.data import DataError, load_coco, make_shapes
from kmaskrcnn.evaluation import evaluate
from kmaskrcnn.evaluation.coco_metrics import COUNT_IOUS, CocoScores
from kmaskrcnn.evaluation.evaluator import Evaluation
from kmaskrcnn.outputs import OutputError
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.prediction import Prediction


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return load_coco(make_shapes(tmp_path_factory.mktemp("shapes"), 6, 96, seed=5))


class Oracle:
    """Answers with the ground truth, in the pixels of the network's image and back."""

    def __init__(self, dataset, shift=0.0, labels=None):
        self.dataset, self.shift = dataset, shift
        self.labels = labels or Labels(tuple(dataset.class_names), tuple(dataset.category_ids))

    def predict_batch(self, batch):
        predictions = []
        for image_id, shape in zip(batch["image_ids"].numpy(), batch["original_shapes"].numpy(), strict=True):
            index = int(np.flatnonzero(self.dataset.image_ids == image_id)[0])
            objects = self.dataset.instances(index, 112)
            scores = np.full(len(objects["boxes"]), 0.9, np.float32)
            masks = objects["masks"].astype(np.float32) / 255
            boxes = objects["mask_frames"] + self.shift
            predictions.append(Prediction(*map(int, shape), boxes, scores, objects["classes"], masks, self.labels))
        return predictions


@pytest.mark.parametrize("batch_size", [1, 4])
def test_ground_truth_scores_near_one(shapes, batch_size, tmp_path):
    config = Config().replace(resize_mode="native", native_scale=2.0, eval_batch_size=batch_size, eval_overlays=2)
    result = evaluate(Oracle(shapes), shapes, config)
    scalars = result.scalars()
    assert result.images == 6
    assert scalars["mask_AP50"] == pytest.approx(1.0)
    assert scalars["mask_AP"] > 0.95
    assert scalars["box_AP50"] == pytest.approx(1.0)
    assert scalars["mask_overlap@0.9"] > 0.9
    assert sorted(result.overlays) == ["00000.png", "00001.png"]
    result.write(tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").glob("[!.]*")}
    assert names == {"scores.json", "results.json", "score_thresholds.json", "00000.png", "00001.png"}
    assert scalars["boundary_AP50"] == pytest.approx(1.0)
    assert 0 < scalars["boundary_AP"] <= scalars["mask_AP"]
    assert scalars["mask_dAP/Miss"] == scalars["box_dAP/FalsePos"] == 0.0
    assert json.loads((tmp_path / "out" / "score_thresholds.json").read_text()) == {
        name: scalars[f"score_threshold/{name}"] for name in shapes.class_names
    }
    for word in ("mask", "boundary", "circle", "FalseNeg", "best F1"):
        assert word in result.table()


def test_training_needs_the_scores_alone(shapes):
    result = evaluate(Oracle(shapes), shapes, Config().replace(resize_mode="native"), analysis=False)
    assert result.analysis is None
    assert not [name for name in result.scalars() if "boundary" in name or "dAP" in name or "threshold" in name]
    assert "TIDE" not in result.table()


def test_shifted_answers_score_less(shapes):
    config = Config().replace(resize_mode="native")
    assert evaluate(Oracle(shapes, shift=4.0), shapes, config).scalars()["mask_AP"] < 0.7


def test_fewer_images_on_request(shapes):
    config = Config().replace(resize_mode="native", eval_max_images=2)
    result = evaluate(Oracle(shapes), shapes, config)
    assert result.images == 2
    assert "scored on the first 2 of 6 images (eval_max_images=2)" in result.table()
    assert result.scalars()["mask_AP50"] == pytest.approx(1.0)
    assert "scored on" not in evaluate(Oracle(shapes), shapes, config.replace(eval_max_images=6)).table()


def test_the_table_says_how_many_detections_count_and_which_setting_is_too_low(shapes):
    most = max(np.bincount(np.repeat(np.arange(6), [r.stop - r.start for r in map(shapes.rows, range(6))])))

    def line_of(config):
        table = evaluate(Oracle(shapes), shapes, config).table()
        return next(line for line in table.splitlines() if line.startswith("at most"))

    fine = line_of(Config().replace(resize_mode="native"))
    assert fine == f"at most 100 detections counted per image; an image has up to {most} objects"
    low = Config().replace(resize_mode="native", max_detections=2, eval_max_detections=1)
    line = line_of(low)
    assert "eval_max_detections=1 is too low" in line
    assert line.endswith("the model gives at most max_detections=2")


def test_categories_unknown_to_the_model_are_refused(shapes):
    labels = Labels(("circle", "square", "triangle"), (1, 2, 3))
    with pytest.raises(DataError, match="category 4 'star'"):
        evaluate(Oracle(shapes, labels=labels), shapes, Config().replace(resize_mode="native"))


def test_an_evaluation_leaves_images_and_other_files_alone(tmp_path):
    empty = CocoScores({}, {}, {}, dict.fromkeys(COUNT_IOUS, (0, 0, 0)), np.zeros((10, 101, 1)))
    pixels = {name: np.full((9, 9, 3), i, np.uint8) for i, name in enumerate(("cam1/1.png", "cam2/1.jpg", "2.png"))}
    result = Evaluation(empty, empty, [], pixels, 3, 1.0)
    for _ in range(2):
        result.write(tmp_path / "out")
    for name, value in (("cam1/1.png", 0), ("cam2/1.png", 1), ("2.png", 2)):
        assert np.asarray(Image.open(tmp_path / "out" / name)).max() == value
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels["2.png"]).save(tmp_path / "images/2.png")
    before = (tmp_path / "images/2.png").read_bytes()
    with pytest.raises(OutputError, match=r"2\.png: already exists"):
        result.write(tmp_path / "images")
    assert (tmp_path / "images/2.png").read_bytes() == before
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["2.png"]
    with pytest.raises(OutputError, match="is an input"):
        result.write(tmp_path / "out", [tmp_path / "out/results.json"])  # what --compare reads
