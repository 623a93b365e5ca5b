"""Times our model and its rivals in turns, with the same weights and images, and prints ratios.

    python -m benchmarks.speed.run --torch_python=PATH [--sides=NAME,...] [--only=PATTERN;...] [--repeats=5]
        [--json=FILE] [--table=FILE]

PATH is the Python of an environment with torch, torchvision and what else the sides need (RIVALS in the Makefile). Each
side is a process of its own; they take turns at every repetition, so that what else the machine does falls on all. The
run stops where a side finds fewer proposals or detections than ours, or other detections in float32. Results are added
to those in FILE, so that parts can be run one by one.
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

from benchmarks.parity.compare import SCORE_BOUND, Found, match
from benchmarks.speed import roof, workloads

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Graphs end before the masks are pasted: torchvision exports that as a loop which OpenVINO does not read.
GRAPHS = ("inference*masks 28x28",)
# Name -> its program, and patterns of the works that it does.
SIDES = {
    "ours": ("our_side", ("*",)),
    "ours-frozen": ("our_side --frozen", ("inference*",)),
    "ours-constants": ("our_side --constants", GRAPHS),
    "torchvision": ("torch_side", ("*",)),
    "compiled": ("torch_side --compile", ("inference*batch 1, float32*", "training*float32")),
    "onnxruntime": ("graph_side onnxruntime", GRAPHS),
    "openvino": ("graph_side openvino", GRAPHS),
    "onnxruntime-int8": ("graph_side onnxruntime-int8", GRAPHS),
    "openvino-int8": ("graph_side openvino-int8", GRAPHS),
}
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
                result[f"inference {name}"] = ("inference", arguments | {"paste": True})
                if dtype == "float32":
                    result[f"inference {name}, masks 28x28"] = ("inference", arguments | {"paste": False})
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


def matches(name, patterns):
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


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
    """Raise where a side does another amount of work than ours."""
    for side in told:
        for what in told["ours"]:
            ours, theirs = (np.sum(told[s][what]) for s in ("ours", side))
            if abs(ours - theirs) > SAME_WORK[dtype] * max(ours, theirs) and what != "mask_rois":
                raise SystemExit(f"{name}: {what} {told['ours'][what]} here and {told[side][what]} in {side}")


def check_same_detections(name, found, told):
    """Raise where a side finds other detections than ours; of int8, tell the share of ours that it finds."""
    parts = ("boxes", "classes", "scores", "masks")
    found = {side: Found(*(np.array(own[p]) if p in own else None for p in parts)) for side, own in found.items()}
    ours = found["ours"]
    for side, theirs in found.items():
        if side.endswith("int8"):
            pairs = match(ours.boxes, theirs.boxes, ours.classes, theirs.classes, iou_bound=0.5)
            told[side]["found"] = len(pairs) / len(ours.boxes)
            continue
        lost, _, pairs = ours.unmatched(theirs)
        pairs = [] if ours.masks is None else pairs
        off = max((np.abs(ours.masks[i] - theirs.masks[j]).max() for i, j in pairs), default=0.0)
        if len(lost) > SAME_WORK["float32"] * len(ours.boxes) or off > SCORE_BOUND:
            raise SystemExit(f"{name}: {len(lost)} detections are not in {side}, the others' masks differ by {off:.1e}")


def measure(name, kind, arguments, sides, repeats):
    """One work on all sides in turns: seconds of each repetition by stage, and what the sides said of it."""
    told = {side.name: side.ask({"prepare": [kind, arguments]}) for side in sides}
    found = {side: own.pop("found") for side, own in told.items() if "found" in own}
    dtype = arguments.get("dtype", "float32")
    check_same_work(name, told, dtype)
    if found and dtype == "float32":
        check_same_detections(name, found, told)
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
    for side, command in reversed(commands.items()):  # a rival makes the weights
        process = Side(side, command)
        process.ask({"prepare": [kind, arguments]})
        result[side] = max(process.ask({"run": True})["memory_mb"] for _ in range(2))
        process.close()
    return {"memory_mb": result}


def best_rival(result):
    """The fastest side that is not ours; one in int8 only where there is no other."""
    rivals = [side for side in SIDES if side in result and not side.startswith("ours")]
    return min(rivals, key=lambda side: (side.endswith("int8"), statistics.median(result[side]["total"])))


def ratio(result, side, own="ours"):
    """A side's median over ours: above 1 we are faster."""
    ours, theirs = (statistics.median(result[s]["total"]) for s in (own, side))
    return theirs / ours


def roof_rows(timed, ours):
    """The roof of whole works, and the share of it that each of our sides reaches."""
    lines = []
    for name, result in timed.items():
        if "roof" in result and not name.startswith("stages"):
            seconds = sum(stage["seconds"] for stage in result["roof"]["stages"].values())
            shares = [
                f"{seconds / statistics.median(result[side]['total']):.0%}" if side in result else "" for side in ours
            ]
            lines.append(f"| {name} | {1000 * seconds:.0f} ms | {' | '.join(shares)} |")
    heading = ["share of the roof", "bare convolutions", *ours]
    return ["", f"| {' | '.join(heading)} |", "|" + " --- |" * len(heading), *lines] if lines else []


