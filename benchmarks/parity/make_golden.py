"""Makes tests/golden/torchvision_tiny.npz: python -m benchmarks.parity.make_golden, with torch and torchvision.

A Mask R-CNN of torchvision's with a ResNet-18 and narrow heads, and what its stages gave. The kernels of the body are
made from their names (tests/golden/seeded.py); the other weights are in the file, rounded to float16.
"""

import pathlib

import numpy as np
import torch

from benchmarks.parity.torch_models import build, calibrate, make_images
from benchmarks.parity.torch_side import dump_case, dump_training
from tests.golden.seeded import seeded

TARGET = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "torchvision_tiny.npz"
BATCH, TRAINING = [(96, 128), (80, 120)], [(64, 96), (96, 72)]
# Left out for size: they follow from what is there.
LARGE = ("decoded", "rpn_logits", "rpn_deltas", "anchors", "P2", "P3", "pooled")


def is_seeded(name, value):
    return name.startswith("backbone.body") and value.ndim == 4


def main():
    torch.manual_seed(0)
    model = build("tiny")
    state = model.state_dict()
    for name, value in state.items():
        if is_seeded(name, value):
            value.copy_(torch.from_numpy(seeded(name, tuple(value.shape))))
    calibrate(model, [(160, 224)] * 2)
    weights = {}
    for name, value in state.items():
        if not is_seeded(name, value):
            value.copy_(value.half().float())
            weights[name] = value.half().numpy()
    results = {f"weights/{name}": value for name, value in weights.items()}
    shapes = {name: value.shape for name, value in state.items() if is_seeded(name, value)}
    results["seeded"] = np.array([f"{name} {' '.join(map(str, shape))}" for name, shape in shapes.items()])
    inference = dump_case(model, make_images(BATCH, 0)[0], pooled_kept=2, disturbed_runs=0)
    results |= {f"inference/{k}": v for k, v in inference.items() if not k.startswith(LARGE)}
    training, _ = dump_training(model, TRAINING, 12)
    results |= {f"training/{k}": v for k, v in training.items() if not k.startswith("noise_")}
    np.savez_compressed(TARGET, **results)
    print(TARGET, TARGET.stat().st_size, [len(results[f"inference/final_boxes{i}"]) for i in range(2)])


if __name__ == "__main__":
    main()
