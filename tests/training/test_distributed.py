"""train.py on one device, on two in parts, and as two workers: the same run; and what workers do about each other."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.replicas import ROOT, command, loss_difference, weight_difference


def _start(folder, *flags, **environment):
    return subprocess.Popen(
        command(folder, *flags),
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _end(process, code=0):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output[-3000:]
    return output


# In a third step a rounding draws another RoI, and with PointRend in the second one another point. Its boxes are
# predicted: of one that is its object's but for rounding, that would decide of cells whose target is one half.
SCORING = ("--steps=2", "--mask_scoring")
POINT_REND = (
    *("--steps=1", "--mask_point_rend", "--mask_fc_channels=16", "--mask_point_channels=16"),
    "--binary_mask_targets=false",
)


def _train(folder, name, variation=SCORING):
    """The output of steps with a variation, with an evaluation of 5 images in batches of 2."""
    flags = {
        "one": [],
        "devices": ["--strategy=mirrored", "--num_devices=2", "--accumulate_steps=2"],
        "workers": ["--num_local_workers=2"],
    }[name]
    return _end(_start(folder / name, *variation, *flags))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder above that of a run on one device, and its output."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, _train(folder, "one")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("workers", "2 devices of 2 workers x 2 images"),
        pytest.param("devices", "2 devices of 1 workers x 1 images x 2 parts", marks=pytest.mark.slow),
    ],
)
def test_weights_losses_and_averages_are_those_of_one_device(one, other, words):
    folder, alone = one
    assert "4 images per step: 1 devices of 1 workers x 4 images; learning rate 0.02 = 0.02" in alone
    output = _train(folder, other)
    assert f"4 images per step: {words}" in output
    assert output.count("step 2/2") == 1  # the chief alone speaks
    assert weight_difference(folder / "one", folder / other) < 2e-6
    assert loss_difference(folder / "one", folder / other) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("other", ["workers", "devices"])
def test_points_are_those_of_one_device(tmp_path, other):
    for name in ("one", other):
        assert _train(tmp_path, name, POINT_REND).count("step 1/1") == 1
    assert weight_difference(tmp_path / "one", tmp_path / other) < 2e-6
    assert loss_difference(tmp_path / "one", tmp_path / other) < 1e-5


@pytest.mark.slow
def test_evaluation_by_two_workers_is_that_of_one_process_to_the_last_bit(one, tmp_path):
    folder, _ = one
    found = {}
    for name, more in (("one", []), ("two", ["--num_local_workers=2"])):
        program = [sys.executable, "evaluate.py", f"--model_dir={folder / 'one'}", "--which=last", *more]
        subprocess.run([*program, f"--output={tmp_path / name}"], check=True, cwd=ROOT, capture_output=True)
        found[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert found["one"].keys() == found["two"].keys()
    for name, content in found["one"].items():
        assert found["two"][name] == content, name
    results = json.loads(found["one"]["results.json"])
    assert {result["image_id"] for result in results} == {1, 2, 3, 4, 5}  # in batches of 2, 2 and 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_stalls_ends_the_others_and_all_go_on(tmp_path, number):
    flags = ["--num_local_workers=2", "--steps=100000", "--checkpoint_every=2", "--stall_timeout=40"]
    process = _start(tmp_path / "model", *flags)
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[1]), number)
    start = time.monotonic()
    output = _end(process, 76)
    assert time.monotonic() - start < 90
    assert "error: " in output
    assert "again to resume from the newest checkpoint" in output
    again = _start(tmp_path / "model", *flags)
    for line in again.stdout:
        if line.startswith("step "):
            assert int(line.split()[1].split("/")[0]) <= 5
            start = time.monotonic()
            again.send_signal(signal.SIGTERM)
            break
    output = _end(again, 75)
    assert "SIGTERM: saved step" in output
    assert time.monotonic() - start < 20
