"""The exported SavedModel beside the model in the process: python -m benchmarks.saved_model --image=photo.jpg.

R50-FPN with 80 classes and random weights at the given size. Every detection that the settings allow is kept, so that
the mask head has its full work.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np


def peak_gigabytes() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Export, check that both agree, time them in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True, help="a photograph")
    parser.add_argument("--size", type=int, default=512, help="side of the network's input")
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()

    from kmaskrcnn.config import Config
    from kmaskrcnn.export.saved_model import SavedModelClient, export_saved_model
    from kmaskrcnn.inference.predictor import Predictor
    from kmaskrcnn.model_folder import build_model
    from kmaskrcnn.results.labels import Labels

    settings = {"backbone": options.backbone, "score_threshold": 0.0}
    config = Config().replace(**settings, min_size=options.size, max_size=options.size)
    model = build_model(config)
    labels = Labels(tuple(f"class {i}" for i in range(80)), tuple(range(1, 81)))
    before, start = peak_gigabytes(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = export_saved_model(model, config, labels, folder)
        seconds, after = time.perf_counter() - start, peak_gigabytes()
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        start = time.perf_counter()
        client = SavedModelClient(path)
        loading = time.perf_counter() - start
    predictor = Predictor(model, config, labels)
    data = Path(options.image).read_bytes()
    sides = {"in the process": lambda: predictor.predict(options.image), "SavedModel": lambda: client.predict(data)}
    own, exported = (run() for run in sides.values())
    np.testing.assert_allclose(own.scores, exported.scores, atol=1e-4)
    durations: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.runs):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            durations[name].append((time.perf_counter() - start) * 1000)
    print(f"{options.backbone}-FPN, {options.size} px, {len(own)} detections")
    print(f"export {seconds:.0f} s, {size:.0f} MB; memory {before:.2f} GB before, {after:.2f} GB at the peak")
    print(f"loading {loading:.1f} s")
    for name, values in durations.items():
        print(
            f"{name:<16} {statistics.median(values):6.0f} ms an image (median of {len(values)}; best {min(values):.0f})"
        )


if __name__ == "__main__":
    main()
