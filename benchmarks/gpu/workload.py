"""What both sides train on: the same pictures and objects, and the arguments of a run. Needs NumPy alone."""

import argparse

import numpy as np

from benchmarks.speed.workloads import NUM_CLASSES, ellipses, pictures

BATCHES = 4  # different batches, one after another


def parse():
    """The arguments of a side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--channels_last", action="store_true")
    for name in ("height", "width", "objects", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    return parser.parse_args()


def batches(options):
    """BATCHES times images (B, H, W, 3) uint8 and for each image boxes (N, 4) yxyx, classes (N,), masks (N, H, W)."""
    rng = np.random.default_rng(0)
    height, width = options.height, options.width
    images = pictures(height, width, BATCHES * options.batch)
    for start in range(0, len(images), options.batch):
        rows = []
        for _ in range(options.batch):
            masks = ellipses(height, width, options.objects, rng)
            sides = [(y.min(), x.min(), y.max() + 1, x.max() + 1) for y, x in (np.nonzero(m) for m in masks)]
            rows.append((np.array(sides, np.float32), rng.integers(1, NUM_CLASSES + 1, options.objects), masks))
        yield images[start : start + options.batch], rows
