"""The server with a model that is none, as a process of its own."""

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class FakeServer:
    """A running server; `gate` lets requests of b"wait" go on."""

    def __init__(self, folder, wait=True, **settings):
        self.model = folder / "mine"
        self.add_version(1)
        self.port, self.grpc_port = free_port(), free_port()
        settings |= {"model": str(self.model), "port": self.port, "grpc_port": self.grpc_port, "poll_seconds": 0.1}
        arguments = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        self._log = open(folder / "log", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.serving.fake_server", *arguments],
            cwd=ROOT,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if wait:
            self.until(lambda: self.get("/health")[0] == 200, 300)

    def add_version(self, number):
        folder = self.model / str(number)
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").touch()

    def until(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if condition():
                    return
            if self.process.poll() is not None:
                break
            threading.Event().wait(0.05)
        raise AssertionError(f"it did not come about: {self.log()[-3000:]}")

    def log(self):
        """What it has printed."""
        self._log.flush()
        return Path(self._log.name).read_text()

    def ask(self, method, path, body=None, timeout=120):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read(), response.headers
        finally:
            connection.close()

    def get(self, path):
        return self.ask("GET", path)

    def predict(self, *images, body=None, timeout=120):
        tree = {"instances": [{"b64": base64.b64encode(image).decode()} for image in images]}
        data = json.dumps(tree).encode() if body is None else body
        status, answer, _ = self.ask("POST", "/v1/models/mine:predict", data, timeout)
        return status, json.loads(answer)

    def under_way(self, pool, image, count, version=1):
        """Start requests of an image that waits, and wait until they are counted."""
        gate = self.model / str(version) / "gate"
        gate.unlink(missing_ok=True)
        return gate, [pool.submit(self.predict, image) for _ in range(count)]

    def workers(self):
        """Processes with the model."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        children = {pid for thread in threads for pid in (thread / "children").read_text().split()} | set(children)
        return [pid for pid in map(int, children) if "multiprocessing.spawn" in self._command(pid)]

    def _command(self, pid):
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return ""

    def stop(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()
