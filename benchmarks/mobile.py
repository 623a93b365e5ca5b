"""Files for the CPU and the GPU of devices beside the Keras model: prints a table.

    python -m benchmarks.mobile --model_dir=runs/mobile --images=FOLDER [--annotations=FILE] [--size=320] [--count=100]
    python -m benchmarks.mobile --flagfile=configs/mobile_mobilenet_v2.flags --images=FOLDER

Worst differences are over the detections of all images, from the Keras model on the padded input that the file gets:
of those within the bounds of the quantization (docs/guide/export.md), beside how many are found again and how many of
them lie within. AP, which needs --annotations, is that of the Keras model as it predicts, which cuts the padding off,
of the Keras model on the padded input, and of the file. A row that cannot be made says why: where there is no GPU, nor
a driver that does without, those of the GPU cannot. Milliseconds are medians of the client's whole call, on two
threads: on the clock, and of the processor, all threads together, which other jobs hardly change. Those of a GPU in
software say nothing about a GPU. Peak memory is the client's, with the images.
"""

import argparse
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np

# Name of a row: format, quantization, where it runs.
ROWS = {
    "tflite none": ("tflite", "none", "cpu"),
    "tflite int8": ("tflite", "int8", "cpu"),
    "tflite_gpu none": ("tflite_gpu", "none", "gpu"),
    "tflite_gpu float16": ("tflite_gpu", "float16", "gpu"),
    "tflite_gpu none, on the CPU": ("tflite_gpu", "none", "cpu"),
}


def images_of(options):
    """Paths, with the ids of the annotations where there are any."""
    if options.annotations:
        truth = json.loads(pathlib.Path(options.annotations).read_text())
        images = truth["images"][: options.count]
        return [pathlib.Path(options.images) / image["file_name"] for image in images], [i["id"] for i in images], truth
    paths = sorted(path for path in pathlib.Path(options.images).iterdir() if path.is_file())[: options.count]
    return paths, [], None


def open_model(options, **fixed):
    """The model with its config and labels; random weights for a flagfile."""
    from benchmarks.tflite import random_model
    from kmaskrcnn.results.labels import Labels

    if options.model_dir:
        from kmaskrcnn.model_folder import load_model

        return load_model(options.model_dir, "best", **fixed)
    model, config = random_model(options.flagfile)
    classes = config.model.num_classes
    return model, config, Labels(tuple(f"class {i}" for i in range(classes)), tuple(range(1, classes + 1)))


def export(options, form, quantize, path):
    """Write the file; what is known of it."""
    from kmaskrcnn.data import load_image
    from kmaskrcnn.export import flatbuffer, gpu_graphs, tflite
    from kmaskrcnn.export.litert_client import letterbox

    model, config, labels = open_model(options, **tflite.MOBILE_SETTINGS)
    size, checked_by = (options.size, options.size), ""
    if form == "tflite_gpu":
        content, checked_by = gpu_graphs.convert(model, *size, quantize)
        gpu_graphs.write(content, path, model, config, labels, *size, quantize)
    else:
        calibration = [
            letterbox(load_image(str(p)), *size, tflite.pad_value(config))[0]
            for p in sorted(pathlib.Path(options.calibration or options.images).iterdir())[:50]
        ]
        content = tflite.convert(model, [size], quantize, calibration)
        tflite.write(content, path, config, labels, [size], quantize)
    return {
        "operations": sum(flatbuffer.operations(content).values()),
        "unknown": len(flatbuffer.unknown_sizes(content)),
        "accelerated": checked_by,
    }


