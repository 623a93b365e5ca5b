"""Kill a training run again and again, and compare what it comes to with a run that nobody touched.

python -m benchmarks.kill --runs=FOLDER [--workers=2] [--kills=10] prints a line for each kill and whether the final
weights, optimizer state and moving averages are the same bit for bit. Kills are SIGKILL, in turn during a step, during
the write of a checkpoint and during an evaluation; with several workers, of one of them or of all at once.
"""

from __future__ import annotations

import argparse
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.replicas import ROOT, command, state

STEPS, CHECKPOINT_EVERY, EVAL_EVERY = 24, 2, 4
MOMENTS = ("a step", "a checkpoint's write", "an evaluation")


def start(folder: Path, workers: int) -> subprocess.Popen:
    """The run, from wherever it stands."""
    flags = [f"--steps={STEPS}", f"--checkpoint_every={CHECKPOINT_EVERY}", f"--eval_every={EVAL_EVERY}"]
    flags += ["--deterministic", "--roi_batch_size=32", "--rpn_pre_nms_top_k_train=100"] + (
        [f"--num_local_workers={workers}"] if workers > 1 else []
    )
    return subprocess.Popen(
        command(folder, *flags),
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill(process: subprocess.Popen, rng: random.Random, workers: int) -> str:
    """SIGKILL the run, or with several workers one of them or all; returns whom."""
    whom, number = "the process", process.pid
    if workers > 1:
        listed = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
        one = rng.choice([None, *range(workers)])
        whom = "all workers" if one is None else f"worker {one}"
        number = process.pid if one is None else int(listed.stdout.split()[one])
    os.kill(number, signal.SIGKILL)
    return whom


def killed_run(folder: Path, workers: int, moment: str, rng: random.Random) -> str:
    """Start the run, kill it at a moment, and tell how that went; an empty text where it ended before."""
    process = start(folder, workers)
    lines: queue.Queue[str] = queue.Queue()
    output: list[str] = []

    def read() -> None:
        for line in process.stdout:
            output.append(line)
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    checkpoints = folder / "checkpoints"
    seen, wanted = 0, rng.randint(2, 3)  # so that most runs get somewhere
    whom, step = "", "start"
    while process.poll() is None and not whom:
        writing = any(checkpoints.glob("*temp*")) if seen else False
        if moment == MOMENTS[1] and seen >= wanted and writing:
            whom = kill(process, rng, workers)
        try:
            line = lines.get(timeout=0.0005 if moment == MOMENTS[1] else 0.05)
        except queue.Empty:
            continue
        if not line.startswith("step "):
            continue
        seen, step = seen + 1, line.split()[1].split("/")[0]
        in_evaluation = int(step) % EVAL_EVERY == 0
        if (moment == MOMENTS[0] and seen >= wanted) or (moment == MOMENTS[2] and in_evaluation):
            time.sleep(rng.uniform(0.0, 0.2) if moment == MOMENTS[0] else rng.uniform(0.8, 2.5))
            whom = kill(process, rng, workers)
    started = time.monotonic()
    code = process.wait(timeout=120)
    if not whom:
        return ""
    time.sleep(1.0 if workers > 1 else 0.0)  # workers that follow their launcher
    left = sorted(path.name for path in checkpoints.glob("*temp*")) if checkpoints.exists() else []
    told = next((line for line in output if line.startswith("going on")), "from the start").strip()
    ended = f", the rest ended with code {code} after {time.monotonic() - started:.0f} s" if code > 0 else ""
    if any(line.startswith(f"evaluation after step {step}:") for line in output):
        moment = "what follows an evaluation"  # it was quicker than the kill
    half = f"; half-written: {', '.join(left)}" if left else ""
    return f"{told.split(',')[0]}; killed {whom} in {moment} after step {step}{ended}{half}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    whole, torn = arguments.runs / f"whole{arguments.workers}", arguments.runs / f"torn{arguments.workers}"
    kills = 0
    while kills < arguments.kills:
        line = killed_run(torn, arguments.workers, MOMENTS[kills % len(MOMENTS)], rng)
        if not line:
            print("the run ended before it could be killed")
            break
        kills += 1
        print(f"{kills}: {line}", flush=True)
    for folder in (torn, whole):
        process = start(folder, arguments.workers)
        output, _ = process.communicate()
        if process.returncode:
            sys.exit(output[-3000:])
    ours, others = state(torn), state(whole)
    same = ours.keys() == others.keys() and all(np.array_equal(ours[n], others[n]) for n in ours)
    print(f"{STEPS} steps, {kills} kills: {len(ours)} arrays are {'equal bit for bit' if same else 'NOT equal'}")
    sys.exit(0 if same and kills == arguments.kills else 1)


if __name__ == "__main__":
    main()
