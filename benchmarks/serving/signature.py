"""The served signature beside the bare model: python -m benchmarks.serving.signature --image=photo.jpg.

The model's graph gets the pixels already decoded, resized and padded; the signature gets the encoded file. Beside the
time is the share of the machine's cores that was busy: what a batch can gain at most is what one image leaves idle.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np


def main() -> None:
    """Export, check that both agree, time them in turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="a photograph")
    parser.add_argument("--preset", default="nuclei_mobilenet_v2", help="'': R50-FPN with 80 classes, random weights")
    parser.add_argument("--batches", default="1,4,8", help="images in a request, with , between")
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()

    import tensorflow as tf

    from kmaskrcnn.config import Config
    from kmaskrcnn.data.resize import prepare_image
    from kmaskrcnn.export.saved_model import export_saved_model
    from kmaskrcnn.model_folder import build_model, load_model
    from kmaskrcnn.results.labels import Labels
    from kmaskrcnn.weights.presets import shipped_folder

    if options.preset:
        model, config, labels = load_model(str(shipped_folder(options.preset)))
    else:
        config = Config().replace(score_threshold=0.0)
        model = build_model(config)
        labels = Labels(tuple(f"class {i}" for i in range(80)), tuple(range(1, 81)))
    with tempfile.TemporaryDirectory() as folder:
        path = export_saved_model(model, config, labels, folder)
        loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures["serving_default"]
    data = Path(options.image).read_bytes()
    pixels = tf.io.decode_image(data, channels=3, expand_animations=False).numpy()
    network_image, shape, _ = prepare_image(pixels, config.data)
    bare = tf.function(lambda images, shapes: model({"images": images, "image_shapes": shapes}), autograph=False)
    print("| images | bare model, ms | signature, ms | ratio | cores busy: bare model | signature |")
    print("| --- | --- | --- | --- | --- | --- |")
    for count in map(int, options.batches.split(",")):
        images, shapes = tf.constant(np.stack([network_image] * count)), tf.constant(np.stack([shape] * count))
        encoded = tf.constant([data] * count)
        sides = [lambda x=images, s=shapes: bare(x, s), lambda x=encoded: signature(image_bytes=x)]
        own, served = (side() for side in sides)
        np.testing.assert_allclose(served["detection_scores"], own["scores"], atol=1e-3)
        times, busy = ([], []), ([], [])
        for _ in range(options.runs):
            for i, side in enumerate(sides):
                wall, cpu = time.perf_counter(), time.process_time()
                tf.nest.map_structure(lambda value: value.numpy(), dict(side()))
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                times[i].append(wall * 1000)
                busy[i].append(cpu / wall / (os.cpu_count() or 1))
        own_ms, served_ms = map(statistics.median, times)
        shares = " | ".join(f"{statistics.median(values):.0%}" for values in busy)
        print(f"| {count} | {own_ms:.0f} | {served_ms:.0f} | {served_ms / own_ms:.3f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
