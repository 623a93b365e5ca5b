"""What all sides share: their command line, the budget, and what they tell. Needs numpy, Pillow and pycocotools alone.

    python -m benchmarks.leaderboard.NAME train|predict --task=FOLDER --output=FOLDER --minutes=10 --seed=0

`train` leaves a model in the output folder and train.json, what the training took; `predict` leaves results.json, COCO
results of the images to score on, and predict.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

# Detections of an image that count, for all sides.
MAX_DETECTIONS = 300


class Budget:
    """Processor time of this process and its children since the start, imports included, but for pauses."""

    def __init__(self, minutes: float, clock: Callable[[], float] | None = None):
        self.seconds, self._clock, self._paused = 60 * minutes, clock or self._processor, 0.0

    @staticmethod
    def _processor() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system

    def spent(self) -> float:
        """Seconds of processor time that count."""
        return self._clock() - self._paused

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside does not count, such as evaluation."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.spent() >= self.seconds


def parse() -> argparse.Namespace:
    """The command line of a side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("phase", choices=("train", "predict"))
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flags", default="", help="flags in place of our automatic recipe")
    parser.add_argument("--small", action="store_true", help="small images, where the side has a recipe for them")
    return parser.parse_args()


def read(task: Path, name: str) -> dict[str, Any]:
    """A COCO tree of the task."""
    return json.loads((task / f"{name}.json").read_text())


def pixels(task: Path, image: dict) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(Image.open(task / "images" / image["file_name"]).convert("RGB"))


def mask_of(annotation: dict, image: dict) -> np.ndarray:
    """(H, W) uint8 of an annotation."""
    outline = annotation["segmentation"]
    if isinstance(outline, list):
        outline = mask_utils.merge(mask_utils.frPyObjects(outline, image["height"], image["width"]))
    elif isinstance(outline["counts"], list):
        outline = mask_utils.frPyObjects(outline, image["height"], image["width"])
    return mask_utils.decode(outline)


def tell_training(options: argparse.Namespace, seconds: float, **more: Any) -> None:
    """Write train.json: processor minutes, peak memory, and what else the side tells."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    told = {"minutes": round(seconds / 60, 2), "memory_gb": round(peak, 2), **more}
    (options.output / "train.json").write_text(json.dumps(told, indent=1))


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages, for the table."""
    return {name: metadata.version(name) for name in packages}


# Of one image: boxes (N, 4) x0, y0, x1, y1, scores (N,), category ids (N,), masks (N, H, W).
Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def predict_all(
    options: argparse.Namespace,
    find: Callable[..., Any],
    model: Path,
    convert: Callable[[Any], Found] = lambda found: found,
    lowest: float | None = None,
    **more: Any,
) -> None:
    """Find the objects of the images to score on, one by one, and write them with the time of an image.

    The time is that of the processor for `find(picture)`, by the package's defaults, from pixels to masks of the
    image's size in its own form, which `convert` brings into that of all sides; the file is not read in it. Where the
    default threshold is too high for AP, `find(picture, lowest)` is what is scored. `model` is the exported file or
    folder, whose size is told.
    """
    images = read(options.task, "eval")["images"]
    results, seconds = [], []
    find(pixels(options.task, images[0]))  # warms up
    for image in images:
        picture = pixels(options.task, image)
        begin = time.process_time()
        found = find(picture)
        seconds.append(time.process_time() - begin)
        boxes, scores, categories, masks = convert(found if lowest is None else find(picture, lowest))
        order = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]
        for i in order.tolist():
            x0, y0, x1, y1 = map(float, boxes[i])
            rle = mask_utils.encode(np.asfortranarray(masks[i].astype(np.uint8)))
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": int(categories[i]),
                    "score": float(scores[i]),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    files = [model] if model.is_file() else [f for f in model.rglob("*") if f.is_file()]
    told = {
        "seconds_an_image": round(statistics.median(seconds), 3),
        "file_mb": round(sum(f.stat().st_size for f in files) / 1e6, 1),
        **more,
    }
    (options.output / "results.json").write_text(json.dumps(results))
    (options.output / "predict.json").write_text(json.dumps(told, indent=1))
