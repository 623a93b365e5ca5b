"""The automatic recipe and flagfiles on one set, one after another, for equal minutes or equal steps.

python -m benchmarks.recipes.run --train_annotations=SET --val_annotations=SET2 --flagfiles=configs/fruits.flags,... \
    --runs=FOLDER --max_minutes=20 [--init_weights=FILE --train_images=FOLDER ...]

Flags that this program does not know go to every run of train.py. A flagfile's own warm-up and moving average are those
of its full length: with --steps they are cut to a tenth of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from absl import app, flags

_FLAGFILES = flags.DEFINE_list("flagfiles", [], "Flagfiles to compare with; the recipe runs always.")
_RUNS = flags.DEFINE_string("runs", None, "Folder for the model folders and logs.", required=True)
_MINUTES = flags.DEFINE_float("max_minutes", 0.0, "Minutes of training each; 0: --steps.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps each.")


def _train(name: str, flagfile: str, more: list[str]) -> dict[str, float]:
    """Train, and return the steps and the scores of the last evaluation."""
    folder = Path(_RUNS.value) / name
    command = [sys.executable, "train.py", f"--model_dir={folder}"]
    if flagfile:
        command.append(f"--flagfile={flagfile}")
    if _MINUTES.value:
        command.append(f"--max_minutes={_MINUTES.value:g}")
    else:
        command += [f"--steps={_STEPS.value}", "--max_minutes=0"]
        if flagfile:
            command += [f"--warmup_steps={_STEPS.value // 10}", f"--ema_decay={max(0.9, 1 - 10 / _STEPS.value):.4f}"]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "w") as log:
        code = subprocess.run([*command, *more], stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"{name} ended with code {code}: {folder / 'log.txt'}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(row for row in reversed(rows) if row["group"] == "evaluation")


def main(arguments: list[str]) -> None:
    """Train with each and print the table."""
    more = arguments[1:]
    print("| settings | steps | box AP | mask AP | mask AP50 |\n| --- | --- | --- | --- | --- |", flush=True)
    for flagfile in ("", *_FLAGFILES.value):
        name = Path(flagfile).stem or "recipe"
        row = _train(name, flagfile, more)
        scores = " | ".join(f"{row[key]:.3f}" for key in ("box_AP", "mask_AP", "mask_AP50"))
        print(f"| {name} | {row['step']:.0f} | {scores} |", flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: flags.FLAGS(argv, known_only=True))