def measure(options, form, quantize, device, path):
    """Differences from the Keras model, AP of both, milliseconds and peak memory of the file alone."""
    from kmaskrcnn.export.client import LiteRTClient, LiteRTGpuClient
    from kmaskrcnn.export.litert_client import decode_image

    client = LiteRTGpuClient(path, device) if form == "tflite_gpu" else LiteRTClient(path)
    paths, ids, truth = images_of(options)
    pixels = [decode_image(p.read_bytes()) for p in paths]
    found, times = [], []
    for image in pixels:
        start = time.perf_counter(), time.process_time()
        found.append(client.predict(image))
        times.append((1000 * (time.perf_counter() - start[0]), 1000 * (time.process_time() - start[1])))
    result = {
        "ms": [statistics.median(column) for column in zip(*times, strict=True)],
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }

    import tensorflow as tf

    from kmaskrcnn.export.verify import BOUNDS, Differences, score

    model, _, _ = open_model(options, dtype="float32")
    padded, _, _ = open_model(options, dtype="float32")
    padded.static_shapes = True
    detect, detect_padded = (tf.function(m, autograph=False) for m in (model, padded))
    differences, sides = Differences(), ([], [], found)

    def predicted(detect, batch, image, scaled):
        values = {name: value.numpy()[0] for name, value in detect(batch).items()}
        count = int(values.pop("num_detections"))
        values = {name: value[:count] for name, value in values.items()}
        if form == "tflite":
            boxes = values["boxes"] / np.array([client.height, client.width] * 2, np.float32)
            values = {f"detection_{name}": value[None] for name, value in (values | {"boxes": boxes}).items()}
            values["num_detections"] = [count]
        return client.interpret(values, image.shape[:2], scaled)

    for image, prediction in zip(pixels, found, strict=True):
        images, scaled = client.letterbox(image)
        batch = {"images": tf.constant(images.reshape(1, *images.shape[-3:])), "image_shapes": tf.constant([scaled])}
        for side, function in zip(sides, (detect, detect_padded), strict=False):
            side.append(predicted(function, batch, image, scaled))
        differences.add(sides[1][-1], prediction)
    within = BOUNDS[quantize]
    rows = list(zip(differences.box, differences.score, differences.mask, strict=True))
    same = [row for row in rows if row[0] <= within.box and row[1] <= within.score and row[2] <= within.mask]
    result |= {"detections": differences.expected, "found": len(rows), "same": len(same)}
    result["worst"] = [max(column) for column in zip(*same, strict=True)] if same else []
    if truth:
        coco = [[r for p, i in zip(side, ids, strict=True) for r in p.to_coco(i)] for side in sides]
        result["ap"] = [score(truth, side, "mask", 100, image_ids=ids).summary["AP"] for side in coco]
    return result


def child(options, step, row, path):
    """One step in a process of its own; its error as text."""
    names = ("model_dir", "flagfile", "images", "annotations", "calibration", "size", "count")
    given = [f"--{name}={getattr(options, name)}" for name in names if getattr(options, name)]
    command = [sys.executable, "-m", "benchmarks.mobile", f"--step={step}", f"--row={row}", f"--file={path}", *given]
    result = subprocess.run(command, capture_output=True, text=True)
    if not result.returncode:
        return json.loads(result.stdout.splitlines()[-1])
    # LiteRT logs behind the exception.
    lines = result.stderr.splitlines()
    return next((line for line in reversed(lines) if re.match(r"[\w.]*(Error|Exit): ", line)), lines[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_dir", help="a folder that training wrote")
    parser.add_argument("--flagfile", help="settings of a model with random weights")
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--annotations", help="COCO instances of these images, for AP")
    parser.add_argument("--calibration", help="folder of images for int8; default: the same")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rows", type=lambda text: text.split(";"), default=list(ROWS), help="names, with ; between")
    parser.add_argument("--output", default="runs/mobile", help="folder for the files")
    parser.add_argument("--step", choices=("export", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if bool(options.model_dir) == bool(options.flagfile):
        parser.error("give --model_dir or --flagfile")
    if options.step:
        form, quantize, device = ROWS[options.row]
        if options.step == "export":
            print(json.dumps(export(options, form, quantize, options.file)))
        else:
            print(json.dumps(measure(options, form, quantize, device, options.file)))
        return
    print(f"{options.model_dir or options.flagfile}, {options.size} px")
    print(
        "| file | MB | operations | unknown sizes | fully accelerated | again, same | worst box, score, mask | ", end=""
    )
    print("mask AP: model, padded, file | ms, of the processor | peak GB |")
    print("| --- " * 10 + "|")
    for row, (form, quantize, device) in ROWS.items():
        if row not in options.rows:
            continue
        path = pathlib.Path(options.output) / f"{form}_{quantize}.tflite"
        made = child(options, "export", row, path)
        found = child(options, "measure", row, path) if isinstance(made, dict) else made
        if not isinstance(found, dict):
            print(f"| {row} | {found} |", flush=True)
            continue
        accelerated = {"accelerator": "yes", "operations": "not asked: no GPU", "": "no"}[made["accelerated"]]
        cells = (
            f"{row} ({device})",
            f"{path.stat().st_size / 1e6:.1f}",
            str(made["operations"]),
            str(made["unknown"]),
            accelerated,
            f"{found['found']} of {found['detections']}, {found['same']}",
            ", ".join(f"{value:.0e}" for value in found["worst"]),
            ", ".join(f"{value:.4f}" for value in found.get("ap", [])),
            "{:.0f}, {:.0f}".format(*found["ms"]),
            f"{found['peak']:.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
