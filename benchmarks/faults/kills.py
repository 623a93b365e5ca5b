"""kill -9 again and again, in turn at the start, during a step and during the write of a checkpoint.

What a killed run comes to is compared bit for bit with one that nobody touched: weights, optimizer slots, averages.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

from benchmarks.faults import Row
from benchmarks.faults.training_runs import difference, is_step, kill, start, state, whole_run, workers_of

STEPS = 24
FLAGS = (f"--steps={STEPS}", "--checkpoint_every=2")
# Part -> what it is called, and its flags
CONFIGURATIONS = {
    "bfloat16": ("bfloat16", ["--dtype=mixed_bfloat16"]),
    "accumulation": ("accumulation of 2 parts", ["--accumulate_steps=2"]),
    "mirrored": ("2 mirrored devices", ["--strategy=mirrored", "--num_devices=2"]),
}
MOMENTS = ("the start", "a step", "a checkpoint's write")


def kill_once(folder: Path, flags: list[str], number: int, workers: int = 1) -> str:
    """Start the run and kill it at a moment that `number` gives; tells how that went, an empty text where it ended."""
    rng = random.Random(number)
    moment = MOMENTS[number % len(MOMENTS)]
    run = start(folder, *FLAGS, *flags)
    checkpoints, seen = folder / "checkpoints", 0

    def now(line: str) -> bool:
        nonlocal seen
        seen += is_step(line)
        if moment == MOMENTS[0]:
            return "images per step" in line
        if moment == MOMENTS[1]:
            return seen >= 3
        return (
            seen >= 2 and checkpoints.is_dir() and any(path.name.startswith("part.") for path in checkpoints.iterdir())
        )

    if not run.wait_for(now, pause=0.0005 if moment == MOMENTS[2] else 0.05):
        run.end()
        return ""
    if moment != MOMENTS[2]:
        time.sleep(rng.uniform(0.0, 0.2))
    whom, victim = "the process", run.process.pid
    if workers > 1:
        one = rng.choice([None, *range(workers)])
        whom = "all workers" if one is None else f"worker {one}"
        victim = run.process.pid if one is None else workers_of(run)[one]
    kill(victim)
    code = run.end()
    if workers > 1:
        time.sleep(1.0)  # for the workers that follow their launcher
    told = next((line.split(",")[0] for line in run.output if line.startswith("resuming")), "from the start")
    return f"{told}; killed {whom} in {moment} after {seen} steps; code {code}"


def kill_often(folder: Path, name: str, flags: list[str], count: int, workers: int = 1) -> Row:
    """Kill a run `count` times, let it end, and compare it with one that was left alone."""
    test = f"kill -9 in training, {name}"
    torn, whole = folder / "torn", folder / "whole"
    for number in range(count):
        line = kill_once(torn, flags, number, workers)
        print(f"{name} {number}: {line}", flush=True)
        if not line:
            return Row(test, number, f"WRONG: the run ended by itself before kill {number}", False)
    for path in (torn, whole):
        problem = whole_run(path, *FLAGS, *flags)
        if problem:
            return Row(test, count, f"WRONG: {problem}", False)
    apart = difference(torn, whole)
    arrays = len(state(whole))
    right = f"weights, optimizer slots and averages ({arrays} arrays) equal those of a run left alone, bit for bit"
    return Row(test, count, f"WRONG: {apart}" if apart else right, not apart)


def run(count: int, folder: Path, part: str) -> list[Row]:
    """`count` kills of one process in one of CONFIGURATIONS."""
    name, flags = CONFIGURATIONS[part]
    return [kill_often(folder, name, flags, count)]
