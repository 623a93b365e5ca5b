"""The server with a model that is none, as a process: python -m tests.serving.fake_server NAME=VALUE ..."""

import json
import sys
from pathlib import Path

import numpy as np

from kmaskrcnn.serving.runner import RefusedError


class FakeRunner:
    """Answers with each image's length and the size of its batch; b"refuse", b"fail" and b"wait" do as they say.

    Version 13 cannot be loaded.
    """

    def __init__(self, path):
        if Path(path).name == "13":
            raise OSError("damaged")
        self.path = path

    def run(self, images):
        if b"refuse" in images:
            raise RefusedError("the model refuses")
        if b"fail" in images:
            raise KeyError("secret")
        if b"wait" in images:
            import threading

            gate = Path(self.path) / "gate"
            (Path(self.path) / "begun").touch()
            while not gate.exists():
                threading.Event().wait(0.02)
        return {
            "length": np.array([len(image) for image in images], np.float32),
            "batch": np.full((len(images),), len(images), np.float32),
            "version": np.full((len(images),), int(Path(self.path).name), np.float32),
            "image_errors": np.array([b""] * len(images), object),
        }


if __name__ == "__main__":
    from kmaskrcnn.serving.server import build, start
    from kmaskrcnn.serving.settings import ServeSettings

    settings = ServeSettings(**{key: json.loads(value) for key, value in (a.split("=", 1) for a in sys.argv[1:])})
    server = build(settings, ["apple", "</script>"], FakeRunner)
    start(server, settings)
