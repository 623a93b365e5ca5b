"""Variations of the model beside the plain one, for equal computing and several seeds: prints a table.

python -m benchmarks.variations --runs=FOLDER --results=FILE --plain_steps=300 [--seeds=0,1,2] [--variations=NAME,...] \
    --flagfile=configs/mobile_mobilenet_v2.flags --train_annotations=SET ...

A step of each model is timed first, in turns, by the time of the processor; a variation then trains for as many steps
as cost what those of the plain model do. So equal minutes are compared, whatever else the machine does, and runs of
different days and machines can be put together. Runs that are in --results are not made again. Warm-up and moving
average are cut to the steps, as in benchmarks.recipes. AP is that of the last evaluation.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from kmaskrcnn.config import Config
from kmaskrcnn.programs.flags import config_from_flags, define_config_flags

VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mask scoring": {"mask_scoring": True},
    "PointRend": {"mask_point_rend": True},
    "cascade": {"cascade_ious": (0.5, 0.6, 0.7)},
    "GIoU": {"box_loss": "giou", "box_loss_weight": 10},
    "class-agnostic boxes and masks": {"box_class_agnostic": True, "mask_class_agnostic": True},
    "masks of 56 x 56": {"mask_pool_size": 28},
}
OBJECTS, ROUNDS, STEPS = 40, 3, 3  # of the timing

_RUNS = flags.DEFINE_string("runs", None, "Folder for the model folders and logs.", required=True)
_RESULTS = flags.DEFINE_string("results", None, "JSON file that results are added to.", required=True)
_PLAIN_STEPS = flags.DEFINE_integer("plain_steps", 300, "Steps of the plain model.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_VARIATIONS = flags.DEFINE_list("variations", list(VARIATIONS), "Names; the plain model runs always.")
_OWN = ("runs", "results", "plain_steps", "seeds", "variations")


def as_flag(name: str, value: Any) -> str:
    """A setting as train.py takes it."""
    return f"--{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


def given_flags() -> list[str]:
    """What goes to train.py: all but this program's own flags."""
    return [a for a in sys.argv[1:] if a.lstrip("-").partition("=")[0] not in _OWN]


def prepare_step(config: Config):
    """A function that runs one step on a batch of random rectangles."""
    import tensorflow as tf

    from kmaskrcnn.model_folder import build_model
    from kmaskrcnn.training.step import TrainStep, build_optimizer

    model, train, side = build_model(config), config.train, config.data.crop_size
    step = TrainStep(model, build_optimizer(train, model), train)
    rng = np.random.default_rng(0)
    count = (train.batch_size, OBJECTS)
    start = rng.uniform(0, side - 32, (*count, 2))
    boxes = np.concatenate([start, start + rng.uniform(8, 32, (*count, 2))], -1).astype(np.float32)
    cells = config.data.mask_resolution
    batch = {
        "images": rng.integers(0, 256, (train.batch_size, side, side, 3), np.uint8),
        "image_shapes": np.full((train.batch_size, 2), side, np.int32),
        "boxes": boxes,
        "classes": np.ones(count, np.int32),
        "is_crowd": np.zeros(count, bool),
        "masks": np.full((*count, cells, cells), 255, np.uint8),
        "mask_frames": boxes,
    }
    batch = {name: tf.constant(value) for name, value in batch.items()}
    return lambda: step([batch], 1e-6, 0).numpy()


def relative_costs(names: list[str], config: Config) -> dict[str, float]:
    """Processor time of a step, of the plain model's."""
    steps = {name: prepare_step(config.replace(num_classes=1, **VARIATIONS[name])) for name in names}
    for step in steps.values():
        step()
        step()
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            begin = time.process_time()
            for _ in range(STEPS):
                step()
            times[name].append(time.process_time() - begin)
    plain = statistics.median(times["plain"])
    return {name: statistics.median(values) / plain for name, values in times.items()}


def train(name: str, seed: str, steps: int, more: list[str]) -> dict[str, float]:
    """Train, and return the scores of the last evaluation."""
    folder = Path(_RUNS.value) / f"{name.replace(' ', '_')}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    own = {"seed": seed, "steps": steps, "max_minutes": 0, "model_dir": folder}
    own |= {"warmup_steps": steps // 10, "ema_decay": round(max(0.9, 1 - 10 / steps), 4)}
    command = [sys.executable, "train.py", *more, *(as_flag(*item) for item in (VARIATIONS[name] | own).items())]
    with open(folder / "log.txt", "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"{name}, seed {seed}, ended with code {code}: {folder / 'log.txt'}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if row["group"] == "evaluation")
    return {key: last[key] for key in ("box_AP", "mask_AP", "mask_AP50", "mask_AP75")}


def table(results: dict) -> str:
    """Mean and spread over the seeds, as Markdown."""
    columns = ("variation", "cost of a step", "steps", "seeds", "box AP", "mask AP", "mask AP50", "mask AP75")
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for name, result in results.items():
        runs = list(result["runs"].values())
        cells = [name, f"{result['cost']:.2f}", str(result["steps"]), str(len(runs))]
        for key in runs[0] if runs else ():
            values = [run[key] for run in runs]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Train what is missing and print the table."""
    path, more = Path(_RESULTS.value), given_flags()
    names = ["plain", *(name for name in _VARIATIONS.value if name != "plain")]
    if unknown := set(names) - set(VARIATIONS):
        raise SystemExit(f"--variations: {', '.join(sorted(unknown))}: choose of {', '.join(VARIATIONS)}")
    asked = {"plain_steps": _PLAIN_STEPS.value, "flags": more}
    kept = json.loads(path.read_text()) if path.exists() else asked | {"results": {}}
    if any(kept.get(name) != value for name, value in asked.items()):
        raise SystemExit(f"--results={path}: it holds no runs of these --plain_steps and flags; name another file")
    results = kept["results"]
    missing = [name for name in names if name not in results]
    if missing:
        costs = relative_costs(["plain", *(name for name in missing if name != "plain")], config_from_flags())
        for name in missing:
            results[name] = {"cost": costs[name], "steps": round(_PLAIN_STEPS.value / costs[name]), "runs": {}}
    for seed in _SEEDS.value:
        for name in names:
            if seed not in results[name]["runs"]:
                results[name]["runs"][seed] = train(name, seed, results[name]["steps"], more)
                path.write_text(json.dumps(kept, indent=1) + "\n")
                print(f"{name}, seed {seed}: {results[name]['runs'][seed]}", flush=True)
    print(table(results))


if __name__ == "__main__":
    define_config_flags()
    app.run(main)
