"""Sets that are hard for a fixed recipe, drawn: python -m benchmarks.recipes.sets --output=FOLDER.

skewed   one class twenty times as frequent as the other
large    photographs of 2000 x 3000 pixels with objects of 15 pixels
single   one object an image

Each folder gets train.json, val.json and its images.
"""

from __future__ import annotations

import json
import math
import os
from typing import NamedTuple

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write into.", required=True)
_CLASSES = ("disc", "star")


class Drawing(NamedTuple):
    """How a set is drawn: images for training and validation, objects of each, share of the second class."""

    train: int
    val: int
    height: int
    width: int
    objects: tuple[int, int]
    radius: tuple[float, float]
    second: float


SETS = {
    "skewed": Drawing(120, 40, 240, 320, (2, 6), (14, 40), 1 / 21),
    "large": Drawing(16, 4, 2000, 3000, (60, 120), (6, 9), 0.5),
    "single": Drawing(80, 20, 360, 480, (1, 1), (30, 120), 0.5),
}


def _outline(center: np.ndarray, radius: float, star: bool, angle: float) -> list[float]:
    """A polygon x0, y0, x1, ... of a disc or of a star with five points."""
    corners = 10 if star else 24
    radii = radius * np.where(np.arange(corners) % 2 * star, 0.45, 1.0)
    turns = angle + 2 * math.pi * np.arange(corners) / corners
    points = center + np.stack([radii * np.cos(turns), radii * np.sin(turns)], axis=1)
    return [round(float(v), 2) for v in points.ravel()]


def _background(height: int, width: int, rng: np.random.Generator) -> Image.Image:
    coarse = rng.integers(60, 190, (height // 40 + 2, width // 40 + 2, 3)).astype(np.uint8)
    ground = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray(np.clip(ground + rng.normal(0, 8, ground.shape), 0, 255).astype(np.uint8))


def draw_set(folder: str, drawing: Drawing, seed: int) -> None:
    """Write the two JSON files and the images of a set; the same seed draws the same."""
    os.makedirs(folder, exist_ok=True)
    categories = [{"id": i, "name": name} for i, name in enumerate(_CLASSES, 1)]
    for part, count in (("train", drawing.train), ("val", drawing.val)):
        tree: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
        for number in range(1, count + 1):
            rng = np.random.default_rng([seed, part == "val", number])
            image = _background(drawing.height, drawing.width, rng)
            name = f"{part}_{number}.jpg"
            tree["images"].append({"id": number, "file_name": name, "height": drawing.height, "width": drawing.width})
            taken: list[tuple[np.ndarray, float]] = []
            for _ in range(int(rng.integers(*drawing.objects, endpoint=True))):
                radius = float(rng.uniform(*drawing.radius))
                center = rng.uniform(radius + 1, np.array([drawing.width, drawing.height]) - radius - 1)
                if any(np.hypot(*(center - other)) < radius + size + 2 for other, size in taken):
                    continue  # objects that hide each other would need visible outlines
                taken.append((center, radius))
                star = bool(rng.random() < drawing.second)
                outline = _outline(center, radius, star, float(rng.uniform(0, 2 * math.pi)))
                color = tuple(int(v) for v in rng.choice([rng.integers(0, 50, 3), rng.integers(205, 256, 3)]))
                ImageDraw.Draw(image).polygon(outline, fill=color)
                x, y = np.array(outline[::2]), np.array(outline[1::2])
                box = [float(v) for v in (x.min(), y.min(), np.ptp(x), np.ptp(y))]
                area = 0.5 * abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))))
                tree["annotations"].append(
                    {
                        "id": len(tree["annotations"]) + 1,
                        "image_id": number,
                        "category_id": 2 if star else 1,
                        "iscrowd": 0,
                        "bbox": box,
                        "area": area,
                        "segmentation": [outline],
                    }
                )
            image.save(os.path.join(folder, name), quality=92)
        with open(os.path.join(folder, f"{part}.json"), "w") as file:
            json.dump(tree, file)


def main(_: list[str]) -> None:
    """Draw all of them."""
    for seed, (name, drawing) in enumerate(SETS.items()):
        draw_set(os.path.join(_OUTPUT.value, name), drawing, seed)
        print(f"{_OUTPUT.value}/{name}: {drawing.train} and {drawing.val} images")


if __name__ == "__main__":
    app.run(main)
