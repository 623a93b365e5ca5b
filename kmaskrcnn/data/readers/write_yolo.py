"""Data sets in the form of Ultralytics' YOLO segmentation: data.yaml, images/SPLIT and labels/SPLIT."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import header_of, read_encoded
from kmaskrcnn.data.sets.dataset import CocoDataset
from kmaskrcnn.errors import DataError
from kmaskrcnn.progress import Progress
from kmaskrcnn.results.writers import mask_polygons


def write_yolo(parts: Mapping[str, CocoDataset], output: str) -> str:
    """Write checked sets as the splits of a YOLO set.

    Image files are copied as they are but for those that EXIF turns, which are stored as their annotations mean them.
    An object of several parts becomes one outline with lines between them, the holes of masks are filled, and crowds
    are left out: the form has no more.

    Args:
        parts: the sets by split ("train", "val", "test"), of the same classes.
        output: folder, also behind tf.io.gfile; made if need be.

    Returns:
        The path of data.yaml.

    Raises:
        DataError: the classes of the sets differ, or the folder holds a set already.
    """
    names = {tuple(dataset.class_names) for dataset in parts.values()}
    if len(names) != 1:
        raise DataError(f"{output}: the sets have different classes; class_names gives them the same")
    path = os.path.join(output, "data.yaml")
    if files.exists(path):
        raise DataError(f"{path}: there is a set already; name another folder")
    for split, dataset in parts.items():
        _write_split(dataset, output, split)
    tree = {"path": ".", **{split: f"images/{split}" for split in parts}, "names": dict(enumerate(names.pop()))}
    files.write_text(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return path


def _write_split(dataset: CocoDataset, output: str, split: str) -> None:
    for kind in ("images", "labels"):
        files.make_folder(os.path.join(output, kind, split))
    progress, used = Progress(f"images of {split} written", len(dataset)), set()
    for index in range(len(dataset)):
        data, ending = _contents(dataset, index)
        stem = _unused(files.stem(dataset.file_names[index].replace("\\", "/")), used)
        files.write_bytes(os.path.join(output, "images", split, stem + ending), data)
        lines = _lines(dataset, index)
        files.write_text(os.path.join(output, "labels", split, stem + ".txt"), "".join(line + "\n" for line in lines))
        progress.step()
    progress.clear()


def _contents(dataset: CocoDataset, index: int) -> tuple[bytes, str]:
    """The bytes of an image and the ending of its name."""
    data = read_encoded(dataset.paths[index], *map(int, dataset.spans[index]))
    if header_of(io.BytesIO(data)).orientation == 1:
        with Image.open(io.BytesIO(data)) as image:
            own = os.path.splitext(dataset.file_names[index])[1].lower()
            return data, own if f"*{own}" in files.IMAGE_PATTERNS else f".{(image.format or 'png').lower()}"
    buffer = io.BytesIO()
    Image.fromarray(dataset.image(index)).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def _unused(stem: str, used: set[str]) -> str:
    """A name that no other image has; label files differ by it alone."""
    number, name = 1, stem
    while name in used:
        number, name = number + 1, f"{stem}_{number + 1}"
    used.add(name)
    return name


def _lines(dataset: CocoDataset, index: int) -> list[str]:
    """A line for each object: class number and corners in shares of the sides."""
    height, width = (int(side) for side in dataset.sizes[index])
    rows, lines = dataset.rows(index), []
    for row in range(rows.start, rows.stop):
        if dataset.is_crowd[row]:
            continue
        outline = _join(_outlines(dataset.segmentations[row], height, width))
        shares = np.clip(outline / (width, height), 0, 1).reshape(-1)
        lines.append(" ".join([str(int(dataset.classes[row]) - 1), *(f"{value:.6f}" for value in shares)]))
    return lines


def _outlines(segmentation: list[np.ndarray] | dict, height: int, width: int) -> list[np.ndarray]:
    """Outlines (P, 2) x, y of the parts of a segmentation."""
    if isinstance(segmentation, list):
        return [polygon.reshape(-1, 2) for polygon in segmentation]
    x, y, w, h = (int(v) for v in mask_utils.toBbox(segmentation))
    return [np.add(p, (x, y)) for p in mask_polygons(mask_utils.decode(segmentation)[y : y + h, x : x + w] > 0)]


def _join(outlines: list[np.ndarray]) -> np.ndarray:
    """One outline of several: each further one is entered and left by a line from its nearest corner."""
    joined = outlines[0]
    for outline in outlines[1:]:
        # The nearest pair of corners; long outlines are thinned out for the search alone.
        steps = [max(1, len(part) // 500) for part in (joined, outline)]
        gaps = ((joined[:: steps[0], None] - outline[None, :: steps[1]]) ** 2).sum(axis=2)
        i, j = np.unravel_index(int(gaps.argmin()), gaps.shape)
        i, j = int(i) * steps[0], int(j) * steps[1]
        loop = np.concatenate([outline[j:], outline[: j + 1]])
        joined = np.concatenate([joined[: i + 1], loop, joined[i:]])
    return joined
