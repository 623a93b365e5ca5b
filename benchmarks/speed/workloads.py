"""What all sides are timed on, and how a side is asked to run it. Needs NumPy alone."""

import contextlib
import gc
import json
import os
import pathlib
import sys
import time

import numpy as np

# Heights and widths of inference; the first is the published COCO size.
SIZES = ((800, 1344), (512, 512), (320, 320))
TRAIN_SIZE, TRAIN_BATCH, TRAIN_OBJECTS = 512, 2, 8
PASTE_SIZE, PASTE_COUNT = (800, 1344), 100
NUM_CLASSES = 90


def pictures(height, width, batch):
    """Smooth noise with bright ellipses, (B, H, W, 3) uint8, the same on all sides."""
    rng = np.random.default_rng(height * 10_000 + width)
    result = []
    for _ in range(batch):
        coarse = rng.normal(size=(-(-height // 8), -(-width // 8), 3))
        image = 110 + 45 * np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
        for inside in ellipses(height, width, 12, rng):
            image[inside] = 0.3 * image[inside] + 0.7 * rng.uniform(0, 255, 3)
        result.append(np.clip(image, 0, 255).round().astype(np.uint8))
    return np.stack(result)


def ellipses(height, width, count, rng):
    """Masks (count, H, W) bool."""
    y, x = np.mgrid[:height, :width]
    masks = []
    for _ in range(count):
        radii = rng.uniform(0.05, 0.25, 2) * min(height, width)
        center = rng.uniform(0.2, 0.8, 2) * (height, width)
        masks.append(((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 < 1)
    return np.stack(masks)


def ground_truth(size, batch, objects):
    """For each image boxes (N, 4) yxyx, classes (N,) from 1, masks (N, H, W) bool."""
    rng = np.random.default_rng(objects)
    result = []
    for _ in range(batch):
        masks = ellipses(size, size, objects, rng)
        boxes = [[y.min(), x.min(), y.max() + 1, x.max() + 1] for y, x in (np.nonzero(m) for m in masks)]
        result.append((np.array(boxes, np.float32), rng.integers(1, NUM_CLASSES + 1, objects), masks))
    return result


def instances(count, height, width):
    """Masks (N, 28, 28) of blobs and boxes (N, 4) yxyx of every size, as a detector hands them to the paste."""
    rng = np.random.default_rng(0)
    y, x = (np.mgrid[:28, :28] + 0.5) / 28 - 0.5
    waves = rng.normal(0, 0.05, (count, 28, 28))
    masks = np.clip(1.3 - 2.4 * np.hypot(y, x) + waves, 0, 1).astype(np.float32)
    side = np.exp(rng.uniform(np.log(16), np.log(min(height, width)), (count, 1)))
    aspect = np.exp(rng.normal(0, 0.35, (count, 1)))
    size = np.minimum(side * np.concatenate([aspect, 1 / aspect], 1), (height, width))
    start = rng.uniform(0, 1, (count, 2)) * ((height, width) - size)
    return masks, np.concatenate([start, start + size], 1).astype(np.float32)


def detections(boxes, scores, classes, masks=None):
    """What a side tells of one image: boxes (N, 4) yxyx, scores and classes (N,), masks (N, 28, 28) if not pasted."""
    found = {"boxes": boxes, "scores": scores, "classes": classes, "masks": masks}
    return {name: np.asarray(value).tolist() for name, value in found.items() if value is not None}


def timed(function):
    """Seconds of one call, and of its stages where it returns them."""
    gc.collect()
    begin = time.perf_counter()
    stages = function()
    return {"total": time.perf_counter() - begin, **(stages or {})}


def peak_memory_mb():
    """The most memory this process ever held, in MB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def serve(prepare, versions):
    """Answer requests, a JSON object a line: {"prepare": [kind, arguments]} or {"run": true}, until the input ends.

    Args:
        prepare: kind, arguments -> (function that runs the work once and may return its stages' seconds by name, what
            is to be told of the work).
        versions: what is told at the start.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    work = None

    def answer(value):
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    with contextlib.redirect_stdout(sys.stderr):
        answer(versions)
        for line in sys.stdin:
            request = json.loads(line)
            if "prepare" in request:
                work = None
                gc.collect()
                kind, arguments = request["prepare"]
                work, told = prepare(kind, **arguments)
                answer(told)
            else:
                answer(timed(work) | {"memory_mb": peak_memory_mb()})


class Stages:
    """Seconds of consecutive stages of one run."""

    def __init__(self):
        self.seconds = {}

    def __call__(self, name, function, *arguments):
        begin = time.perf_counter()
        result = function(*arguments)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        return result
