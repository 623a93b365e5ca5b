"""Times RoIAlign on P2..P5, forward and with the gradient of the maps, and checks that repeated runs are bit-equal.

    python benchmarks/roi_align.py [--torchvision_python=PATH] [--repeats=10] [--native_gradient]

PATH is the Python of an environment with torch and torchvision; the same RoIs then go through torchvision's
`roi_align`, level by level, in a process of its own. --native_gradient adds the gradient that
`tf.image.crop_and_resize` brings along, which loses values when threads meet. Times are the best of the repeats.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np

LARGE = [(200, 336), (100, 168), (50, 84), (25, 42)]
SMALL = [(64, 64), (32, 32), (16, 16), (8, 8)]
CASES = [(512, 7, LARGE), (128, 14, LARGE), (512, 7, SMALL), (128, 14, SMALL)]
CHANNELS = 256


def problem(rois, sizes):
    """Maps of one image and boxes of all sizes in it, log-uniform."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(1, h, w, CHANNELS)).astype(np.float32) for h, w in sizes]
    image = np.array(sizes[0]) * 4
    side = np.exp(rng.uniform(np.log(12), np.log(0.6 * image.max()), (rois, 1)))
    aspect = np.exp(rng.normal(0, 0.35, (rois, 1)))
    size = np.minimum(side * np.concatenate([aspect, 1 / aspect], 1), image)
    start = rng.uniform(0, 1, (rois, 2)) * (image - size)
    return maps, np.concatenate([start, start + size], 1).astype(np.float32)


def best(function, repeats):
    """Milliseconds of the fastest call."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def time_torchvision(repeats):
    """The torchvision column, run in its own environment; prints JSON: [[forward, both] of each case]."""
    import contextlib

    with contextlib.suppress(ImportError):
        import torchvision_cpu  # noqa: F401  a build of torchvision without CUDA may need this first
    import torch
    from torchvision.ops import roi_align

    rows = []
    for rois, output, sizes in CASES:
        maps, boxes = problem(rois, sizes)
        # torchvision's own layout: channels first, xyxy.
        maps = [torch.tensor(m.transpose(0, 3, 1, 2).copy(), requires_grad=True) for m in maps]
        side = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
        levels = np.clip(np.floor(4 + np.log2(side / 224 + 1e-6)), 2, 5).astype(int)
        own = [
            torch.tensor(np.pad(boxes[levels == level][:, [1, 0, 3, 2]], ((0, 0), (1, 0)))) for level in (2, 3, 4, 5)
        ]

        def forward(maps=maps, own=own, output=output):
            return [roi_align(m, b, output, 0.5 ** (i + 2), 2) for i, (m, b) in enumerate(zip(maps, own, strict=True))]

        def both(maps=maps, forward=forward):
            pooled = forward()
            torch.autograd.grad(pooled, maps, [torch.ones_like(p) for p in pooled])

        with torch.no_grad():
            first = best(forward, repeats)
        rows.append([first, best(both, repeats)])
    print(json.dumps(rows))


def time_kmaskrcnn(implementation, rois, output, sizes, repeats):
    """(forward ms, forward and backward ms, whether all results and gradients were bit-equal)."""
    import tensorflow as tf

    from kmaskrcnn.layers.roi_align import RoIAlign, roi_levels
    from kmaskrcnn.ops.roi_align import crop_and_resize
    from kmaskrcnn.ops.roi_align_inputs import RoIAlignInputs

    maps, boxes = problem(rois, sizes)
    features = {f"P{i + 2}": tf.constant(m) for i, m in enumerate(maps)}
    images = tf.zeros(rois, tf.int32)
    if implementation == "native gradient":
        indices = tf.cast(roi_levels(boxes), tf.int32) - 2

        def pool(features):
            levels = [features[f"P{i + 2}"] for i in range(4)]
            scales = [0.25 / 2**i for i in range(4)]
            return crop_and_resize(RoIAlignInputs(levels, scales, boxes, images, indices, output))
    else:
        layer = RoIAlign(output, implementation=implementation)

        def pool(features):
            return layer.pool(features, boxes, images)

    forward = tf.function(pool)

    upstream = tf.random.stateless_normal((rois, output, output, CHANNELS), (1, 2))

    @tf.function
    def both(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = pool(features)
        gradient = tape.gradient(pooled, features, upstream)
        # Without pooled among the results the forward pass would be cut from the graph: the gradient is linear.
        return pooled, *(tf.convert_to_tensor(gradient[name]) for name in sorted(gradient))

    times = best(lambda: forward(features), repeats), best(lambda: both(features), repeats)
    first = [x.numpy() for x in both(features)]
    equal = all((x.numpy() == y).all() for _ in range(20) for x, y in zip(both(features), first, strict=True))
    return (*times, equal)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torchvision_python", help="Python with torch and torchvision")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--native_gradient", action="store_true", help="also time the operator's own gradient")
    parser.add_argument("--torchvision_worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.torchvision_worker:
        return time_torchvision(options.repeats)
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
    other = None
    if options.torchvision_python:
        command = [options.torchvision_python, __file__, "--torchvision_worker", f"--repeats={options.repeats}"]
        other = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(f"{'RoIs':>5} {'side':>4} {'P2':>8}  {'implementation':16} {'forward':>8} {'fwd+bwd':>8}  bit-equal over 20")
    names = ["crop_and_resize", "gather", *(["native gradient"] if options.native_gradient else [])]
    for case, (rois, output, sizes) in enumerate(CASES):
        label = f"{rois:5} {output:4} {sizes[0][0]:4}x{sizes[0][1]:<3}"
        for name in names:
            forward, both, equal = time_kmaskrcnn(name, rois, output, sizes, options.repeats)
            print(f"{label}  {name:16} {forward:8.1f} {both:8.1f}  {'yes' if equal else 'NO'}", flush=True)
        if other:
            print(f"{label}  {'torchvision':16} {other[case][0]:8.1f} {other[case][1]:8.1f}")


if __name__ == "__main__":
    main()
