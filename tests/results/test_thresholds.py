"""Score thresholds by class: their file, and what they keep."""

import json

import numpy as np
import pytest

from kmaskrcnn.errors import ConfigError
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.prediction import Prediction
from kmaskrcnn.results.thresholds import read_score_thresholds

LABELS = Labels(("fig", "date", "hazelnut"), (1, 2, 5))


def _prediction(scores, classes):
    count = len(scores)
    boxes, masks = np.tile([0, 0, 4, 4], (count, 1)).astype(np.float32), np.ones((count, 2, 2), np.float32)
    return Prediction(8, 8, boxes, np.array(scores, np.float32), np.array(classes, np.int32), masks, LABELS)


def test_each_class_has_its_own_threshold_and_others_the_common_one():
    prediction = _prediction([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], [1, 2, 3, 1, 2, 3, 2])
    kept = prediction.select(0.45, score_thresholds={"fig": 0.65, "date": 0.3})
    assert kept.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.5, 0.3])
    kept = prediction.select(0.45, ["date", "fig"], 2, {"date": 0.85})
    assert kept.scores.tolist() == pytest.approx([0.9, 0.6])
    with pytest.raises(ConfigError, match="no class 'plum'"):
        prediction.select(score_thresholds={"plum": 0.5})


def test_a_threshold_between_neighboring_scores_tells_them_apart():
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    between = float(low) + (float(high) - float(low)) / 4  # in float32 the lower one
    assert np.float32(between) == low
    assert len(_prediction([high, low], [1, 1]).select(score_thresholds={"fig": between})) == 1


def test_a_file_is_read_and_may_leave_classes_out(tmp_path):
    path = tmp_path / "thresholds.json"
    path.write_text(json.dumps({"hazelnut": 0.25, "fig": 1}))
    assert read_score_thresholds(path, LABELS) == {"hazelnut": 0.25, "fig": 1.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"plum": 0.5}', "no class 'plum' in the model: it has fig, date, hazelnut"),
        ('{"fig": "0.5"}', "'fig' has the threshold \"0.5\": expected a number"),
        ('{"fig": true}', "expected a number"),
        ('{"fig": null}', "expected a number"),
        ('{"fig": NaN}', "expected a number"),
        ('{"fig": 1.5}', "expected a number from 0 to 1"),
        ("[0.5]", "expected {"),
        ('{"fig": ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (None, "No such file"),
    ],
)
def test_a_bad_file_is_one_line(text, words, tmp_path):
    path = tmp_path / "thresholds.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        read_score_thresholds(path, LABELS)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert words in message
    assert "\n" not in message
