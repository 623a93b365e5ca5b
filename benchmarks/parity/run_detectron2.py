"""Compares kmaskrcnn with the real Detectron2 on photographs, from the files, and exits with 1 past a bound.

    python -m benchmarks.parity.run_detectron2 --checkout=FOLDER --torch_python=PATH --coco=FOLDER [--models=R50 1x,...]

FOLDER is a checkout of Detectron2's source. Its models get random weights under which dozens of detections survive; the
file that its checkpointer writes goes through the importer, with the config.yaml beside it, and both read the same
files by their own code. The first model is also imported without a config.yaml: MSRA's weights leave nothing open.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf

from benchmarks.parity.cascade import compare_losses
from benchmarks.parity.compare import Table
from benchmarks.parity.photographs import compare_files
from benchmarks.parity.point_rend import compare_points
from kmaskrcnn.weights.convert import import_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGES = 60
MODELS = ("R50 1x", "R101", "R50 GN", "R50 LSJ", "R50 Cascade", "R50 class-agnostic", "R50 PointRend")
WITHOUT_CONFIG = "R50 1x"


def make(options, name, folder):
    """Detectron2's side."""
    command = [options.torch_python, "-m", "benchmarks.parity.detectron2_side", name, folder]
    command += [f"--checkout={options.checkout}", f"--coco={options.coco}", f"--images={IMAGES}"]
    environment = os.environ | {"PYTHONPATH": os.fspath(options.checkout)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=pathlib.Path, required=True, help="Detectron2's source")
    parser.add_argument("--torch_python", help="a Python with torch, torchvision and what Detectron2 needs")
    parser.add_argument("--coco", type=pathlib.Path, required=True, help="instances_*.json and photographs")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--work", help="folder for Detectron2's side; kept, and used again if it is there")
    parser.add_argument("--table", help="also write the table to this file")
    options = parser.parse_args()
    options.checkout, options.coco = options.checkout.resolve(), options.coco.resolve()
    table = Table()
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models.split(","):
            folder = pathlib.Path(options.work or temporary).resolve() / name.replace(" ", "_")
            if not (folder / "versions.json").exists():
                make(options, name, folder)
            with np.load(folder / "photographs.npz") as file:
                dump = dict(file)
            imported = import_file(folder / "model.pth", source_config=folder / "config.yaml")
            compare_files(table, name, imported, dump, options.coco)
            if imported.model.cascade is not None:
                with np.load(folder / "losses.npz") as file:
                    compare_losses(table, name, imported.model, dict(file))
            if imported.model.config.mask_point_rend:
                with np.load(folder / "points.npz") as file:
                    compare_points(table, name, imported.model, dict(file))
            if name == WITHOUT_CONFIG:
                sizes = {key: getattr(imported.config.data, key) for key in ("min_size", "max_size")}
                imported = import_file(folder / "model.pth", rpn_post_nms_top_k=300, **sizes)
                compare_files(table, f"{name}, no config.yaml", imported, dump, options.coco)
        versions = json.loads((folder / "versions.json").read_text())
    heading = (
        f"Detectron2 on torch {versions['torch']}, torchvision {versions['torchvision']}, TensorFlow {tf.__version__}"
    )
    return table.finish(heading, options.table)


if __name__ == "__main__":
    sys.exit(main())
