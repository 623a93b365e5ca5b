"""The server ends within seconds of a signal, with its workers, and says where it is before."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent import futures
from pathlib import Path

import pytest

pytest.importorskip("litserve")
pytest.importorskip("prometheus_fastapi_instrumentator")

from tests.serving.running import ROOT, FakeServer


def all_ended(server, seconds=3):
    """Whether no process of a server goes on; what is killed may take a moment."""
    end = time.monotonic() + seconds
    command = ["ps", "-o", "stat=", "-s", str(server.process.pid)]
    while time.monotonic() < end:
        states = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        if all(state.startswith("Z") for state in states):
            return True
        time.sleep(0.05)
    return False


def status_of(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/status").read_text()
    return ""


@pytest.fixture
def server(tmp_path):
    server = FakeServer(tmp_path)
    yield server
    if server.process.poll() is None:
        server.stop()


@pytest.mark.parametrize("group", [True, False])  # Ctrl-C reaches the workers too, kill does not
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_one_line(server, number, group):
    server.until(lambda: "gRPC" in server.log())
    loading, ready, rest, grpc = server.log().splitlines()
    assert loading == f"loading {server.model}/1 ..."
    assert ready.endswith(f"http://127.0.0.1:{server.port}/")
    assert rest == f"REST: http://127.0.0.1:{server.port}/v1/models/mine:predict"
    assert grpc == f"gRPC: 127.0.0.1:{server.grpc_port}, model mine"
    (os.killpg if group else os.kill)(server.process.pid, number)
    assert server.process.wait(5) == 0
    assert server.log().splitlines()[4:] == ["stopped"]
    assert all_ended(server)


def test_requests_under_way_are_answered_and_further_ones_refused(server):
    begun = server.model / "1" / "begun"
    with futures.ThreadPoolExecutor(1) as pool:
        gate, (waiting,) = server.under_way(pool, b"wait", 1)
        server.until(begun.exists)
        os.killpg(server.process.pid, signal.SIGINT)
        server.until(lambda: server.predict(b"abc")[0] == 503)
        gate.touch()
        assert waiting.result()[0] == 200
    assert server.process.wait(5) == 0 and all_ended(server)


def test_what_takes_too_long_is_not_waited_for(server):
    begun = server.model / "1" / "begun"
    with futures.ThreadPoolExecutor(1) as pool:
        server.under_way(pool, b"wait", 1)
        server.until(begun.exists)
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.process.wait(10) == 0
    assert server.log().splitlines()[-1] == "stopped; 1 requests were not answered"
    assert all_ended(server)


def test_a_second_signal_ends_it_at_once(server):
    begun = server.model / "1" / "begun"
    with futures.ThreadPoolExecutor(1) as pool:
        server.under_way(pool, b"wait", 1)
        server.until(begun.exists)
        for _ in range(2):
            os.killpg(server.process.pid, signal.SIGINT)
            time.sleep(0.2)
        assert server.process.wait(2) == 0
    assert server.log().splitlines()[-1] == "stopped at once"


def test_a_signal_while_it_loads(tmp_path):
    server = FakeServer(tmp_path, wait=False)
    server.until(lambda: "loading" in server.log())
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.process.wait(5) == 0
    assert server.log().splitlines()[1:] == ["stopped"] and all_ended(server)


def test_workers_end_with_a_server_that_is_killed(server):
    (worker,) = server.workers()
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    end = time.monotonic() + 5
    while "\nState:\tZ" not in (status := status_of(worker)) and status and time.monotonic() < end:
        time.sleep(0.05)
    assert not status or "\nState:\tZ" in status
    os.killpg(server.process.pid, signal.SIGKILL)  # LitServe's manager is left


def add_labels(version):
    (version / "assets.extra").mkdir(parents=True)
    (version / "assets.extra" / "labels.json").write_text('{"class_names": ["apple"], "category_ids": [1]}')


def serve(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "kmaskrcnn", "serve", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_a_port_that_is_taken_is_named(server):
    add_labels(server.model / "1")
    found = serve(f"--model={server.model}", f"--port={server.port}")
    assert found.returncode == 2 and found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
    assert str(server.port) in found.stderr and not found.stdout


def test_a_model_that_cannot_be_loaded_ends_it_with_the_reason(tmp_path):
    model = tmp_path / "mine" / "1"
    add_labels(model)
    (model / "saved_model.pb").write_bytes(b"no model")
    found = serve(f"--model={tmp_path / 'mine'}", "--port=8599")
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert found.stderr.splitlines()[-1] == f"error: --model={tmp_path / 'mine'}: cannot be loaded"
