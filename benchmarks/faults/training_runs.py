"""Runs of train.py on a small model, for the kinds of faults that befall a training."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.replicas import ROOT, command, state

TIMEOUT = 600.0  # seconds that a run may say nothing for


@dataclasses.dataclass
class Run:
    """A process of train.py and what it has said."""

    process: subprocess.Popen
    reader: threading.Thread | None = None
    output: list[str] = dataclasses.field(default_factory=list)
    lines: queue.Queue[str] = dataclasses.field(default_factory=queue.Queue)

    def wait_for(self, wanted: Callable[[str], bool], seconds: float = TIMEOUT, pause: float = 1.0) -> bool:
        """Read until a line is wanted, which is looked at every `pause` seconds even if empty; False at the end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                line = self.lines.get(timeout=pause)
            except queue.Empty:
                line = ""
            if wanted(line):
                return True
            if not line and self.process.poll() is not None and self.lines.empty():
                return False
        return False

    def end(self, seconds: float = TIMEOUT) -> int:
        """The exit code, once it has ended; it is killed where it does not."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.reader.join()

    @property
    def text(self) -> str:
        """All that it said."""
        return "".join(self.output)


def start(folder: Path, *flags: str, evaluation: bool = False, before: str = "") -> Run:
    """Train in a folder, from wherever it stands; `before` is a shell command to begin with, such as a ulimit."""
    small = ["--deterministic", "--log_every=1", "--roi_batch_size=32", "--rpn_pre_nms_top_k_train=100"]
    words = command(folder, *small, *([] if evaluation else ["--val_annotations="]), *flags)
    if before:
        words = ["bash", "-c", f'{before}; exec "$0" "$@"', *words]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    run = Run(process)

    def read() -> None:
        for line in process.stdout:
            run.output.append(line)
            run.lines.put(line)

    run.reader = threading.Thread(target=read, daemon=True)
    run.reader.start()
    return run


def whole_run(folder: Path, *flags: str, **keywords: object) -> str:
    """Let a run come to its end; what went wrong, or nothing."""
    run = start(folder, *flags, **keywords)
    code = run.end()
    return "" if code == 0 else f"ended with code {code}: {run.text[-500:]}"


def is_step(line: str, least: int = 0) -> bool:
    """Whether a line tells of a step, and of one of at least this number."""
    return line.startswith("step ") and int(line.split()[1].split("/")[0]) >= least


def difference(a: Path, b: Path) -> str:
    """Which arrays of the newest checkpoints differ by a bit: weights, optimizer slots, averages, step; or nothing."""
    ours, others = state(a), state(b)
    if ours.keys() != others.keys():
        return f"other arrays: {sorted(ours.keys() ^ others.keys())[:3]}"
    apart = [name for name in ours if not np.array_equal(ours[name], others[name], equal_nan=True)]
    return f"{len(apart)} of {len(ours)} arrays differ, such as {apart[0]}" if apart else ""


def workers_of(run: Run) -> list[int]:
    """The process ids of a launcher's workers."""
    listed = subprocess.run(["pgrep", "-P", str(run.process.pid)], capture_output=True, text=True, check=True)
    return [int(number) for number in listed.stdout.split()]


def kill(number: int, how: int = signal.SIGKILL) -> None:
    """Send a signal to a process, which may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(number, how)
