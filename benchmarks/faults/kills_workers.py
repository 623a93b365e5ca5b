"""Two workers: kill -9 of one or of both, again and again; and a worker that dies or stands still."""

from __future__ import annotations

import signal
from pathlib import Path

from benchmarks.faults import Row
from benchmarks.faults.kills import kill_often
from benchmarks.faults.training_runs import is_step, kill, start, workers_of
from kmaskrcnn.errors import EXIT_INTERRUPTED, EXIT_RESTART

WORKERS = ["--num_local_workers=2"]


def lose_one(folder: Path, number: int) -> str:
    """A worker gets a signal after step 3; what went wrong with the end of all and the going on, or nothing."""
    flags = [*WORKERS, "--steps=100000", "--checkpoint_every=2", "--stall_timeout=90"]
    run = start(folder, *flags)
    if not run.wait_for(lambda line: is_step(line, 3)):
        run.end(0)
        return f"no step 3: {run.text[-300:]}"
    kill(workers_of(run)[1], number)
    code = run.end()
    if code != EXIT_RESTART or "again to resume" not in run.text or "Traceback" in run.text:
        return f"ended with code {code}: {run.text[-300:]}"
    again = start(folder, *flags)
    if not again.wait_for(is_step):
        again.end(0)
        return f"did not resume: {again.text[-300:]}"
    kill(again.process.pid, signal.SIGTERM)
    code = again.end()
    if code != EXIT_INTERRUPTED or "resuming from step" not in again.text:
        return f"resumed and ended with code {code}: {again.text[-300:]}"
    return ""


def run(count: int, folder: Path) -> list[Row]:
    """`count` kills of two workers, and one worker that is killed and one that is stopped."""
    rows = [kill_often(folder / "kills", "2 workers", WORKERS, count, workers=2)]
    for name in ("SIGKILL", "SIGSTOP"):
        wrong = lose_one(folder / name, getattr(signal, name))
        right = f"the other ended with code {EXIT_RESTART} and a line; the same command resumed"
        rows.append(Row(f"{name} of one of 2 workers", 1, f"WRONG: {wrong}" if wrong else right, not wrong))
    return rows
