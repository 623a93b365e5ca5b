"""Where the numbers of a run go: a line of progress, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from kmaskrcnn.results.labels import write_text


def peak_memory_gb() -> float:
    """Peak resident memory of this process, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9  # kilobytes but for macOS


class Summaries:
    """Writes scalars and images of a model folder; where that fails, a line says so and training goes on.

    Args:
        directory: the model folder.
        tensorboard: whether to write for TensorBoard besides metrics.jsonl.
        start_step: where the run goes on; later rows of metrics.jsonl, from a run that was killed, are dropped.
    """

    def __init__(self, directory: Path, start_step: int, tensorboard: bool = True):
        path = directory / "metrics.jsonl"
        if path.exists():
            write_text(path, "".join(line for line in path.open() if _step_of(line) <= start_step))
        self._jsonl = open(path, "a")  # noqa: SIM115 - open as long as the run
        writer = tf.summary.create_file_writer if tensorboard else lambda _: tf.summary.create_noop_writer()
        self._writer = writer(str(directory / "tensorboard"))
        self._told = False

    def scalars(self, step: int, values: Mapping[str, float], group: str = "train") -> None:
        """Write numbers of a step to metrics.jsonl (null where they are not finite) and TensorBoard."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        row = {"step": step, "group": group, "time": round(time.time(), 1), **finite}
        with self._tolerant():
            self._jsonl.write(json.dumps(row) + "\n")
            self._jsonl.flush()
        with self._tolerant(), self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{group}/{name}", value)

    def overlays(self, step: int, overlays: Mapping[str, np.ndarray]) -> None:
        """Write (H, W, 3) uint8 images of a step to TensorBoard."""
        with self._tolerant(), self._writer.as_default(step=step):
            for name, overlay in overlays.items():
                tf.summary.image(f"overlays/{name}", overlay[None])

    def close(self) -> None:
        """Flush and close the files."""
        with self._tolerant():
            self._writer.close()
        with self._tolerant():
            self._jsonl.close()

    @contextlib.contextmanager
    def _tolerant(self) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            if not self._told:
                self._told = True
                line = (str(error).splitlines() or [""])[0]
                print(f"metrics of this run can no longer be written: {line}", file=sys.stderr, flush=True)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line, from a run that was killed
