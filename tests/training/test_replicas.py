"""The step on two replicas and in parts: the numbers of one device, whatever lies where."""

import json

import pytest

from tests.processes import run_python


@pytest.fixture(scope="module")
def report():
    result = run_python("-m", "tests.training.replicas")
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", ["two", "parts", "both"])
def test_a_batch_in_pieces_gives_the_step_of_the_whole(report, case):
    # Objects lie on the first half of the batch alone in every other step; "two" has synchronized batch norm.
    found = report[case]
    assert found["weights"] < 2e-6
    assert found["values"] < 1e-5
    assert found["norm"] > 0.5  # or clipping would do nothing


def test_what_a_worker_tells_reaches_all(report):
    assert report["two"]["stop"] == [0.0, 2.0, 0.0, 0.0]
    assert report["two"]["clock"] == 3.0


@pytest.mark.parametrize("case", ["spoilt", "spoilt_float16"])
def test_a_bad_image_on_one_replica_leaves_all_replicas_as_they_were(report, case):
    assert report[case] == {"skipped": 1.0, "unchanged": True, "replicas_equal": True, "skipped_after": 0.0}


def test_the_loss_scale_halves_until_nothing_overflows_and_doubles_after_good_steps(report):
    rows = report["overflow"]["rows"]
    assert len(rows) > 1
    for i, row in enumerate(rows[:-1]):
        assert (row["overflowed"], row["skipped"], row["same"]) == (1.0, 0.0, True)
        assert row["scale"] == 2.0 ** (25 - i)
    assert (rows[-1]["overflowed"], rows[-1]["same"]) == (0.0, False)
    assert report["overflow"]["doubled"] == 16.0
