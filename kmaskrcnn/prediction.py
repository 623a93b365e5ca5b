"""What was found in a picture: boxes, names, masks in its own pixels. Needs neither TensorFlow nor Keras."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.config import ConfigError
from kmaskrcnn.labels import Labels
from kmaskrcnn.ops.mask_paste import paste_mask, paste_to_rle
from kmaskrcnn.visualize import draw_instances

# Files of a folder with other endings are passed over.
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The objects found in one picture, by falling score.

    Attributes:
        height, width: of the picture.
        boxes: (N, 4) float32 yxyx pixels of the picture.
        scores: (N,) float32.
        classes: (N,) int32 in 1..C.
        mask_probabilities: (N, M, M) float32 over each box.
        labels: names and COCO ids of the classes.
        mask_paste: how masks are pasted, as of `kmaskrcnn.ops.mask_paste.paste_window`.
        image: (height, width, 3) uint8, where `Predictor.predict` was given a picture.
    """

    height: int
    width: int
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    mask_probabilities: np.ndarray
    labels: Labels
    mask_paste: str = "pixel_centers"
    image: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.labels.class_names[c - 1] for c in self.classes]

    def mask(self, index: int) -> np.ndarray:
        """The mask of one object at the picture's size, (height, width) bool."""
        mask, box = self.mask_probabilities[index], self.boxes[index]
        return paste_mask(mask, box, self.height, self.width, self.mask_paste)

    def above(self, score: float) -> Prediction:
        """The objects with at least this score."""
        keep = self.scores >= score
        fields = ("boxes", "scores", "classes", "mask_probabilities")
        return dataclasses.replace(self, **{name: getattr(self, name)[keep] for name in fields})

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO's result form: image_id, category_id, score, bbox xywh, segmentation (compressed RLE), as for JSON."""
        results = []
        for box, score, number, mask in zip(
            self.boxes, self.scores, self.classes, self.mask_probabilities, strict=True
        ):
            rle = paste_to_rle(mask, box, self.height, self.width, self.mask_paste)
            y0, x0, y1, x1 = (float(v) for v in box)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": self.labels.category_ids[number - 1],
                    "score": float(score),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
        return results

    def draw(self, image: np.ndarray | None = None, min_score: float = 0.5) -> Image.Image:
        """The picture with the masks, boxes and names of the objects of at least `min_score` drawn on it.

        Args:
            image: (height, width, 3) uint8; default: the one predicted on.

        Raises:
            ValueError: there is no picture.
        """
        image = self.image if image is None else image
        if image is None:
            raise ValueError("this prediction was made without its picture: give it to draw(image)")
        shown = self.above(min_score)
        captions = [f"{name} {score:.2f}" for name, score in zip(shown.names, shown.scores, strict=True)]
        return draw_instances(image, shown.boxes, shown.mask_probabilities, captions)


def find_pictures(inputs: Sequence[str]) -> list[tuple[str, str]]:
    """Pictures that files, folders (with those below) and globs name, and a name for the output of each.

    Returns:
        (path, name) in order, each picture once; names have no suffix, differ, and keep the folders below an input.

    Raises:
        ConfigError: one of the inputs names no picture.
    """
    if not inputs:
        raise ConfigError("--input is missing: pictures as files, folders or globs")
    found: dict[str, str] = {}
    taken: set[str] = set()
    for item in inputs:
        if os.path.isdir(item):
            paths = sorted(glob.glob(os.path.join(glob.escape(item), "**", "*"), recursive=True))
            paths = [p for p in paths if p.lower().endswith(PICTURE_SUFFIXES)]
            root = item
        else:
            paths = [item] if os.path.isfile(item) else sorted(glob.glob(item, recursive=True))
            paths = [p for p in paths if os.path.isfile(p)]
            root = ""
        if not paths:
            raise ConfigError(f"--input={item}: no picture there")
        for path in paths:
            if path in found:
                continue
            whole = os.path.relpath(path, root) if root else os.path.basename(path)
            stem, suffix = os.path.splitext(whole)
            name = stem if stem not in taken else f"{stem}_{suffix[1:]}"
            while name in taken:
                name += "_"
            taken.add(name)
            found[path] = name
    return list(found.items())


def coco_dataset(predictions: Sequence[tuple[str, Prediction]], labels: Labels) -> dict[str, list[dict]]:
    """Predictions as a COCO instances dict, annotations with a score: for COCO tools, or to train on once corrected.

    Args:
        predictions: (file name, prediction) of each picture; image ids count from 1.
        labels: names and COCO ids of the classes.
    """
    images, annotations = [], []
    for image_id, (name, prediction) in enumerate(predictions, 1):
        images.append({"id": image_id, "file_name": name, "height": prediction.height, "width": prediction.width})
        for result in prediction.to_coco(image_id):
            area = float(mask_utils.area(result["segmentation"]))
            annotations.append({"id": len(annotations) + 1, "iscrowd": 0, "area": area, **result})
    categories = [{"id": i, "name": n} for i, n in zip(labels.category_ids, labels.class_names, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}
