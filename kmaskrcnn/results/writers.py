"""Predictions as files: overlays, instance masks, COCO JSON, LabelMe JSON, CSV. Needs neither TensorFlow nor Keras."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kmaskrcnn.config import ConfigError
from kmaskrcnn.outputs import Outputs
from kmaskrcnn.results.draw import instance_color
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.prediction import Prediction, coco_dataset

OUTPUTS = ("overlay", "masks", "coco", "labelme", "csv")
CSV_COLUMNS = (
    "image",
    "instance",
    "class",
    "score",
    "x0",
    "y0",
    "x1",
    "y1",
    "mask_area",
    "mask_share",
    "track",
    "mask_score",
)
# Points of a LabelMe polygon lie at most this far from the outline that they stand for, in pixels.
_POLYGON_TOLERANCE = 0.5
# Larger overlays are JPEG files, a tenth of the bytes of a PNG; a JPEG has no side beyond 65,500.
_PNG_PIXELS, _JPEG_SIDE, _JPEG_QUALITY = 4_000_000, 65_500, 90


class Writer:
    """Writes predictions into a folder, in the chosen formats.

    `add` each image, then `close`, which writes the files for all images: results.json (COCO) and objects.csv.

    Args:
        directory: the folder; created when the first file is written.
        outputs: some of OUTPUTS.
        labels: names and COCO ids of the classes.
        read: the input files, which no output replaces.
        font: font file for the captions; empty: an installed font that has their characters.

    Attributes:
        set_aside: paths under which `close` kept the files of an earlier run.

    Raises:
        ConfigError: an unknown output, or one that needs a package that is not installed.
        OutputError: a file exists that an earlier run did not write.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        outputs: Sequence[str],
        labels: Labels,
        read: Iterable[str | os.PathLike] = (),
        font: str = "",
    ):
        unknown = [name for name in outputs if name not in OUTPUTS]
        if unknown or not outputs:
            raise ConfigError(f"outputs={','.join(outputs)}: choose some of {', '.join(OUTPUTS)}")
        if "labelme" in outputs:
            _contourpy()
        self.files = Outputs(directory, "predict", read)
        self.outputs, self.labels, self.font = tuple(outputs), labels, font
        self._sums = [n for form, n in (("coco", "results.json"), ("csv", "objects.csv")) if form in self.outputs]
        self.files.check(self._sums)
        self._records: list[tuple[str, int, int]] = []
        self._results: list[list[dict[str, Any]]] = []
        self._rows: list[list[Any]] = []
        self._paths: set[str] = set()
        self.set_aside: list[str] = []

    def check(self, names: Iterable[tuple[str, bool]]) -> None:
        """Check before the work that the files of (name, whether it is a video) may be written; raises OutputError."""
        for name, is_video in names:
            overlays = [f"{name}.mp4"] if is_video else [f"{name}.png", f"{name}.jpg"]
            self.files.check(overlays if "overlay" in self.outputs else [])
            masks = self._frames_there(name) if is_video else [f"{name}_masks.png"]
            self.files.check(masks if "masks" in self.outputs else [])
            self.files.check([_labelme_name(name)] if "labelme" in self.outputs else [])

    def _frames_there(self, name: str) -> list[str]:
        """The masks that are there of frames of the video `name`; how many it has is not known yet."""
        folder = Path(self.files.path(name))
        return [f"{name}/{file.name}" for file in sorted(folder.glob("*_masks.png"))]

    def video(self, name: str) -> contextlib.AbstractContextManager[str]:
        """As `Outputs.file`, of the video with the overlays of the video `name`; "" where none are asked for."""
        return self.files.file(f"{name}.mp4") if "overlay" in self.outputs else contextlib.nullcontext("")

    def add(self, path: str, name: str, prediction: Prediction, overlay: bool = True) -> list[Path]:
        """Write the files of one image.

        Args:
            path: path of the image.
            name: name of its files without suffix; may contain folders.
            prediction: the prediction, with its image if overlays are written.
            overlay: False for a frame of a video, whose overlays make a video.

        Returns:
            The files of this image.

        Raises:
            OutputError: one of them would replace a file that an earlier run did not write.
        """
        written = []
        self._paths.add(path)
        if overlay and "overlay" in self.outputs:
            written.append(self._save(name, prediction.draw(min_score=0.0, font=self.font)))
        if "masks" in self.outputs:
            written.append(self._save(name + "_masks", instance_mask_image(prediction.instance_mask()), "PNG"))
        if "labelme" in self.outputs:
            # A folder of their own, flat, is what LabelMe and the reader of training sets open.
            file = _labelme_name(name)
            relative = os.path.relpath(path, os.path.dirname(self.files.path(file))).replace(os.sep, "/")
            written.append(self.files.write_text(file, json.dumps(labelme_tree(prediction, relative), indent=2)))
        if "coco" in self.outputs:
            self._records.append((path, prediction.height, prediction.width))
            self._results.append(prediction.to_coco(len(self._records)))
        if "csv" in self.outputs:
            self._rows += csv_rows(path, prediction)
        return [Path(file) for file in written]

    def _save(self, name: str, image: Image.Image, form: str = "") -> str:
        large = image.width * image.height > _PNG_PIXELS and max(image.size) <= _JPEG_SIDE
        form = form or ("JPEG" if large else "PNG")
        name += ".jpg" if form == "JPEG" else ".png"
        with self.files.file(name) as path:
            image.save(path, form, quality=_JPEG_QUALITY)
        return self.files.path(name)

    def close(self) -> list[Path]:
        """Write the files for all images, and return their paths.

        Those of an earlier run with an image that this one does not have are kept under another name (`set_aside`).
        """
        table = io.StringIO(newline="")
        csv.writer(table).writerows([CSV_COLUMNS, *self._rows])
        tree = coco_dataset(self._records, self._results, self.labels)
        self.set_aside = [self.files.set_aside(name) for name in self._sums if self._images(name) - self._paths]
        texts = {"results.json": json.dumps(tree), "objects.csv": table.getvalue()}
        return [Path(self.files.write_text(name, texts[name])) for name in self._sums]

    def _images(self, name: str) -> set[str]:
        """Paths of the images in a file for all images as an earlier run wrote it; none where it did not."""
        if not os.path.exists(self.files.path(name)):
            return set()
        self.files.check([name])  # one that appeared during the run is not read
        with open(self.files.path(name), newline="", encoding="utf-8") as file:
            if name == "objects.csv":
                return {row["image"] for row in csv.DictReader(file)}
            return {image["file_name"] for image in json.load(file)["images"]}


