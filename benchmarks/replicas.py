"""The same training on one device, two, and two workers: how far weights and losses lie apart, and what it costs.

python -m benchmarks.replicas --runs=FOLDER [--steps=10] prints a table. The model is small, the images are the built-in
shapes, and the batch is 4 images everywhere; momentum, clipping, L2, warm-up and moving averages are on. Every anchor
becomes a proposal and every proposal a RoI: two whose scores are equal to rounding may else change places, so that
other RoIs are drawn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

ROOT = Path(__file__).parents[1]
SETTINGS = """
--backbone=resnet18
--backbone_norm=gn
--frozen_stages=0
--fpn_channels=32
--anchor_sizes=8,16,32,64,128
--rpn_pre_nms_top_k_train=1000
--rpn_post_nms_top_k_train=1100
--rpn_nms_iou=1
--rpn_pre_nms_top_k=60
--rpn_post_nms_top_k=40
--roi_batch_size=1200
--box_fc_channels=64
--mask_conv_channels=32
--max_detections=10
--val_annotations=shapes
--shapes_images=8
--shapes_val_images=5
--shapes_size=64
--resize_mode=native
--crop_size=64
--mask_resolution=28
--max_instances=8
--batch_size=4
--eval_batch_size=2
--learning_rate=0.02
--weight_decay=0.01
--warmup_steps=2
--clip_norm=2
--ema_decay=0.9
--score_threshold=0
--dtype=float32
--log_every=1
"""
CONFIGURATIONS = {
    "one device": [],
    "one device, 2 parts": ["--accumulate_steps=2"],
    "2 mirrored": ["--strategy=mirrored", "--num_devices=2"],
    "2 mirrored, 2 parts": ["--strategy=mirrored", "--num_devices=2", "--accumulate_steps=2"],
    "2 workers": ["--num_local_workers=2"],
    "2 workers, 2 parts": ["--num_local_workers=2", "--accumulate_steps=2"],
}


def command(folder: Path, *flags: str) -> list[str]:
    """The command that trains in a folder, with SETTINGS."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    flagfile = folder.parent / "small.flags"
    flagfile.write_text(SETTINGS)
    return [sys.executable, str(ROOT / "train.py"), f"--flagfile={flagfile}", f"--model_dir={folder}", *flags]


def state(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of the newest checkpoint of a model folder by name: weights, optimizer, averages, step."""
    path = tf.train.latest_checkpoint(str(folder / "checkpoints"))
    reader = tf.train.load_checkpoint(path)
    names = [n for n in reader.get_variable_to_shape_map() if "VARIABLE_VALUE" in n]
    return {n: reader.get_tensor(n) for n in names if not n.startswith(("elapsed", "save_counter"))}


def losses(folder: Path) -> np.ndarray:
    """Total loss and gradient norm of each step (steps, 2)."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return np.array([[row["loss"], row["gradient_norm"]] for row in rows if row["group"] == "train"])


def weight_difference(a: Path, b: Path) -> float:
    """The largest absolute difference of two folders' weights, optimizer states and averages."""
    ours, others = state(a), state(b)
    if ours.keys() != others.keys():
        raise ValueError(f"different variables: {sorted(ours.keys() ^ others.keys())[:5]}")
    return max(float(np.abs(ours[n].astype(np.float64) - others[n]).max()) for n in ours)


def loss_difference(a: Path, b: Path) -> float:
    """The largest relative difference of the losses and gradient norms of any step."""
    ours, others = losses(a), losses(b)
    return float((np.abs(ours - others) / np.abs(ours)).max())


def rate(folder: Path) -> float:
    """Steps a second, the median over all but the first two."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    speeds = [row["images_per_second"] for row in rows if row["group"] == "train"]
    batch = json.loads((folder / "config.json").read_text())["train"]["batch_size"]
    return float(np.median(speeds[2:])) / batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    print("| configuration | largest difference of a weight | of a loss or norm, relative | steps per second |")
    print("| --- | --- | --- | --- |")
    first = None
    for name, flags in CONFIGURATIONS.items():
        folder = arguments.runs / name.replace(",", "").replace(" ", "_")
        subprocess.run(
            command(folder, f"--steps={arguments.steps}", *flags), check=True, stdout=subprocess.DEVNULL, cwd=ROOT
        )
        first = first or folder
        apart = f"{weight_difference(first, folder):.1e} | {loss_difference(first, folder):.1e}"
        print(f"| {name} | {'' if folder == first else apart} | {rate(folder):.2f} |", flush=True)


if __name__ == "__main__":
    main()
