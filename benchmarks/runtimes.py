"""The same .tflite and images in several LiteRT runtimes: older versions, other processors.

    python -m benchmarks.runtimes MODEL.tflite IMAGES --save=reference.npz
    OTHER_PYTHON -m benchmarks.runtimes MODEL.tflite IMAGES --against=reference.npz

The other Python needs ai-edge-litert, numpy, Pillow and pycocotools alone. Exit code 1 where detections
do not pair up or a value differs by more than --tolerance.
"""

import argparse
import importlib.metadata
import pathlib
import platform
import sys
import time

import numpy as np

from kmaskrcnn.export.client import LiteRTClient


def worst_differences(expected, found):
    """Largest difference of boxes, scores, classes and masks, or None where the detections do not pair up.

    Both are dicts of arrays, a row a detection. Rows are paired by box and score: in int8 scores are often equal, and
    their order is then the runtime's.
    """
    if len(expected["scores"]) != len(found["scores"]):
        return None
    if not len(found["scores"]):
        return dict.fromkeys(found, 0.0)
    distance = np.abs(expected["boxes"][:, None] - found["boxes"][None]).max(-1)
    distance += np.abs(expected["scores"][:, None] - found["scores"][None])
    rows = distance.argmin(axis=1)
    if len(set(rows)) < len(rows):
        return None
    return {name: float(np.abs(expected[name] - value[rows]).max()) for name, value in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", help="folder of images")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--save")
    parser.add_argument("--against")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="boxes are compared as shares of the image")
    options = parser.parse_args()
    client = LiteRTClient(options.model)
    paths = sorted(path for path in pathlib.Path(options.images).iterdir() if path.is_file())[: options.count]
    start = time.perf_counter()
    predictions = [client.predict(path) for path in paths]
    seconds = (time.perf_counter() - start) / len(paths)
    runtime = f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')} on {platform.machine()}"
    found = []
    for p in predictions:
        boxes = p.boxes / np.array([p.height, p.width] * 2, np.float32)
        found.append({"boxes": boxes, "scores": p.scores, "classes": p.classes, "masks": p.mask_probabilities})
    detections = sum(len(p) for p in predictions)
    print(f"{runtime}: {len(paths)} images, {detections} detections, {1000 * seconds:.0f} ms an image")
    if options.save:
        np.savez(options.save, **{f"{i} {name}": value for i, p in enumerate(found) for name, value in p.items()})
    if not options.against:
        return 0
    with np.load(options.against) as reference:
        pairs = [({name: reference[f"{i} {name}"] for name in p}, p) for i, p in enumerate(found)]
    results = [worst_differences(*pair) for pair in pairs]
    if None in results:
        print(f"{paths[results.index(None)]}: other detections than in the reference")
        return 1
    worst = {name: max(result[name] for result in results) for name in results[0]}
    print("worst difference: " + ", ".join(f"{name} {value:.1e}" for name, value in worst.items()))
    return int(max(worst.values()) > options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
