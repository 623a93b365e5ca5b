"""Detections of trained models beside torchvision's, from the files of photographs; exits with 1 past a bound.

    python -m benchmarks.parity.trained --torch_python=PATH --coco=FOLDER --imagenet=FILE.npz --work=FOLDER2

torchvision trains each of its models for some steps on the photographs (FOLDER has instances_*.json and a folder of
images), so that what is found are objects; MobileNetV2 starts from ImageNet weights, the others from random ones. The
state dicts go through the importer, and both programs read the same files.
"""

import argparse
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf

from benchmarks.parity.compare import Table
from benchmarks.parity.photographs import compare_files
from benchmarks.parity.run import MODELS, ROOT, TOP_K
from kmaskrcnn.weights.convert import import_file


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", required=True, help="a Python with torch and torchvision")
    parser.add_argument("--coco", required=True, type=pathlib.Path, help="folder with instances_*.json and photographs")
    parser.add_argument("--imagenet", required=True, type=pathlib.Path, help="MobileNetV2's arrays (.npz)")
    parser.add_argument("--work", required=True, type=pathlib.Path, help="folder for torchvision's side; used again")
    parser.add_argument("--models", default="mobilenet_v2_fpn,r18_fpn", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    table, work = Table(), options.work.resolve()
    for name in options.models.split(","):
        if not (work / name / "coco.npz").exists():
            command = [options.torch_python, "-m", "benchmarks.parity.torch_trained", name, work / name]
            command += [f"--coco={options.coco.resolve()}", f"--imagenet={options.imagenet.resolve()}"]
            subprocess.run([*command, f"--steps={options.steps}"], check=True, cwd=ROOT)
        with np.load(work / name / "coco.npz") as dump:
            dump = dict(dump)
        sizes = {"min_size": int(dump["min_size"]), "max_size": int(dump["max_size"])}
        imported = import_file(work / name / "model.pth", **(TOP_K | MODELS[name] | sizes))
        compare_files(table, name, imported, dump, options.coco)
    return table.finish(f"trained for {options.steps} steps, TensorFlow {tf.__version__}")


if __name__ == "__main__":
    sys.exit(main())
