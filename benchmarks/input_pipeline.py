"""Images a second through the input pipeline and CPU time of one, beside torchvision's own loader and transforms.

    python -m benchmarks.input_pipeline --annotations=FILE --images=FOLDER [--torch_python=PATH]

PATH is the Python of an environment with torch and torchvision. Each side reads the same JPEG files, resizes to a short
side of 800 and a long one of at most 1333, and makes batches of 2, with as many threads or loader processes as there
are processors; kmaskrcnn also reads the set from TFRecord. The sides take turns, every other time in reverse, so that
a machine that slows down slows all of them; where it is busy with other work, CPU time says more than the rate. With
the defaults it takes about four minutes.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from kmaskrcnn.config import Config
from kmaskrcnn.data import load_coco, load_dataset, training_dataset
from kmaskrcnn.data.readers.write_tfrecord import write_shards

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


def measure(dataset, config, seconds):
    """Images a second of the training pipeline over a time, the first batches not counted, and CPU seconds of one."""
    batches = iter(training_dataset(dataset, config, BATCH, seed=0))
    for _ in range(WARMUP):
        next(batches)
    start, cpu, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        images += len(next(batches)["image_ids"])
    return images / (time.perf_counter() - start), (time.process_time() - cpu) / images


def measure_torch(python, args, name, seconds):
    command = [python, str(TORCH_SIDE), args.annotations, args.images, name, str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def medians(values):
    return [statistics.median(column) for column in zip(*values, strict=True)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--torch_python", default="")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        jpeg = load_coco(args.annotations, args.images)
        start = time.perf_counter()
        write_shards(jpeg, folder, shards=4)
        written = time.perf_counter() - start
        records = load_dataset(folder)
        sides = {}
        for name, changes in AUGMENTATIONS.items():
            config = Config().replace(min_size=800, max_size=1333, **changes).data
            sides[name, "JPEG files"] = functools.partial(measure, jpeg, config)
            sides[name, "TFRecord"] = functools.partial(measure, records, config)
            if args.torch_python and name in ("flip", "full"):
                sides[name, "torchvision"] = functools.partial(measure_torch, args.torch_python, args, name)
        found = {side: [] for side in sides}
        for turn in range(args.rounds):
            for side in list(sides)[:: -1 if turn % 2 else 1]:
                found[side].append(sides[side](args.seconds))
    print(f"{len(jpeg)} images, {len(jpeg.classes)} instances; {os.cpu_count()} processors")
    print(f"written as 4 TFRecord shards in {written:.1f} s, {len(jpeg) / written:.1f} images/s")
    print(
        "| augmentation | source | images/s, median (least, most) | times torchvision | CPU ms an image | its share |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for (name, source), values in found.items():
        (rate, cpu), base = medians(values), found.get((name, "torchvision"))
        ratio, share = (f"{rate / medians(base)[0]:.1f}", f"1/{medians(base)[1] / cpu:.1f}") if base else ("", "")
        rates = [v[0] for v in values]
        spread = f"{rate:.1f} ({min(rates):.1f}, {max(rates):.1f})"
        print(f"| {name} | {source} | {spread} | {ratio} | {1000 * cpu:.1f} | {share} |")


if __name__ == "__main__":
    main()
