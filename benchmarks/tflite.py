"""Size, conversion and latency of .tflite files, each in a process of its own: prints a table.

    python -m benchmarks.tflite --model_dir=runs/mobile [--size=320] [--images=FOLDER]
    python -m benchmarks.tflite --flagfile=configs/coco_r50_fpn_1x.flags --size=512

The second form needs no trained model: weights are random, scaled so that features have a deviation of 1 and scores
differ, and the detections column shows that the mask head has something to do. Latency is the median over the images
(noise without --images) of the runtime's call alone; `peak` is the largest memory of the process, and for the
conversion TensorFlow's own 0.6 GB or so are in it.
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

QUANTIZE = ("none", "float16", "dynamic", "int8")


def pictures(options):
    """Up to options.count inputs (size, size, 3) uint8."""
    from kmaskrcnn.export.litert_client import decode_image, letterbox

    if not options.images:
        rng = np.random.default_rng(0)
        return [rng.integers(0, 256, (options.size, options.size, 3), np.uint8) for _ in range(options.count)]
    paths = sorted(path for path in pathlib.Path(options.images).iterdir() if path.is_file())[: options.count]
    return [
        letterbox(decode_image(path.read_bytes()), options.size, options.size, (124, 116, 104))[0] for path in paths
    ]


def random_model(flagfile):
    """The model of a flagfile with random weights."""
    import keras

    from kmaskrcnn import MaskRCNN
    from kmaskrcnn.config import Config, fields
    from kmaskrcnn.export.tflite import MOBILE_SETTINGS

    settings = {}
    for line in pathlib.Path(flagfile).read_text().split("\n"):
        name, _, text = line.strip().removeprefix("--").partition("=")
        field = fields().get(name)
        if not line.startswith("--") or name not in Config().model.__dataclass_fields__:
            continue
        _, scalar, is_tuple = field
        values = [text or "True"] if scalar is bool else text.split(",")
        values = [v == "True" if scalar is bool else scalar(v) for v in values]
        settings[name] = tuple(values) if is_tuple else values[0]
    keras.utils.set_random_seed(0)
    config = Config().replace(**(settings | MOBILE_SETTINGS))
    model = MaskRCNN.from_config({"dtype": "float32", **config.model.__dict__})
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1, 256, 256, 3)).astype(np.uint8)
    features = model.pyramid(model.preprocess(noise, None)[0])
    for level, conv in zip((2, 3, 4, 5), model.fpn.output_convs, strict=True):
        conv.kernel.assign(conv.kernel / np.std(features[f"P{level}"]))
    kernel = model.box_head.class_logits.kernel
    kernel.assign(rng.normal(0, 5 / np.sqrt(kernel.shape[0]), kernel.shape))
    return model, config


def convert(options):
    """Write the file; prints seconds, peak memory and operations as JSON."""
    from kmaskrcnn.export import tflite
    from kmaskrcnn.results.labels import Labels

    if options.model_dir:
        from kmaskrcnn.model_folder import load_model

        model, config, labels = load_model(options.model_dir, "best", **tflite.MOBILE_SETTINGS)
    else:
        model, config = random_model(options.flagfile)
        classes = config.model.num_classes
        labels = Labels(tuple(f"class {i}" for i in range(classes)), tuple(range(1, classes + 1)))
    quantize = options.quantize[0]
    start = time.perf_counter()
    sizes = [(options.size, options.size)]
    content = tflite.convert(model, sizes, quantize, pictures(options))
    seconds = time.perf_counter() - start
    tflite.write(content, options.file, config, labels, sizes, quantize)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    operations = tflite.operations(content)
    return {"seconds": seconds, "peak": peak / 1e6, "operations": operations, "weights": 4 * model.count_params()}


def measure(options):
    """Run the file; prints milliseconds, peak memory and detections as JSON."""
    from kmaskrcnn.export.client import LiteRTClient

    client = LiteRTClient(options.file, options.threads)
    inputs = pictures(options)
    for image in inputs[:2]:
        client.run(image)
    times, detections = [], []
    for i in range(options.repeats):
        start = time.perf_counter()
        outputs = client.run(inputs[i % len(inputs)])
        times.append(1000 * (time.perf_counter() - start))
        detections.append(int(outputs["num_detections"][0]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"median": statistics.median(times), "best": min(times), "peak": peak / 1e6, "detections": detections}


def child(step, options, quantize, path):
    """One step in a process of its own."""
    names = ("model_dir", "flagfile", "size", "images", "count", "repeats", "threads")
    arguments = [f"--{name}={getattr(options, name)}" for name in names if getattr(options, name) not in (None, "")]
    command = [sys.executable, "-m", "benchmarks.tflite", f"--step={step}", f"--quantize={quantize}", f"--file={path}"]
    result = subprocess.run(command + arguments, capture_output=True, text=True)
    if result.returncode:
        sys.exit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", help="a folder that training wrote")
    parser.add_argument("--flagfile", help="settings of a model with random weights")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--quantize", type=lambda text: text.split(","), default=list(QUANTIZE))
    parser.add_argument("--images", help="folder of images; also what int8 is calibrated on")
    parser.add_argument("--count", type=int, default=8, help="images at most")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="runs/tflite", help="folder for the files")
    parser.add_argument("--step", choices=("convert", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps({"convert": convert, "measure": measure}[options.step](options)))
        return
    if bool(options.model_dir) == bool(options.flagfile):
        parser.error("give --model_dir or --flagfile")
    print(f"{options.model_dir or options.flagfile}, {options.size} px, {options.threads} threads")
    print("| quantize | MB | of the weights | ms, median (best) | peak GB | detections | conversion s | its peak GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for quantize in options.quantize:
        path = pathlib.Path(options.output) / f"{quantize}.tflite"
        made = child("convert", options, quantize, path)
        found = child("measure", options, quantize, path)
        size = path.stat().st_size
        row = (
            quantize,
            f"{size / 1e6:.1f}",
            f"{size / made['weights']:.2f}",
            f"{found['median']:.0f} ({found['best']:.0f})",
            f"{found['peak']:.2f}",
            f"{min(found['detections'])} to {max(found['detections'])}",
            f"{made['seconds']:.0f}",
            f"{made['peak']:.1f}",
        )
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
