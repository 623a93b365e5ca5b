"""The same .tflite and pictures in several LiteRT runtimes: older versions, other processors.

    python -m benchmarks.runtimes MODEL.tflite IMAGES --save=reference.npz
    OTHER_PYTHON -m benchmarks.runtimes MODEL.tflite IMAGES --against=reference.npz

The other Python needs ai-edge-litert, numpy, Pillow and pycocotools alone. Detections of both are compared row by row;
exit code 1 where their number differs or a value by more than --tolerance.
"""

import argparse
import importlib.metadata
import pathlib
import platform
import sys
import time

import numpy as np

from kmaskrcnn.export.client import LiteRTClient


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", help="folder of pictures")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--save")
    parser.add_argument("--against")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="boxes are compared as shares of the picture")
    options = parser.parse_args()
    client = LiteRTClient(options.model)
    paths = sorted(path for path in pathlib.Path(options.images).iterdir() if path.is_file())[: options.count]
    start = time.perf_counter()
    predictions = [client.predict(path) for path in paths]
    seconds = (time.perf_counter() - start) / len(paths)
    runtime = f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')} on {platform.machine()}"
    found = {}
    for i, p in enumerate(predictions):
        size = [p.height, p.width] * 2
        values = {"boxes": p.boxes / size, "scores": p.scores, "classes": p.classes, "masks": p.mask_probabilities}
        found |= {f"{name} {i}": value for name, value in values.items()}
    detections = sum(len(p) for p in predictions)
    print(f"{runtime}: {len(paths)} pictures, {detections} detections, {1000 * seconds:.0f} ms a picture")
    if options.save:
        np.savez(options.save, **found)
    if not options.against:
        return 0
    worst = dict.fromkeys(("boxes", "scores", "classes", "masks"), 0.0)
    with np.load(options.against) as reference:
        for name, value in found.items():
            if value.shape != reference[name].shape:
                print(f"{name}: {len(reference[name])} detections in the reference, {len(value)} here")
                return 1
            difference = np.abs(value - reference[name])
            worst[name.split()[0]] = max(worst[name.split()[0]], float(difference.max(initial=0.0)))
    print("worst difference: " + ", ".join(f"{name} {value:.1e}" for name, value in worst.items()))
    return int(max(worst.values()) > options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
