"""Ends that somebody asks for, and a disk without room."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from benchmarks.faults import Row, tally
from benchmarks.faults.training_runs import is_step, kill, start, state, whole_run
from kmaskrcnn.errors import EXIT_INTERRUPTED

BYTES = {"a checkpoint's data": 600, "the first file of a checkpoint": 4}  # kilobytes that a file may have


def ctrl_c_twice(folder: Path, number: int) -> str:
    """Two signals, at the start, in a step or in an evaluation; what went wrong, or nothing."""
    rng = random.Random(number)
    wanted = [lambda line: "images per step" in line, lambda line: is_step(line, 3), lambda line: is_step(line, 4)]
    run = start(folder, "--steps=100000", "--checkpoint_every=2", "--eval_every=4", evaluation=True)
    if not run.wait_for(wanted[number % 3]):
        run.end(0)
        return f"number {number}: it never came so far: {run.text[-300:]}"
    for _ in range(2):
        kill(run.process.pid, signal.SIGINT)
        time.sleep(rng.uniform(0.0, 0.1))
    code = run.end()
    if code != EXIT_INTERRUPTED or "Traceback" in run.text:
        return f"number {number}: code {code}: {run.text[-300:]}"
    if number % 3 and int(state(folder)["step/.ATTRIBUTES/VARIABLE_VALUE"]) < 2:
        return f"number {number}: nothing is left of the steps"
    return ""


def early_sigterm(folder: Path, number: int) -> str:
    """SIGTERM before the first step: as TensorFlow has started, as the data are read, and as the graph is made."""
    wanted = ("training on", "training set", "images per step")[number % 3]
    run = start(folder, "--steps=100000")
    if not run.wait_for(lambda line: wanted in line):
        run.end(0)
        return f"number {number}: it never came so far: {run.text[-300:]}"
    kill(run.process.pid, signal.SIGTERM)
    code = run.end()
    right = code == EXIT_INTERRUPTED and "SIGTERM before a step was taken" in run.text and "Traceback" not in run.text
    return "" if right else f"number {number}: code {code}: {run.text[-300:]}"


def full_disk(folder: Path, what: str, kilobytes: int) -> str:
    """Go on in a folder where no file may grow past a size, then with room; what went wrong, or nothing."""
    problem = whole_run(folder, "--steps=2")
    if problem:
        return f"{what}: {problem}"
    before = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    run = start(folder, "--steps=4", before=f"ulimit -f {kilobytes}")
    code = run.end()
    errors = [line for line in run.output if line.startswith("error: ")]
    if code != 2 or len(errors) != 1 or "could not be saved" not in errors[0] or "Traceback" in run.text:
        return f"{what}: code {code}: {run.text[-300:]}"
    if {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()} != before:
        return f"{what}: the checkpoints are not what they were"
    problem = whole_run(folder, "--steps=4")
    return f"{what}: {problem}" if problem else ""


def run(count: int, folder: Path) -> list[Row]:
    """`count` double Ctrl-C and early SIGTERM, and a disk that is full at two places of a checkpoint's write."""
    wrong = [found for number in range(count) if (found := ctrl_c_twice(folder / f"stop{number}", number))]
    rows = [tally("Ctrl-C twice", wrong, count, f"code {EXIT_INTERRUPTED}, one line, the checkpoints whole")]
    wrong = [found for number in range(count) if (found := early_sigterm(folder / f"early{number}", number))]
    rows.append(tally("SIGTERM before the first step", wrong, count, f"code {EXIT_INTERRUPTED} and a line"))
    wrong = [found for what, size in BYTES.items() if (found := full_disk(folder / f"full{size}", what, size))]
    right = "one line and code 2, what was saved before as it was, and with room it resumed"
    return [*rows, tally("full disk", wrong, len(BYTES), right)]
