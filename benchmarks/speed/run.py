"""Times our model and torchvision's in turns, with the same weights and images, and prints ratios.

    python -m benchmarks.speed.run --torch_python=PATH [--only=PATTERN;...] [--repeats=5] [--json=FILE] [--table=FILE]

PATH is the Python of an environment with torch and torchvision. Each side is a process of its own; they take turns at
every repetition, so that what else the machine does falls on both. A work is left out where one of the sides finds
fewer proposals or detections than the other. Results are added to those in FILE, so that parts can be run one by one.
"""

import argparse
import fnmatch
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.speed import roof, workloads

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIDES = ("ours", "torchvision")
# Share by which the numbers of proposals, detections and mask RoIs may differ: rounding turns a few decisions.
SAME_WORK = {"float32": 0.01, "bfloat16": 0.1}
PAUSE = 0.3  # seconds after a turn, in which the threads of a side that has finished fall asleep


def works(folder):
    """Name -> kind and arguments of everything that is timed."""
    result = {}
    for batch in (1, 4):
        for height, width in workloads.SIZES:
            for dtype in ("float32", "bfloat16"):
                arguments = {"height": height, "width": width, "batch": batch, "dtype": dtype}
                name = f"{height}x{width}, batch {batch}, {dtype}"
                result[f"inference {name}"] = ("inference", arguments)
                if batch == 1 and height == workloads.SIZES[0][0]:
                    result[f"stages {name}"] = ("stages", arguments)
    for dtype in ("float32", "bfloat16"):
        size, batch, objects = workloads.TRAIN_SIZE, workloads.TRAIN_BATCH, workloads.TRAIN_OBJECTS
        arguments = {"size": size, "batch": batch, "objects": objects, "dtype": dtype}
        result[f"training step {size}x{size}, batch {batch}, {dtype}"] = ("training", arguments)
    for rois, size in ((512, 14), (512, 7)):
        for backward in (False, True):
            files = {"maps": str(folder / "maps.npz"), "boxes": str(folder / "boxes.npy")}
            arguments = {"rois": rois, "size": size, "backward": backward, **files}
            result[f"RoIAlign {rois} RoIs {size}x{size}, {'forward + backward' if backward else 'forward'}"] = (
                "align",
                arguments,
            )
    (height, width), count = workloads.PASTE_SIZE, workloads.PASTE_COUNT
    result[f"paste {count} masks {height}x{width}"] = ("paste", {"height": height, "width": width, "count": count})
    return result


def write_inputs(folder):
    """Feature maps of an 800 x 1344 image and boxes in it of all sizes, for RoIAlign alone."""
    rng = np.random.default_rng(0)
    sides = [(200, 336), (100, 168), (50, 84), (25, 42)]
    maps = {f"P{i + 2}": rng.normal(size=(1, h, w, 256)).astype(np.float32) for i, (h, w) in enumerate(sides)}
    np.savez(folder / "maps.npz", **maps)
    np.save(folder / "boxes.npy", workloads.instances(512, 800, 1344)[1])


class Side:
    """A process that runs works on request."""

    def __init__(self, name, command):
        self.name = name
        environment = {"PYTHONWARNINGS": "ignore"} | os.environ
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.versions = self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: see its message above")
        return json.loads(line)

    def ask(self, request):
        """Send a request and wait for the answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self):
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def check_same_work(name, told, dtype):
    """Raise where the sides do not do the same amount of work."""
    for what in told["ours"]:
        ours, theirs = (np.sum(told[side][what]) for side in SIDES)
        if abs(ours - theirs) > SAME_WORK[dtype] * max(ours, theirs) and what != "mask_rois":
            raise SystemExit(f"{name}: {what} {told['ours'][what]} here and {told['torchvision'][what]} in torchvision")


def measure(name, kind, arguments, sides, repeats):
    """One work on both sides in turns: seconds of each repetition by stage, and what the sides said of it."""
    told = {side.name: side.ask({"prepare": [kind, arguments]}) for side in sides}
    check_same_work(name, told, arguments.get("dtype", "float32"))
    runs = {side.name: [] for side in sides}
    for _ in range(repeats):
        for side in sides:
            time.sleep(PAUSE)
            runs[side.name].append(side.ask({"run": True}))
    result = {"told": told, "repeats": repeats}
    for side, values in runs.items():
        stages = [stage for stage in values[0] if stage != "memory_mb"]
        result[side] = {stage: [v[stage] for v in values] for stage in stages}
    return result


def measure_memory(commands, name, kind, arguments):
    """The peak memory of a process that does nothing but this work, in MB."""
    result = {}
    for side, command in commands.items():
        process = Side(side, command)
        process.ask({"prepare": [kind, arguments]})
        result[side] = max(process.ask({"run": True})["memory_mb"] for _ in range(2))
        process.close()
    return {"memory_mb": result}


def ratio(result, stage="total"):
    """torchvision's median over ours: above 1 we are faster."""
    ours, theirs = (statistics.median(result[side][stage]) for side in SIDES)
    return theirs / ours