def _labelme_name(name: str) -> str:
    return f"labelme/{name.replace('/', '__')}.json"


def instance_mask_image(numbers: np.ndarray) -> Image.Image:
    """A PNG's image of instance numbers (H, W): indexed with a color each up to 255, 16 bits of gray beyond."""
    if numbers.max(initial=0) > 255:
        return Image.fromarray(numbers.astype(np.uint16))
    picture = Image.fromarray(numbers.astype(np.uint8)).convert("L")
    palette = [0, 0, 0]
    for index in range(255):
        palette += instance_color(index)
    picture.putpalette(palette)
    return picture


def csv_rows(path: str, prediction: Prediction) -> list[list[Any]]:
    """CSV_COLUMNS of each object: instance counts from 1 as in the mask PNG, boxes and areas in pixels of the image.

    mask_share is the share of the image that the mask fills; track, the id over a tracked video, and mask_score, of a
    model with mask_scoring, are else empty.
    """
    rows = []
    pixels = prediction.height * prediction.width
    tracks = [""] * len(prediction) if prediction.track_ids is None else prediction.track_ids.tolist()
    masks = [""] * len(prediction) if prediction.mask_scores is None else [f"{v:.4f}" for v in prediction.mask_scores]
    columns = (prediction.names, prediction.scores, prediction.boxes, prediction.mask_areas(), tracks, masks)
    for number, (name, score, box, area, track, mask) in enumerate(zip(*columns, strict=True), 1):
        y0, x0, y1, x1 = (round(float(v), 2) for v in box)
        row = [path, number, name, round(float(score), 4), x0, y0, x1, y1, int(area), f"{area / pixels:.6f}", track]
        rows.append([*row, mask])
    return rows


def labelme_tree(prediction: Prediction, image_path: str) -> dict[str, Any]:
    """A LabelMe annotation file: each object as polygons, to be corrected by hand and trained on.

    Parts of one object share a group_id. LabelMe's polygons have no holes: those of a mask are filled.

    Args:
        prediction: the objects; their scores become the shapes' descriptions.
        image_path: of the image, from the folder of the file.
    """
    shapes = []
    for index, (name, score) in enumerate(zip(prediction.names, prediction.scores, strict=True)):
        window, top, left = prediction.window(index)
        polygons = mask_polygons(window)
        for polygon in polygons:
            shapes.append(
                {
                    "label": name,
                    "points": (polygon + np.array([left, top])).round(2).tolist(),
                    "group_id": index + 1 if len(polygons) > 1 else None,
                    "description": f"score {score:.3f}",
                    "shape_type": "polygon",
                    "flags": {},
                }
            )
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": prediction.height,
        "imageWidth": prediction.width,
    }


def mask_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The outer outlines of a mask (h, w) bool as (P, 2) x, y of pixels; pixel i covers [i, i + 1)."""
    if not mask.any():
        return []
    padded = np.pad(mask, 1).astype(np.float32)
    lines = _contourpy().contour_generator(z=padded, name="serial").lines(0.5)
    polygons = []
    for line in lines:
        line = line - 0.5  # the center of pixel 0 lies at 1 in the padded image
        x, y = line[:-1].T
        # The outlines of masks and of holes run in opposite senses.
        if np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)) > 0:
            polygon = _simplify(line)[:-1]
            polygons.append(polygon if len(polygon) > 2 else line[:-1])
    return polygons


def _simplify(line: np.ndarray) -> np.ndarray:
    """A closed line (P, 2) with the points left out that lie within the tolerance of the rest (Douglas, Peucker)."""
    keep = np.zeros(len(line), bool)
    far = int(np.argmax(((line - line[0]) ** 2).sum(1)))
    keep[[0, far, -1]] = True
    spans = [(0, far), (far, len(line) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        start, along = line[first], line[last] - line[first]
        length = np.hypot(*along)
        offset = line[first + 1 : last] - start
        distance = np.abs(offset[:, 0] * along[1] - offset[:, 1] * along[0]) / max(length, 1e-9)
        worst = int(np.argmax(distance))
        if distance[worst] > _POLYGON_TOLERANCE:
            middle = first + 1 + worst
            keep[middle] = True
            spans += [(first, middle), (middle, last)]
    return line[keep]


def _contourpy() -> Any:
    try:
        import contourpy
    except ImportError:
        raise ConfigError("outputs=labelme traces outlines with contourpy: pip install contourpy") from None
    return contourpy
