"""Images a second through the input pipeline, beside torchvision's own loader and transforms.

    python -m benchmarks.input_pipeline --annotations=FILE --images=FOLDER [--torch_python=PATH]

PATH is the Python of an environment with torch and torchvision. Each side reads the same JPEG files, resizes to a short
side of 800 and a long one of at most 1333, and makes batches of 2, with as many threads or loader processes as there
are processors; kmaskrcnn also reads the set from TFRecord. The sides take turns, so that a machine that slows down
slows all of them.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from kmaskrcnn.config import Config
from kmaskrcnn.data import load_coco, load_dataset, training_dataset
from kmaskrcnn.data.convert import write_shards

TORCH_SIDE = pathlib.Path(__file__).with_name("input_pipeline_torch.py")
BATCH, WARMUP = 2, 4
# The transforms of the torch side, in kmaskrcnn's settings.
AUGMENTATIONS = {
    "flip": {},
    "full": {
        "crop_probability": 0.5,
        "max_rotation": 10.0,
        "vertical_flip": True,
        "color_jitter": 0.4,
        "blur_probability": 0.3,
        "jpeg_probability": 0.3,
    },
    "full and copy-paste": {"copy_paste_probability": 0.5},
}
AUGMENTATIONS["full and copy-paste"] |= AUGMENTATIONS["full"]


def rate(dataset, config, seconds):
    """Images a second of the training pipeline over a time, the first batches not counted."""
    batches = iter(training_dataset(dataset, config, BATCH, seed=0))
    for _ in range(WARMUP):
        next(batches)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += len(next(batches)["image_ids"])
    return images / (time.perf_counter() - start)


def torch_rate(python, args, name, seconds):
    command = [python, str(TORCH_SIDE), args.annotations, args.images, name, str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--torch_python", default="")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jpeg = load_coco(args.annotations, args.images)
        start = time.perf_counter()
        write_shards(jpeg, folder, shards=4)
        written = time.perf_counter() - start
        records = load_dataset(folder)
        found = {}
        for _ in range(args.rounds):
            for name, changes in AUGMENTATIONS.items():
                config = Config().replace(min_size=800, max_size=1333, **changes).data
                found.setdefault((name, "JPEG files"), []).append(rate(jpeg, config, args.seconds))
                found.setdefault((name, "TFRecord"), []).append(rate(records, config, args.seconds))
                if args.torch_python and name in ("flip", "full"):
                    value = torch_rate(args.torch_python, args, name, args.seconds)
                    found.setdefault((name, "torchvision"), []).append(value)
    print(f"{len(jpeg)} images, {len(jpeg.classes)} instances; {os.cpu_count()} processors")
    print(f"written as 4 TFRecord shards in {written:.1f} s, {len(jpeg) / written:.1f} images/s")
    print("| augmentation | source | images/s, median (least, most) | times torchvision |")
    print("| --- | --- | --- | --- |")
    for (name, source), values in found.items():
        base = found.get((name, "torchvision"))
        ratio = f"{statistics.median(values) / statistics.median(base):.1f}" if base else ""
        spread = f"{statistics.median(values):.1f} ({min(values):.1f}, {max(values):.1f})"
        print(f"| {name} | {source} | {spread} | {ratio} |")


if __name__ == "__main__":
    main()
