"""Object ids over frames, and the form of `supervision`."""

import builtins

import numpy as np
import pytest

from kmaskrcnn.config import ConfigError
from kmaskrcnn.inference.tracking import Tracker
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.prediction import Prediction
from kmaskrcnn.results.writers import CSV_COLUMNS, csv_rows

LABELS = Labels(("apple", "pear"), (3, 10))


def _frame(*objects):
    """A prediction of (y, x, score, class) squares of 20 pixels."""
    boxes = np.array([[y, x, y + 20, x + 20] for y, x, _, _ in objects], np.float32).reshape(-1, 4)
    scores = np.array([o[2] for o in objects], np.float32)
    classes = np.array([o[3] for o in objects], np.int32)
    return Prediction(100, 120, boxes, scores, classes, np.ones((len(objects), 28, 28), np.float32), LABELS)


def test_an_object_keeps_its_id():
    pytest.importorskip("trackers")
    tracker = Tracker(10.0)
    ids = []
    for step in range(6):
        objects = [(10 + 3 * step, 10, 0.9, 1), (60, 90 - 3 * step, 0.8 if step != 3 else 0.2, 2)]
        found = tracker.update(_frame(*(objects if step % 2 else objects[::-1])))
        ids.append(dict(zip(found.names, found.track_ids.tolist(), strict=True)))
    assert ids[0] == {"apple": -1, "pear": -1}
    assert len(set(ids[1].values())) == 2
    assert min(ids[1].values()) >= 0
    assert ids[1:] == [ids[1]] * 5  # also where the score of the pear falls
    assert len(tracker.update(_frame())) == 0
    for _ in range(2):
        again = tracker.update(_frame((30, 10, 0.9, 1), (5, 95, 0.9, 1)))  # seen again after a gap, and a new one
    assert again.track_ids[0] == ids[1]["apple"]
    assert again.track_ids[1] not in (*ids[1].values(), -1)


def test_ids_are_in_every_output():
    pytest.importorskip("trackers")
    tracker = Tracker(10.0)
    for _ in range(2):
        found = tracker.update(_frame((10, 10, 0.9, 1), (60, 60, 0.3, 2)))
    first = int(found.track_ids[0])
    assert first >= 0
    assert found.track_ids.tolist() == [first, -1]  # too low a score to begin a track
    assert [r["track_id"] for r in found.to_coco(1)] == [first, -1]
    assert [row[CSV_COLUMNS.index("track")] for row in csv_rows("v.mp4#0", found)] == [first, -1]
    assert found.select(0.5).track_ids.tolist() == [first]
    image = np.zeros((100, 120, 3), np.uint8)
    plain = _frame((10, 10, 0.9, 1))
    assert (np.asarray(found.draw(image)) != np.asarray(plain.draw(image))).any()
    assert "track_id" not in plain.to_coco(1)[0]
    assert csv_rows("a.png", plain)[0][-1] == ""


def test_supervision_gets_boxes_masks_and_names():
    pytest.importorskip("supervision")
    found = _frame((10, 30, 0.9, 1), (60, 60, 0.3, 2))
    detections = found.to_supervision()
    assert detections.xyxy.tolist() == [[30, 10, 50, 30], [60, 60, 80, 80]]
    assert detections.class_id.tolist() == [0, 1]
    assert detections.data["class_name"].tolist() == ["apple", "pear"]
    np.testing.assert_array_equal(detections.mask, [found.mask(0), found.mask(1)])
    assert detections.confidence.tolist() == pytest.approx([0.9, 0.3])
    assert len(_frame().to_supervision()) == 0
    assert found.to_supervision(masks=False).mask is None


@pytest.mark.parametrize("package", ["trackers", "supervision"])
def test_a_missing_package_is_named(package, monkeypatch):
    whole = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        Tracker(10.0) if package == "trackers" else _frame().to_supervision()