def table(results):
    """The results as Markdown."""
    lines = ["| work | ours | torchvision | ratio |", "| --- | --- | --- | --- |"]

    def cell(values):
        low, middle, high = (1000 * f(values) for f in (min, statistics.median, max))
        return f"{middle:.0f} ms ({low:.0f} to {high:.0f})" if middle >= 100 else f"{middle:.1f} ms"

    timed = {name: r for name, r in results.items() if "ours" in r}
    for name, result in timed.items():
        if not name.startswith("stages"):
            ours, theirs = (cell(result[side]["total"]) for side in SIDES)
            lines.append(f"| {name} | {ours} | {theirs} | {ratio(result):.2f} |")
    # Against what the reference's users have in float32.
    for name, result in timed.items():
        reference = timed.get(name.replace("bfloat16", "float32"))
        if name.startswith("inference") and name.endswith("bfloat16") and reference:
            theirs = statistics.median(reference["torchvision"]["total"])
            gain = theirs / statistics.median(result["ours"]["total"])
            lines.append(f"| {name}, beside torchvision in float32 | | | {gain:.2f} |")
    lines += ["", "| peak memory | ours | torchvision |", "| --- | --- | --- |"]
    for name, result in results.items():
        if "memory_mb" in result:
            ours, theirs = (result["memory_mb"][side] / 1000 for side in SIDES)
            lines.append(f"| {name.removeprefix('memory, ')} | {ours:.2f} GB | {theirs:.2f} GB |")
    for name, result in timed.items():
        if name.startswith("stages"):
            lines += ["", roof.stage_table(name, result, result["roof"])]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", required=True, help="a Python with torch and torchvision")
    parser.add_argument("--only", default="*", help="patterns of the names of what to run, with ; between")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=pathlib.Path, help="folder for the weights, which are used again if there")
    parser.add_argument("--json", type=pathlib.Path, help="file that results are added to")
    parser.add_argument("--table", type=pathlib.Path, help="also write the table to this file")
    options = parser.parse_args()
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    wanted = options.only.split(";")

    def asked(name):
        return any(fnmatch.fnmatch(name, pattern) for pattern in wanted)

    def keep(name, result):
        results[name] = result
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        weights = str(folder / "model.pth")
        write_inputs(folder)
        commands = {
            "ours": [sys.executable, "-m", "benchmarks.speed.our_side", weights],
            "torchvision": [options.torch_python, "-m", "benchmarks.speed.torch_side", weights],
        }
        every = works(folder)
        chosen = {name: work for name, work in every.items() if asked(name)}
        if chosen:
            sides = [Side(name, commands[name]) for name in reversed(SIDES)][::-1]  # torchvision makes the weights
            versions = {"python": platform.python_version(), "cores": os.cpu_count()}
            keep("versions", versions | sides[0].versions | sides[1].versions)
            for name, (kind, arguments) in chosen.items():
                result = measure(name, kind, arguments, sides, options.repeats)
                if kind == "stages":
                    result["roof"] = sides[0].ask({"prepare": ["roof", arguments]})
                keep(name, result)
                print(f"{name}: {ratio(result):.2f}", flush=True)
            for side in sides:
                side.close()
        for name, (kind, arguments) in every.items():
            large = kind == "inference" and arguments["height"] == workloads.SIZES[0][0] and arguments["batch"] == 1
            if (large or kind == "training") and asked(f"memory, {name}"):
                keep(f"memory, {name}", measure_memory(commands, name, kind, arguments))
    text = table(results)
    print(text)
    if options.table:
        options.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
