"""Images with 100 to 2,000 objects: AP, peak memory, seconds a training step and an image.

python -m benchmarks.crowds --folder=runs/crowds [--annotations=FILE --images=FOLDER] [--preset=NAME|--model_dir=DIR]

Mosaics of the images of a set (default: the built-in shapes) are written below --folder, and a model finds their
objects, whole and in tiles, with no setting but --max_detections. Training takes steps of the automatic recipe, from
the same model. Each row is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
COUNTS = (100, 500, 1000, 2000)
STEPS, WARM_UP = 6, 3
_IN_TILE = 500  # detections of a tile of 640 pixels, which shows four images of a mosaic


def mosaics(options: argparse.Namespace, objects: int) -> Any:
    """The mosaics with this number of objects, made where they are missing."""
    from benchmarks.crowds_mosaics import make_mosaics
    from kmaskrcnn.data import load_coco, make_shapes

    folder = Path(options.folder)
    annotations = options.annotations or make_shapes(folder / "shapes", 800, 128, seed=1)
    path = folder / f"{'set' if options.annotations else 'shapes'}-{objects}" / "instances.json"
    if not path.exists():
        make_mosaics(
            load_coco(annotations, options.images), path.parent, objects, max(1, 2000 // objects), options.side
        )
    return load_coco(path)


def find(options: argparse.Namespace, objects: int, tile: int) -> dict[str, Any]:
    """Scores of a model on mosaics, and the time of an image from pixels to objects, overlay, RLE, and scores."""
    from benchmarks.speed.workloads import peak_memory_mb
    from kmaskrcnn.evaluation import score
    from kmaskrcnn.inference.predictor import Predictor
    from kmaskrcnn.weights.convert import converted_folder

    dataset = mosaics(options, objects)
    most = min(objects * 5 // 4, _IN_TILE) if tile else objects * 5 // 4
    settings = {"resize_mode": "native", "max_detections": most, "tile_size": tile, "tile_overlap": 64}
    if options.proposals:
        settings |= {"rpn_pre_nms_top_k": options.proposals, "rpn_post_nms_top_k": options.proposals}
    predictor = Predictor.from_directory(options.model_dir or converted_folder(options.preset), **settings)
    predictor.predict(dataset.image(0)[:320, :320].copy())  # traces the graph
    times: dict[str, list[float]] = {"predict": [], "draw": [], "rle": []}
    results, counts = [], []

    def timed(name: str, function: Any) -> Any:
        begin = time.perf_counter()
        result = function()
        times[name].append(time.perf_counter() - begin)
        return result

    for index in range(len(dataset)):
        image = dataset.image(index)
        found = timed("predict", lambda image=image: predictor.predict(image))
        timed("draw", lambda found=found: found.draw())
        results += timed("rle", lambda found=found, index=index: found.to_coco(int(dataset.image_ids[index])))
        counts.append(int((found.scores >= 0.5).sum()))
    begin = time.perf_counter()
    box, mask = (score(dataset.coco_dict, results, kind) for kind in ("box", "mask"))
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "objects": objects,
        "images": len(dataset),
        "pixels": f"{dataset.sizes[0][1]} x {dataset.sizes[0][0]}",
        "in": f"tiles of {tile}" if tile else "one piece",
        "found above 0.5": round(statistics.mean(counts)),
        "box AP": f"{box.summary['AP']:.3f}",
        "mask AP": f"{mask.summary['AP']:.3f}",
        "TP / (TP + FP + FN)": f"{mask.overlap_scores()[0]:.3f}",
        **{f"{name} s": f"{value:.2f}" for name, value in seconds.items()},
        "score s": f"{(time.perf_counter() - begin) / len(dataset):.2f}",
        "peak GB": f"{peak_memory_mb() / 1000:.2f}",
    }


def train(options: argparse.Namespace, objects: int) -> dict[str, Any]:
    """The time of a step of the automatic recipe, after those that trace and warm up."""
    from benchmarks.speed.workloads import peak_memory_mb
    from kmaskrcnn import model_folder
    from kmaskrcnn.config import Config
    from kmaskrcnn.data import training_dataset
    from kmaskrcnn.recipe import facts_of, find_start, make_recipe, this_machine
    from kmaskrcnn.training.step import TrainStep, build_optimizer

    dataset, machine = mosaics(options, objects), this_machine()
    start = find_start(options.model_dir or options.preset, "", machine)
    given = {"num_classes": len(dataset.class_names)}
    config = make_recipe(facts_of(dataset), machine, start, Config().replace(**given), given).config
    model = model_folder.build_model(config)
    step = TrainStep(model, build_optimizer(config.train, model), config.train)
    batches = iter(training_dataset(dataset, config.data, config.train.batch_size, seed=0))
    seconds, shown = [], []
    for _ in range(WARM_UP + STEPS):
        begin = time.perf_counter()
        batch = next(batches)
        step([batch], 1e-6, 0).numpy()
        seconds.append(time.perf_counter() - begin)
        shown.append(float((batch["classes"].numpy() > 0).sum()) / config.train.batch_size)
    return {
        "objects": objects,
        "batch": f"{config.train.batch_size} x {config.data.crop_size} x {config.data.crop_size}",
        "objects a crop": round(statistics.mean(shown)),
        "max_instances": config.data.max_instances,
        "max_detections": config.model.max_detections,
        "step s": f"{statistics.median(seconds[WARM_UP:]):.2f}",
        "peak GB": f"{peak_memory_mb() / 1000:.2f}",
    }


def main() -> None:
    """Print a table of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="for the mosaics; those that are there are used")
    parser.add_argument("--annotations", default="", help="COCO JSON of the images that mosaics are made of")
    parser.add_argument("--images", default="")
    parser.add_argument("--side", type=int, default=320, help="long side of an image in a mosaic, in pixels")
    parser.add_argument("--preset", default="nuclei_mobilenet_v2")
    parser.add_argument("--model_dir", default="", help="a trained model in place of the preset")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--proposals", type=int, default=0, help="of an image, in finding; 0: as max_detections says")
    parser.add_argument("--tile", type=int, default=640)
    parser.add_argument("--only", default="find,tiles,train")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        kind, objects = json.loads(options.row)
        if kind == "train":
            row = train(options, objects)
        else:
            row = find(options, objects, options.tile if kind == "tiles" else 0)
        print(json.dumps(row))
        return
    for kind in options.only.split(","):
        for number, objects in enumerate(map(int, options.counts.split(","))):
            mosaics(options, objects)  # here, so that making them is not in the memory of a row
            command = [sys.executable, "-m", "benchmarks.crowds", *sys.argv[1:], "--row", json.dumps([kind, objects])]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            row = json.loads(output.splitlines()[-1])
            if not number:
                print(f"\n{kind}\n\n| {' | '.join(row)} |\n|{' --- |' * len(row)}")
            print(f"| {' | '.join(map(str, row.values()))} |", flush=True)


if __name__ == "__main__":
    main()