def table(results):
    """The results as Markdown."""
    timed = {name: r for name, r in results.items() if "ours" in r}
    used = [side for side in SIDES if any(side in r for r in timed.values())]
    ours = [side for side in used if side.startswith("ours")]
    heading = ["work", *used, "torchvision / ours", *(f"best / {side}" for side in ours)]
    lines = [f"| {' | '.join(heading)} |", "|" + " --- |" * len(heading)]

    def cell(result, side):
        if side not in result:
            return ""
        low, middle, high = (1000 * f(result[side]["total"]) for f in (min, statistics.median, max))
        text = f"{middle:.0f} ms ({low:.0f} to {high:.0f})" if middle >= 100 else f"{middle:.1f} ms"
        share = result["told"][side].get("found")
        return text if share is None else f"{text}, finds {share:.0%}"

    for name, result in timed.items():
        if not name.startswith("stages"):
            best = best_rival(result)
            cells = [cell(result, side) for side in used]
            cells += [f"{ratio(result, 'torchvision'):.2f}" if "torchvision" in result else ""]
            cells += [f"{ratio(result, best, side):.2f} ({best})" if side in result else "" for side in ours]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    # Against what the reference's users have in float32.
    for name, result in timed.items():
        reference = timed.get(name.replace("bfloat16", "float32"), {})
        if name.startswith("inference") and name.endswith("bfloat16") and "torchvision" in reference:
            gain = ratio({"ours": result["ours"], "torchvision": reference["torchvision"]}, "torchvision")
            lines.append(f"| {name}, beside torchvision in float32 |{' |' * len(used)} {gain:.2f} |{' |' * len(ours)}")
    lines += roof_rows(timed, ours)
    measured = {name: r["memory_mb"] for name, r in results.items() if "memory_mb" in r}
    used = [side for side in SIDES if any(side in r for r in measured.values())]
    if measured:
        heading = ["peak memory", *used]
        lines += ["", f"| {' | '.join(heading)} |", "|" + " --- |" * len(heading)]
    for name, result in measured.items():
        cells = [f"{result[side] / 1000:.2f} GB" if side in result else "" for side in used]
        lines.append(f"| {name.removeprefix('memory, ')} | {' | '.join(cells)} |")
    for name, result in timed.items():
        if name.startswith("stages"):
            lines += ["", roof.stage_table(name, result, result["roof"])]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch_python", required=True, help="a Python with torch, torchvision and what the sides need"
    )
    parser.add_argument("--sides", default="ours,torchvision", help=f"of {', '.join(SIDES)}: ours and others")
    parser.add_argument("--only", default="*", help="patterns of the names of what to run, with ; between")
    parser.add_argument("--roof", action="store_true", help="also the bare convolutions of each inference")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--work", type=pathlib.Path, help="folder for the weights and graphs, used again if there")
    parser.add_argument("--json", type=pathlib.Path, help="file that results are added to")
    parser.add_argument("--table", type=pathlib.Path, help="also write the table to this file")
    options = parser.parse_args()
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    asked_sides = options.sides.split(",")
    rivals = [side for side in asked_sides if not side.startswith("ours")]
    if "ours" not in asked_sides or not rivals or not set(asked_sides) <= set(SIDES):
        parser.error(f"--sides={options.sides}: give ours and at least one rival of {', '.join(SIDES)}")

    def asked(name):
        return matches(name, options.only.split(";"))

    def keep(name, result):
        results[name] = result
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or pathlib.Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        weights = str(folder / "model.pth")
        write_inputs(folder)
        commands = {}
        for side in SIDES:
            if side in asked_sides:
                module, *arguments = SIDES[side][0].split()
                python = sys.executable if side.startswith("ours") else options.torch_python
                commands[side] = [python, "-m", f"benchmarks.speed.{module}", weights, *arguments]
        every = works(folder)
        able = {name: [side for side in commands if matches(name, SIDES[side][1])] for name in every}
        chosen = {name: work for name, work in every.items() if asked(name) and set(able[name]) & set(rivals)}
        if chosen:
            sides = {name: Side(name, commands[name]) for name in reversed(commands)}  # a rival makes the weights
            versions = {"python": platform.python_version(), "cores": os.cpu_count()}
            for side in sides.values():
                versions |= side.versions
            keep("versions", versions)
            for name, (kind, arguments) in chosen.items():
                result = measure(name, kind, arguments, [sides[side] for side in able[name]], options.repeats)
                if kind == "stages" or (options.roof and kind == "inference"):
                    # Frozen, where there is such a side: it is the one that oneDNN slows down least.
                    result["roof"] = sides.get("ours-frozen", sides["ours"]).ask({"prepare": ["roof", arguments]})
                keep(name, result)
                best = best_rival(result)
                print(f"{name}: {ratio(result, best):.2f} ({best})", flush=True)
            for side in sides.values():
                side.close()
        for name, (kind, arguments) in every.items():
            large = kind == "inference" and arguments["height"] == workloads.SIZES[0][0] and arguments["batch"] == 1
            if ((large and arguments["paste"]) or kind == "training") and asked(f"memory, {name}"):
                own = {side: commands[side] for side in able[name]}
                keep(f"memory, {name}", measure_memory(own, name, kind, arguments))
    text = table(results)
    print(text)
    if options.table:
        options.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
