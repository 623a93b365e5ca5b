"""The built-in data set: overlapping shapes on textured backgrounds, written in COCO form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils

CLASSES = ("circle", "square", "triangle", "star")
# An object of which the later ones leave less than this share in sight is not annotated, and not drawn either.
_LEAST_VISIBLE = 0.3
_VERSION = 1  # of the drawing: a folder of another version is made anew


def _outline(kind: str, center: np.ndarray, radius: float, angle: float) -> list[tuple[float, float]]:
    """Corners (x, y) of a shape about its center."""
    if kind == "circle":
        corners, radii = 48, [radius]
    elif kind == "square":
        corners, radii = 4, [radius]
    elif kind == "triangle":
        corners, radii = 3, [radius]
    else:
        corners, radii = 10, [radius, 0.45 * radius]
    points = []
    for i in range(corners):
        turn = angle + 2 * math.pi * i / corners
        r = radii[i % len(radii)]
        points.append((center[1] + r * math.cos(turn), center[0] + r * math.sin(turn)))
    return points


def _background(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) of colored noise at two scales, darker or lighter by image."""
    base = rng.uniform(40, 200, 3)
    coarse = rng.normal(0, 25, (size // 16 + 1, size // 16 + 1, 3))
    planes = [Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC) for c in coarse.transpose(2, 0, 1)]
    coarse = np.stack([np.asarray(p) for p in planes], axis=-1)
    return np.clip(base + coarse + rng.normal(0, 10, (size, size, 3)), 0, 255)


def draw_image(size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One image (size, size, 3) uint8, and its objects: class 1..4 and visible mask (size, size) bool."""
    picture = _background(size, rng)
    objects: list[tuple[int, np.ndarray, np.ndarray]] = []
    for _ in range(rng.integers(1, 5)):
        kind = int(rng.integers(len(CLASSES)))
        radius = rng.uniform(0.09, 0.25) * size
        center = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
        canvas = Image.new("L", (size, size))
        ImageDraw.Draw(canvas).polygon(_outline(CLASSES[kind], center, radius, rng.uniform(0, 2 * math.pi)), fill=255)
        mask = np.asarray(canvas) > 0
        # A color that differs from what lies below, or the object could not be seen.
        below = picture[mask].mean(axis=0) if mask.any() else np.zeros(3)
        color = rng.uniform(0, 255, 3)
        while np.abs(color - below).max() < 60:
            color = rng.uniform(0, 255, 3)
        hidden = [(m & ~mask).sum() < _LEAST_VISIBLE * whole.sum() for _, m, whole in objects]
        if mask.sum() < 40 or any(hidden):
            continue
        objects = [(c, m & ~mask, whole) for c, m, whole in objects]
        objects.append((kind + 1, mask, mask))
        picture[mask] = color + rng.normal(0, 8, (int(mask.sum()), 3))
    return np.clip(np.round(picture), 0, 255).astype(np.uint8), [(c, m) for c, m, _ in objects]


def make_shapes(directory: str | Path, num_images: int, size: int, seed: int) -> str:
    """Write the data set, PNG images and instances.json, unless the folder holds it already.

    Args:
        directory: the folder; created if necessary.
        num_images: number of images.
        size: their side in pixels.
        seed: random seed; the same seed writes the same bytes.

    Returns:
        The path of instances.json; the images are beside it.
    """
    directory = Path(directory)
    path = directory / "instances.json"
    info = {"description": "kmaskrcnn shapes", "version": [_VERSION, num_images, size, seed]}
    if path.exists() and json.loads(path.read_text()).get("info") == info:
        return str(path)
    directory.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(num_images):
        picture, objects = draw_image(size, np.random.default_rng([seed, number]))
        name = f"{number:05d}.png"
        Image.fromarray(picture).save(directory / name)
        images.append({"id": number + 1, "file_name": name, "height": size, "width": size})
        for category, mask in objects:
            rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": category,
                    "iscrowd": 0,
                    "area": float(mask_utils.area(rle)),
                    "bbox": [float(v) for v in mask_utils.toBbox(rle)],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
    categories = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
    tree = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(tree))  # last, so that a folder with it is whole
    return str(path)
