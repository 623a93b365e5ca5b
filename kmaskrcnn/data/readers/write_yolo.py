"""Data sets in the form of Ultralytics' YOLO segmentation: data.yaml, images/SPLIT and labels/SPLIT."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import header_of, read_encoded
from kmaskrcnn.data.sets.dataset import CocoDataset
from kmaskrcnn.errors import DataError
from kmaskrcnn.outputs import OutputError, Outputs
from kmaskrcnn.progress import Progress
from kmaskrcnn.results.writers import mask_polygons


def write_yolo(parts: Mapping[str, CocoDataset], output: str, sources: Sequence[str] = ()) -> str:
    """Write checked sets as the splits of a YOLO set.

    Image files are copied as they are but for those that EXIF turns, which are stored as their annotations mean them.
    An object of several parts becomes one outline with lines between them, the holes of masks are filled, and crowds
    are left out: the form has no more.

    Args:
        parts: the sets by split ("train", "val", "test"), of the same classes.
        output: folder, also behind tf.io.gfile; made if need be.
        sources: annotation files that were read, which are not written over.

    Returns:
        The path of data.yaml.

    Raises:
        DataError: the classes of the sets differ.
        OutputError: a file that was read, or that this did not write, would be replaced, or the folder of a split has
            an image or label file of another set, which readers of the split would take too.
    """
    names = {tuple(dataset.class_names) for dataset in parts.values()}
    if len(names) != 1:
        raise DataError(f"{output}: the sets have different classes; class_names gives them the same")
    read = [path for dataset in parts.values() for path in dict.fromkeys(dataset.paths)]
    outputs = files.open_outputs(output, "convert", [*sources, *read])
    stems = {split: _stems(dataset) for split, dataset in parts.items()}
    outputs.check(["data.yaml", *(f"labels/{split}/{stem}.txt" for split in parts for stem in stems[split])])
    for split in parts:
        _check_leftovers(outputs, split, set(stems[split]))
    for split, dataset in parts.items():
        progress = Progress(f"images of {split} written", len(dataset))
        for index, stem in enumerate(stems[split]):
            data, ending = _contents(dataset, index)
            outputs.write_bytes(f"images/{split}/{stem}{ending}", data)
            lines = _lines(dataset, index)
            outputs.write_text(f"labels/{split}/{stem}.txt", "".join(line + "\n" for line in lines))
            progress.step()
        progress.clear()
    # Without a `path`, which Ultralytics would read from the current folder and not from that of the file.
    tree = {**{split: f"images/{split}" for split in parts}, "names": dict(enumerate(names.pop()))}
    return outputs.write_text("data.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))  # last


def _check_leftovers(outputs: Outputs, split: str, stems: set[str]) -> None:
    """Raise OutputError where a split has a file that would become part of the new set."""
    for kind, patterns in (("images", files.IMAGE_PATTERNS), ("labels", ("*.txt",))):
        folder = outputs.path(f"{kind}/{split}")
        for name in files.matching(folder, *patterns) if files.is_folder(folder) else ():
            if files.stem(name) not in stems:
                raise OutputError(
                    f"{files.join(folder, name)}: is of another set, and a YOLO set is all that its folders hold; "
                    "choose another output, or move it away"
                )


def _stems(dataset: CocoDataset) -> list[str]:
    """A name for each image that no other has; label files differ by it alone."""
    stems: list[str] = []
    used: set[str] = set()
    for file_name in dataset.file_names:
        stem = files.stem(file_name.replace("\\", "/"))
        number, name = 1, stem
        while name.lower() in used:  # the same on some file systems
            number, name = number + 1, f"{stem}_{number + 1}"
        used.add(name.lower())
        stems.append(name)
    return stems


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
        row, column = divmod(int(gaps.argmin()), gaps.shape[1])
        i, j = row * steps[0], column * steps[1]
        loop = np.concatenate([outline[j:], outline[: j + 1]])
        joined = np.concatenate([joined[: i + 1], loop, joined[i:]])
    return joined
