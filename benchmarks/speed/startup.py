"""How long it takes from nothing to the first prediction: python -m benchmarks.speed.startup [--dtype=float32].

Writes a model folder (R50-FPN, random weights), then in fresh processes imports the package, opens the folder and
predicts twice. Medians over the repeats.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
START = time.perf_counter()
PARTS = ("import kmaskrcnn", "import Predictor", "open the folder", "first prediction", "second prediction")


def write_folder(folder, dtype):
    """A model folder as training leaves it."""
    from kmaskrcnn import Config, model_folder
    from kmaskrcnn.results.labels import Labels

    config = Config().replace(dtype=dtype, model_dir=folder)
    labels = Labels(tuple(map(str, range(80))), tuple(range(1, 81)))
    model_folder.prepare_directory(folder, config, labels)
    model_folder.save_weights(model_folder.build_model(config), pathlib.Path(folder) / model_folder.LAST)


def run(folder):
    """Seconds of each of PARTS in this process."""
    times = []

    def passed():
        nonlocal last
        now = time.perf_counter()
        times.append(now - last)
        last = now

    last = START
    import kmaskrcnn

    passed()
    predictor_class = kmaskrcnn.Predictor
    passed()
    predictor = predictor_class.from_directory(folder)
    passed()
    import numpy as np

    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    for _ in range(2):
        predictor.predict(image)
        passed()
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "mixed_bfloat16"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(run(options.folder)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_folder(folder, options.dtype)
        command = [sys.executable, "-m", "benchmarks.speed.startup", f"--folder={folder}"]
        rows = []
        for _ in range(options.repeats):
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(output.splitlines()[-1]))
    print(f"| {options.dtype} | seconds |\n| --- | --- |")
    for part, times in zip(PARTS, zip(*rows, strict=True), strict=True):
        print(f"| {part} | {statistics.median(times):.2f} |")


if __name__ == "__main__":
    main()
