"""Mask scoring beside mmdetection's own MaskIoUHead, with random weights: predictions, targets and loss.

    python -m benchmarks.parity.run_mmdetection --mmdetection_python=PATH

PATH is the Python of an environment with torch, mmdet, mmengine and mmcv-lite. Objects and RoIs lie on whole pixels,
since mmdetection rounds RoIs to them. Exit code 1 where something differs by more than its bound.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

SIDE = pathlib.Path(__file__).with_name("mmdetection_side.py")
ROIS, CLASSES, CELLS, IMAGE = 64, 5, 28, 96
BOUNDS = {"predicted IoUs": 1e-5, "targets": 1e-5, "loss": 1e-5}


def make_inputs(rng):
    """Random blobs, RoIs that cut them, mask logits that agree with them more or less."""
    from kmaskrcnn.ops.mask_targets import mask_targets

    y, x = np.mgrid[:CELLS, :CELLS] - (CELLS - 1) / 2
    powers, radii = rng.uniform(0.7, 4, (2, ROIS)), rng.uniform(6, CELLS / 2, ROIS)
    masks = np.stack(
        [
            np.abs(y) ** p[0] / r ** p[0] + np.abs(x) ** p[1] / r ** p[1] < 1
            for p, r in zip(powers.T, radii, strict=True)
        ]
    )
    corners = rng.integers(0, IMAGE - 2 * CELLS, (ROIS, 2))
    bitmaps = np.zeros((ROIS, IMAGE, IMAGE), np.uint8)
    for bitmap, mask, (top, left) in zip(bitmaps, masks, corners, strict=True):
        bitmap[top : top + 2 * CELLS, left : left + 2 * CELLS] = np.kron(mask, np.ones((2, 2)))
    frames = np.concatenate([corners, corners + 2 * CELLS], 1).astype(np.float32)
    rois = frames + rng.integers(-12, 13, (ROIS, 4))
    rois = np.clip(rois, 0, IMAGE).astype(np.float32)
    stored = (masks * 255).astype(np.uint8)
    targets = np.asarray(mask_targets(stored, frames, rois, 28))
    logits = (np.where(targets >= 0.5, 1.5, -1.5) + rng.normal(0, 1.5, targets.shape)).astype(np.float32)
    return {
        "features": rng.normal(0, 1, (ROIS, 14, 14, 256)).astype(np.float32),
        "logits": logits,
        "classes": rng.integers(0, CLASSES, ROIS),
        "bitmaps": bitmaps,
        "rois": rois,
        "targets": (targets >= 0.5).astype(np.float32),
        "num_classes": CLASSES,
        "masks": stored,
        "frames": frames,
    }


def load(head, weights):
    """Give our head the weights of mmdetection's state dict."""
    for i, conv in enumerate(head.convs):
        conv.set_weights([weights[f"convs.{i}.weight"].transpose(2, 3, 1, 0), weights[f"convs.{i}.bias"]])
    for i, fc in enumerate(head.fcs):
        kernel = weights[f"fcs.{i}.weight"]
        if i == 0:  # (units, C * S * S) -> (S * S * C, units)
            kernel = kernel.reshape(len(kernel), 256, 7, 7).transpose(0, 2, 3, 1).reshape(len(kernel), -1)
        fc.set_weights([kernel.T, weights[f"fcs.{i}.bias"]])
    kernel, bias = weights["fc_mask_iou.weight"], weights["fc_mask_iou.bias"]
    background = np.zeros((1, kernel.shape[1]), np.float32)
    head.ious.set_weights([np.concatenate([background, kernel]).T, np.concatenate([[0.0], bias])])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmdetection_python", required=True)
    options = parser.parse_args()

    from keras import ops

    from kmaskrcnn.layers.mask_iou_head import MaskIoUHead, mask_iou_loss, mask_iou_targets

    inputs = make_inputs(np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        np.savez(pathlib.Path(folder) / "inputs.npz", **inputs)
        subprocess.run([options.mmdetection_python, str(SIDE), folder], check=True)
        with np.load(pathlib.Path(folder) / "outputs.npz") as file:
            theirs = dict(file)
    head = MaskIoUHead(CLASSES)
    head.build((None, 14, 14, 256))
    load(head, {name.removeprefix("weight:"): v for name, v in theirs.items() if name.startswith("weight:")})
    classes = inputs["classes"].astype(np.int32) + 1
    ious = head(inputs["features"], ops.sigmoid(inputs["logits"]), classes)
    targets = mask_iou_targets(inputs["logits"], inputs["targets"], inputs["masks"], inputs["frames"], inputs["rois"])
    counted = int(np.sum(np.asarray(targets) > 0))
    loss = mask_iou_loss(ious, targets, np.ones(ROIS, np.float32), float(counted))
    differences = {
        "predicted IoUs": np.abs(np.asarray(ious) - theirs["ious"]).max() / np.std(theirs["ious"]),
        "targets": np.abs(np.asarray(targets) - theirs["targets"]).max(),
        "loss": abs(float(loss) / float(theirs["loss"]) - 1),
    }
    low, high = np.min(targets), np.max(targets)
    print(f"{ROIS} RoIs, {counted} of which meet their object; targets from {low:.2f} to {high:.2f}")
    for name, value in differences.items():
        print(f"{name}: {value:.1e}, bound {BOUNDS[name]:.0e}")
    return int(any(not value <= BOUNDS[name] for name, value in differences.items()))


if __name__ == "__main__":
    sys.exit(main())
