"""Trains R50-FPN beside torchvision's with its own mixed precision and prints images a second and memory.

    python -m benchmarks.gpu.run [--backend=jax] [--torch_python=PATH] [--batches=8,16] [--table=FILE]

Both start from the same weights, of which a thousand proposals an image come out, and train on the same pictures with
eight objects each, from host memory: ours with `compile` and `fit`, as a user trains, torchvision's with the loop of
its references. Each run is a process of its own, so that its peak of memory is its own. Without a GPU everything runs
on the CPU, small, which shows that it runs and gives no figure.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

# Where there is no GPU.
SMALL = {"height": 128, "width": 160, "batches": "2", "steps": 1, "dtype": "float32"}
ROOT = pathlib.Path(__file__).resolve().parents[2]
SIDES = ("ours", "torchvision", "torchvision, channels last")


def backend_at_hand():
    """jax or tensorflow, whichever is installed."""
    for name in ("jax", "tensorflow"):
        if importlib.util.find_spec(name):
            return name
    raise SystemExit("neither jax nor tensorflow is installed")


def run(side, options, batch, weights):
    """What one side printed of its run, as a dict; `error` where it ended otherwise."""
    module, python = "benchmarks.gpu.torch_side", options.torch_python
    environment = dict(os.environ)
    if side == "ours":
        module, python = "benchmarks.gpu.our_side", sys.executable
        environment["KERAS_BACKEND"] = options.backend
    arguments = [f"--{name}={getattr(options, name)}" for name in ("height", "width", "objects", "steps", "dtype")]
    if side.endswith("channels last"):
        arguments.append("--channels_last")
    command = [python, "-m", module, f"--weights={weights}", f"--batch={batch}", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    lines = result.stdout.strip().splitlines()
    if result.returncode or not lines:
        return {"side": side, "batch": batch, "error": f"ended with {result.returncode}"}
    return {"side": side, "batch": batch, **json.loads(lines[-1])}


def table(results):
    """The results as Markdown."""
    lines = [
        "| | batch | images a second | peak of GPU memory | mask RoIs a step | first step | loss at the end |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        if "error" in r:
            lines.append(f"| {r['side']} | {r['batch']} | {r['error']} | | | | |")
            continue
        name = f"{r['side']} ({r['backend']}, {r['dtype']})"
        cells = [f"{r['images_a_second']:.1f}", f"{r['memory_gb']:.1f} GB", f"{r['mask_rois']}"]
        lines.append(
            f"| {name} | {r['batch']} | {' | '.join(cells)} | {r['first_step_seconds']:.0f} s | {r['loss']:.3f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", help="jax or tensorflow; default: whichever is installed")
    parser.add_argument("--torch_python", default=sys.executable, help="a Python with torch and torchvision")
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--objects", type=int, default=8, help="objects an image")
    parser.add_argument("--batches", default="8,16", help="batch sizes, with , between")
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed, after as many to warm up")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--weights", type=pathlib.Path, help="file for the weights, which are used again if there")
    parser.add_argument("--table", type=pathlib.Path, help="also write the table to this file")
    options = parser.parse_args()
    options.backend = options.backend or backend_at_hand()
    if not shutil.which("nvidia-smi"):
        print("no GPU here (nvidia-smi is missing): what follows shows that it runs, and is no figure of a GPU")
        vars(options).update(SMALL)
    with tempfile.TemporaryDirectory() as temporary:
        weights = options.weights or pathlib.Path(temporary) / "model.pth"
        if not weights.exists():
            command = [options.torch_python, "-m", "benchmarks.gpu.torch_side", f"--weights={weights}", "--make"]
            subprocess.run(command, cwd=ROOT, check=True)
        results = []
        for batch in map(int, options.batches.split(",")):
            for side in SIDES:
                results.append(run(side, options, batch, weights))
                print(json.dumps(results[-1]), flush=True)
    text = table(results)
    print(text)
    if options.table:
        options.table.parent.mkdir(parents=True, exist_ok=True)
        options.table.write_text(text + "\n")
    if any("error" in r for r in results):
        raise SystemExit("a run ended with an error: see its message above")


if __name__ == "__main__":
    main()
