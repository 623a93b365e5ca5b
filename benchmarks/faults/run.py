"""Runs the kinds of faults and writes their table.

    python -m benchmarks.faults.run --folder=FOLDER --table=FILE [--only=KIND,...] [--count=N] [--jobs=2]

Exit code 0 where every row is right. What a kind prints goes to FOLDER/KIND.log.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

from benchmarks.faults import Row

ROOT = Path(__file__).resolve().parents[2]
# Modules of this package, or parts of them as MODULE-PART, and how many faults each tries; the longest first.
KINDS = {
    "kills_workers": 10,
    "kills-mirrored": 10,
    "kills-bfloat16": 10,
    "kills-accumulation": 10,
    "stops": 3,
    "damaged_checkpoints": 240,
    "hostile_requests": 5000,
    "hostile_annotations": 720,
    "lost_images": 20,
    "weight_files": 300,
}
TIMEOUT = 3600.0  # seconds of one kind


def run_one(kind: str, count: int, folder: Path) -> None:
    """In a process of its own: run a kind and write its rows to FOLDER/KIND.json."""
    work = folder / kind
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        module, _, part = kind.partition("-")
        rows = importlib.import_module(f"benchmarks.faults.{module}").run(count, work, *([part] if part else []))
    except Exception as error:
        traceback.print_exc()
        rows = [Row(kind, count, f"the test itself failed: {type(error).__name__}: {error}", False)]
    (folder / f"{kind}.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows]))


def start_one(kind: str, count: int, folder: Path) -> tuple[list[Row], float]:
    """The rows of a kind and the seconds it took."""
    (folder / f"{kind}.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.faults.run", f"--folder={folder}", f"--one={kind}", f"--count={count}"]
    began = time.monotonic()
    reason = "the process of the test ended"
    with (folder / f"{kind}.log").open("w") as log:
        try:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=TIMEOUT, env=os.environ)
        except subprocess.TimeoutExpired:
            reason = f"not done after {TIMEOUT:.0f} s"
    seconds = time.monotonic() - began
    try:
        return [Row(**row) for row in json.loads((folder / f"{kind}.json").read_text())], seconds
    except FileNotFoundError:
        return [Row(kind, count, f"{reason}: {folder / f'{kind}.log'}", False)], seconds


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| test | count | outcome |", "| --- | --- | --- |"]
    return (
        "\n".join(lines + [f"| {row.test} | {row.count:,} | {row.outcome.replace('|', '/')} |" for row in rows]) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--count", type=int, default=0, help="faults of each kind; 0: as KINDS has them")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        run_one(arguments.one, arguments.count, folder)
        return
    kinds = [kind for kind in KINDS if kind in arguments.only.split(",")]
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = {kind: pool.submit(start_one, kind, arguments.count or KINDS[kind], folder) for kind in kinds}
        rows: list[Row] = []
        for kind, job in jobs.items():
            found, seconds = job.result()
            rows += found
            print(f"{kind}: {seconds:.0f} s, {'right' if all(row.ok for row in found) else 'WRONG'}", flush=True)
    text = table(rows)
    if arguments.table:
        arguments.table.write_text(text)
    print(f"\n{text}\n{(time.monotonic() - began) / 60:.1f} minutes")
    sys.exit(0 if rows and all(row.ok for row in rows) else 1)


if __name__ == "__main__":
    main()
