"""How time and memory grow with what a run is asked for: python -m benchmarks.speed.growth [--only=NAME,...].

Each row is a process of its own, so that its peak memory is its own. Times are medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np

from benchmarks.speed.workloads import ground_truth, peak_memory_mb, pictures

REPEATS = 3
IMAGE = 320


def median_seconds(function):
    """Of a few calls after one that traces."""
    function()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def make_model(**settings):
    import keras

    from kmaskrcnn import MaskRCNN

    keras.utils.set_random_seed(0)
    return MaskRCNN(**{"num_classes": 80, "backbone": "resnet50"} | settings)


def inference(height=IMAGE, width=IMAGE, batch=1, **settings):
    """Random weights: no score is above the threshold unless it is lowered."""
    import tensorflow as tf

    model = make_model(**settings)
    images = tf.constant(pictures(height, width, batch))
    # All outputs: TensorFlow leaves out what nothing is fetched from, the mask head for one.
    run = tf.function(lambda images: model(images, training=False))
    return median_seconds(lambda: run(images)["masks"].numpy())


def tiles(side):
    """A picture of 4:3 with 12 objects in each 320 x 320 of it, by the shipped model, pixels to merged predictions."""
    from kmaskrcnn import Predictor
    from kmaskrcnn.weights.presets import shipped_folder

    predictor = Predictor.from_directory(shipped_folder("nuclei_mobilenet_v2"), tile_size=IMAGE, tile_overlap=64)
    height = side * 3 // 4
    image = np.tile(pictures(IMAGE, IMAGE, 1)[0], (-(-height // IMAGE), -(-side // IMAGE), 1))[:height, :side]
    return median_seconds(lambda: predictor.predict(image))


def match_anchors(rows):
    """Anchors of an 800 x 1344 image against ground-truth boxes."""
    import tensorflow as tf

    from kmaskrcnn.config import ModelConfig
    from kmaskrcnn.layers.rpn import LEVELS, STRIDES, level_anchors
    from kmaskrcnn.ops.matching import match

    config = ModelConfig()
    sides = {level: (-(-800 // s), -(-1344 // s)) for level, s in zip(LEVELS, STRIDES, strict=True)}
    anchors = level_anchors({level: tf.zeros((1, *side, 1)) for level, side in sides.items()}, config)
    anchors = tf.concat(list(anchors.values()), axis=0)
    rng = np.random.default_rng(0)
    start = rng.uniform(0, (700, 1200), (1, rows, 2))
    boxes = tf.constant(np.concatenate([start, start + rng.uniform(8, 140, (1, rows, 2))], -1), tf.float32)
    valid = tf.ones((1, rows), tf.bool)
    run = tf.function(lambda: match(anchors, boxes, valid, ~valid, 0.7, 0.3, keep_low_quality=True))
    return median_seconds(lambda: run().numpy())


def training(objects, batch=1, masked=None):
    """A step of one 320 x 320 image with this many ground-truth rows, and the masks of the first of them or of all."""
    import tensorflow as tf

    from kmaskrcnn.config import TrainConfig
    from kmaskrcnn.training.step import TrainStep, build_optimizer

    model = make_model()
    step = TrainStep(model, build_optimizer(TrainConfig(), model), TrainConfig())
    boxes = np.stack([b for b, _, _ in ground_truth(IMAGE, batch, objects)])
    inputs = {
        "images": pictures(IMAGE, IMAGE, batch),
        "image_shapes": np.full((batch, 2), IMAGE, np.int32),
        "boxes": boxes,
        "classes": np.ones((batch, objects), np.int32),
        "is_crowd": np.zeros((batch, objects), bool),
        "masks": np.full((batch, min(objects, masked or objects), 112, 112), 255, np.uint8),
        "mask_frames": boxes[:, :masked],
    }
    inputs = {name: tf.constant(value) for name, value in inputs.items()}
    return median_seconds(lambda: step([inputs], 1e-6, 0).numpy())


# Name -> (function, argument that grows, its values, the others)
GROWTH = {
    "image side": (inference, ("height", "width"), (320, 640, 1280), {}),
    "batch": (inference, "batch", (1, 4), {}),
    "classes": (inference, "num_classes", (1, 100, 1203), {}),
    "proposals": (inference, "rpn_post_nms_top_k", (100, 500, 1000, 2000), {"rpn_pre_nms_top_k": 2000}),
    "width of an image in tiles": (tiles, "side", (1000, 2000, 4000, 8000), {}),
    "detections": (inference, "max_detections", (10, 100, 400), {"score_threshold": 0.0}),
    "detections in a crowd": (
        inference,
        "max_detections",
        (100, 500, 2000),
        {"height": 640, "width": 640, "score_threshold": 0.0, "nms_iou": 0.99, "rpn_nms_iou": 0.9},
    ),
    "boxes matched with all anchors": (match_anchors, "rows", (10, 100, 1000), {}),
    "boxes in training": (training, "objects", (10, 100, 1000), {}),
    "boxes in training, masks of 100": (training, "objects", (100, 1000, 2000), {"masked": 100}),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(GROWTH))
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        name, value = json.loads(options.row)
        function, argument, _, others = GROWTH[name]
        names = (argument,) if isinstance(argument, str) else argument
        seconds = function(**dict.fromkeys(names, value), **others)
        print(json.dumps([seconds, peak_memory_mb()]))
        return
    print("| growing | value | time | peak memory |\n| --- | --- | --- | --- |")
    rows = []
    for name in options.only.split(","):
        for value in GROWTH[name][2]:
            command = [sys.executable, "-m", "benchmarks.speed.growth", "--row", json.dumps([name, value])]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds, memory = json.loads(output.splitlines()[-1])
            rows.append([name, value, seconds, memory])
            print(f"| {name} | {value} | {1000 * seconds:.0f} ms | {memory / 1000:.2f} GB |", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file)


if __name__ == "__main__":
    main()
