"""metrics.jsonl and TensorBoard files."""

import json

import numpy as np
import pytest

from kmaskrcnn.progress import clock
from kmaskrcnn.training.summaries import Summaries, peak_memory_gb


def test_rows_after_the_start_step_and_half_lines_are_dropped(tmp_path):
    summaries = Summaries(tmp_path, 0)
    for step in (1, 2, 3):
        summaries.scalars(step, {"loss": float(step), "bad": float("nan")})
    summaries.overlays(3, {"one": np.zeros((4, 4, 3), np.uint8)})
    summaries.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    Summaries(tmp_path, 2).close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss"] == 1.0
    assert rows[0]["bad"] is None
    assert any("tfevents" in p.name for p in (tmp_path / "tensorboard").iterdir())


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (-3, "0:00:00"), (59.6, "0:01:00"), (7325, "2:02:05")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_peak_memory_is_that_of_a_process_with_tensorflow():
    assert 0.1 < peak_memory_gb() < 100
