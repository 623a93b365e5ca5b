"""A SavedModel with its weights as variables, as variables that TensorFlow takes for frozen, and as constants.

    python -m benchmarks.constant_weights [--sizes=1x320x320,1x512x512,1x800x1344] [--work=runs/constants]
    ONEDNN_MAX_CPU_ISA=AVX2 TF_ENABLE_ONEDNN_OPTS=1 python -m benchmarks.constant_weights --sizes=1x512x512,2x512x512

Prints a table. R50-FPN with random weights and 100 detections an image; a size is images x height x width. Each side
runs in a process of its own, in turns. Milliseconds are medians of a call: on the clock, and of the processor.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np

# The exported folder, and whether TensorFlow takes the weights for frozen.
SIDES = {"variables": ("variables", "0"), "frozen": ("variables", "1"), "constants": ("constants", "0")}


def export(work):
    """Write both, where they are not there."""
    from kmaskrcnn import MaskRCNN
    from kmaskrcnn.config import Config
    from kmaskrcnn.export.saved_model import export_saved_model
    from kmaskrcnn.results.labels import Labels

    config = Config().replace(score_threshold=0.0, resize_mode="native")
    model = MaskRCNN(score_threshold=0.0)
    labels = Labels(tuple(f"class {i}" for i in range(80)), tuple(range(1, 81)))
    for folder in ("variables", "constants"):
        if not (work / folder).exists():
            export_saved_model(model, config, labels, work / folder, constant_weights=folder == "constants")


def measure(folder, sizes, repeats):
    """The first call, then medians of the calls, and the memory at the peak."""
    import tensorflow as tf

    run = tf.saved_model.load(str(folder)).signatures["serving_tensor"]
    rows = {}
    for size in sizes:
        shape = [int(side) for side in size.split("x")]
        images = tf.constant(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
        times = []
        for _ in range(repeats + 2):
            start = time.perf_counter(), time.process_time()
            run(images=images)["detection_boxes"].numpy()
            times.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        rows[size] = [times[0][0], *(statistics.median(column) for column in zip(*times[2:], strict=True))]
    return {"rows": rows, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1x320x320,1x512x512,1x800x1344")
    parser.add_argument("--work", type=pathlib.Path, default="runs/constants", help="folder of the models, used again")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        name, os.environ["TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"] = SIDES[options.side]
        (folder,) = (options.work / name).iterdir()
        print(json.dumps(measure(folder, options.sizes.split(","), options.repeats)))
        return
    export(options.work)
    print("| weights | images | first, s | ms | ms of the processor | GB |\n| --- | --- | --- | --- | --- | --- |")
    for side in list(SIDES) * options.rounds:
        command = [sys.executable, "-m", "benchmarks.constant_weights", f"--side={side}", f"--sizes={options.sizes}"]
        command += [f"--work={options.work}", f"--repeats={options.repeats}"]
        found = json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )
        for size, (first, clock, processor) in found["rows"].items():
            cells = (
                side,
                size,
                f"{first:.1f}",
                f"{1000 * clock:.0f}",
                f"{1000 * processor:.0f}",
                f"{found['peak']:.1f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
