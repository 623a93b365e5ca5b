"""TF_CONFIG, the shares of workers, the launcher and the watchdog."""

import json
import re
import subprocess
import sys

import pytest
import tensorflow as tf

from kmaskrcnn.cluster import Cluster, read_tf_config
from kmaskrcnn.config import ConfigError
from kmaskrcnn.programs.launcher import launch
from tests.processes import run_python


def _tf_config(groups, kind="worker", index=0):
    return json.dumps({"cluster": groups, "task": {"type": kind, "index": index}})


def test_workers_are_numbered_after_the_chief():
    groups = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    assert read_tf_config(_tf_config(groups, "chief", 0)) == (["a:1", "b:1", "c:1"], 0)
    assert read_tf_config(_tf_config(groups, "worker", 1)) == (["a:1", "b:1", "c:1"], 2)
    assert read_tf_config(_tf_config({"worker": ["[::1]:5", "h:6"]}, index=1)) == (["[::1]:5", "h:6"], 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needs TF_CONFIG in the environment, such as {"),
        ("{", "is not of the form"),
        ('{"cluster": {"worker": ["a:1"]}}', "'task' is missing"),
        (_tf_config({"worker": ["a:1"], "ps": ["b:1"]}), "cluster has ps"),
        (_tf_config({"worker": ["a"]}), "'a' is not HOST:PORT"),
        (_tf_config({"worker": ["a:1", "a:1"]}), "a:1 occurs twice"),
        (_tf_config({"worker": ["a:1"]}, index=1), "task is worker 1"),
        (_tf_config({"worker": ["a:1"]}, "evaluator"), "task is evaluator 0"),
        (_tf_config({"chief": ["a:1", "b:1"]}, "chief"), "2 chiefs"),
    ],
)
def test_a_wrong_tf_config_is_one_line(text, words):
    with pytest.raises(ConfigError) as error:
        read_tf_config(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


class _Devices:
    """As many replicas as a cluster under test has; only their number is asked for."""

    def __init__(self, count):
        self.num_replicas_in_sync = count


def test_parts_and_devices_share_the_places_of_a_batch():
    clusters = [Cluster(_Devices(4), workers=2, worker=worker) for worker in range(2)]
    slots = [cluster.slots(16, 2) for cluster in clusters]
    assert slots[0] == [range(0, 2), range(2, 4), range(8, 10), range(10, 12)]  # part 0 on two devices, part 1
    places = sorted(place for own in slots for each in own for place in each)
    assert places == list(range(16))
    assert Cluster(tf.distribute.get_strategy()).slots(3, 1) == [range(3)]
    with pytest.raises(ConfigError, match="batch_size=6 does not divide evenly into 4 devices"):
        clusters[0].slots(6, 1)


def test_what_trains_where_is_told(monkeypatch, tmp_path):
    alone = Cluster(tf.distribute.get_strategy())
    assert re.fullmatch(
        r"training on the CPU, \d+ cores, no GPU found: to use one, pip install 'kmaskrcnn\[gpu\]'", alone.describe()
    )
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0", "GPU:1"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: {"device_name": "Tesla T4"})
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    assert alone.describe() == "training on 1 GPU (Tesla T4)"
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Other, 8192'\necho 'Tesla T4, 15360'\n")
    tool.chmod(0o755)
    assert alone.describe() == "training on 1 GPU (Tesla T4, 15 GiB)"
    both = Cluster(_Devices(4), workers=2)
    assert both.describe() == "training on 2 GPUs (Tesla T4, 15 GiB), 2 workers of that kind"


_WORKER = """
import json, os, signal, sys, time
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
print("worker", index, "of", os.environ["TF_CONFIG"].count("127.0.0.1"), flush=True)
{body}
"""


def _launch(tmp_path, body, workers=2, before=""):
    program = tmp_path / "program.py"
    program.write_text(_WORKER.format(body=body))
    code = f"{before}\nfrom kmaskrcnn.programs.launcher import launch; import sys\n"
    code += f"sys.exit(launch({workers}, [{str(program)!r}]))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(2) if index else time.sleep(100)", 2),
        ("os.kill(os.getpid(), signal.SIGKILL) if index else time.sleep(100)", 76),
    ],
)
def test_one_that_fails_ends_all(tmp_path, body, code, monkeypatch):
    monkeypatch.setattr("kmaskrcnn.programs.launcher._GRACE", 0.5)
    program = tmp_path / "program.py"
    program.write_text(_WORKER.format(body=body))
    assert launch(2, [str(program)]) == code


def test_signals_are_passed_on_once(tmp_path):
    body = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("ready", flush=True)
time.sleep(100)
"""
    process = _launch(tmp_path, body)
    seen = 0
    for line in process.stdout:
        seen += "ready" in line
        if seen == 2:
            break
    process.terminate()
    assert process.wait(timeout=30) == 75


def test_a_signal_between_the_starts_of_two_workers_reaches_both(tmp_path):
    before = """
import os, signal, subprocess
class Early(subprocess.Popen):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        if options["env"]["TF_CONFIG"].count('"index": 0'):
            os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen = Early
"""
    process = _launch(tmp_path, "time.sleep(100)", before=before)
    assert process.wait(timeout=30) == 76  # the workers had not come to handle signals


def test_a_process_that_stands_still_is_ended_with_a_line():
    code = (
        "import time; from kmaskrcnn.training.watchdog import Watchdog\n"
        "with Watchdog(0.4, 76, 'nothing went on') as dog:\n"
        "    for _ in range(8): time.sleep(0.1); dog.beat()\n"
        "    print('beaten', flush=True); time.sleep(100)"
    )
    result = run_python("-c", code)
    assert result.returncode == 76
    assert result.stdout == "beaten\n"
    assert result.stderr.endswith("error: nothing went on\n")
