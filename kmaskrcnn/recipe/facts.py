"""What the rules of a recipe look at: numbers of the training set, and of the machine."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from kmaskrcnn.data.sets.dataset import CocoDataset

# Outlines are looked at on at most so many objects, at this resolution.
_MOST_OUTLINES, _OUTLINE_CELLS = 3000, 28
# Pixels are looked at in so many images, scaled to this side.
_MOST_LOOKED_AT, _LOOK_SIDE = 16, 256


@dataclasses.dataclass(frozen=True)
class Facts:
    """Numbers of a training set; crowd regions are left out.

    Attributes:
        class_names: (C,) in the order of the classes.
        image_sizes: (I, 2) float64 height, width in pixels.
        boxes: (N, 4) float64 yxyx pixels of the objects.
        box_images: (N,) index of the image of each.
        classes: (N,) index of the class of each, from 0.
        outlined: (M,) indices of the objects whose outlines were looked at: all, or a fixed random part.
        lean: (M, 2) offset of the middle of their mask from the middle of their box, y and x, in sides of the box.
        contrast: standard deviation of the pixels of an image, 0..1; median over some images, NaN if none can be read.
        color: the same of their colorfulness (Hasler and Süsstrunk 2003), 0 for gray images; 0.06 is slightly colorful.
    """

    class_names: tuple[str, ...]
    image_sizes: np.ndarray
    boxes: np.ndarray
    box_images: np.ndarray
    classes: np.ndarray
    outlined: np.ndarray
    lean: np.ndarray
    contrast: float
    color: float

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.image_sizes)

    @property
    def sides(self) -> np.ndarray:
        """(N,) root of the area of each box, pixels."""
        return np.sqrt((self.boxes[:, 2:] - self.boxes[:, :2]).prod(axis=1))

    @property
    def long_sides(self) -> np.ndarray:
        """(N,) longer side of each box, pixels."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).max(axis=1, initial=0.0)

    @property
    def per_image(self) -> np.ndarray:
        """(I,) number of objects of each image."""
        return np.bincount(self.box_images, minlength=self.images)

    @property
    def class_shares(self) -> np.ndarray:
        """(C,) share of the images that hold each class."""
        pairs = np.unique(np.stack([self.classes, self.box_images]), axis=1)
        return np.bincount(pairs[0], minlength=len(self.class_names)) / max(self.images, 1)


def most_in_window(facts: Facts, sides: np.ndarray) -> int:
    """Objects with their center in one square window of some image, at most: an upper bound.

    Args:
        facts: of the set.
        sides: (I,) side of the window in pixels of each image.
    """
    counts, best = facts.per_image, 0
    centers = (facts.boxes[:, :2] + facts.boxes[:, 2:])[np.argsort(facts.box_images, kind="stable")] / 2
    ends = np.cumsum(counts)
    for image in np.argsort(-counts, kind="stable"):
        if counts[image] <= best:  # no image that is left has more
            break
        # On a grid of quarters of a window, of which one reaches over five, both ways.
        cells = (4 * centers[ends[image] - counts[image] : ends[image]] / sides[image]).astype(np.int64) + 4
        grid = np.zeros(cells.max(axis=0) + 5, np.int64)
        np.add.at(grid, tuple(cells.T), 1)
        best = max(best, int(np.lib.stride_tricks.sliding_window_view(grid, (5, 5)).sum(axis=(2, 3)).max()))
    return best


def facts_of(dataset: CocoDataset) -> Facts:
    """Take the numbers of a training set; the same set gives the same numbers."""
    kept = np.flatnonzero(~dataset.is_crowd)
    owners = np.repeat(np.arange(len(dataset)), [_length(dataset.rows(i)) for i in range(len(dataset))])
    boxes = dataset.boxes[kept].astype(np.float64)
    chosen = np.sort(np.random.default_rng(0).permutation(len(kept))[:_MOST_OUTLINES])
    rows = kept[chosen]
    masks = dataset.masks(rows, _OUTLINE_CELLS).astype(np.float64)
    frames, own = dataset.frames[rows].astype(np.float64), boxes[chosen]
    middles = (np.arange(_OUTLINE_CELLS) + 0.5) / _OUTLINE_CELLS
    total = np.maximum(masks.sum(axis=(1, 2)), 1e-9)
    centers = np.stack([(masks.sum(axis=axis) * middles).sum(axis=1) / total for axis in (2, 1)], axis=1)
    centers = frames[:, :2] + centers * (frames[:, 2:] - frames[:, :2])
    lean = (centers - (own[:, :2] + own[:, 2:]) / 2) / np.maximum(own[:, 2:] - own[:, :2], 1e-9)
    return Facts(
        tuple(dataset.class_names),
        dataset.sizes.astype(np.float64),
        boxes,
        owners[kept],
        dataset.classes[kept].astype(np.int64) - 1,
        chosen,
        lean,
        *_look_of(dataset),
    )


def _look_of(dataset: CocoDataset) -> tuple[float, float]:
    """Contrast and color of `Facts`."""
    found = [(np.nan, np.nan)]
    for index in np.random.default_rng(0).permutation(len(dataset))[:_MOST_LOOKED_AT]:
        try:
            image = Image.fromarray(dataset.image(int(index)))
        except (OSError, tf.errors.OpError):  # training says which, and what is to be done about it
            continue
        image.thumbnail((_LOOK_SIDE, _LOOK_SIDE))
        pixels = np.asarray(image, np.float64).reshape(-1, 3) / 255
        red, green, blue = pixels.T
        opponents = np.stack([red - green, (red + green) / 2 - blue])
        color = np.hypot(*opponents.std(axis=1)) + 0.3 * np.hypot(*opponents.mean(axis=1))
        found.append((float(pixels.std(axis=0).mean()), float(color)))
    contrast, color = np.nanmedian(found, axis=0) if len(found) > 1 else found[0]
    return float(contrast), float(color)


def _length(rows: slice) -> int:
    return rows.stop - rows.start


@dataclasses.dataclass(frozen=True)
class Machine:
    """What trains.

    Attributes:
        gpus: number of GPUs that take part; 0: the processor.
        memory_gb: memory of each of them, or of the machine.
        devices: parts that a batch is spread over.
    """

    gpus: int
    memory_gb: float
    devices: int = 1


def this_machine(devices: int = 1) -> Machine:
    """The machine at hand, `devices` of which train together."""
    gpus = len(tf.config.list_logical_devices("GPU"))
    memory = _gpu_memory_gb() if gpus else _memory_gb()
    return Machine(min(gpus, devices), memory, devices)


def _memory_gb() -> float:
    """Memory that this process may use: the machine's, or less where a container has a limit."""
    total = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, float(Path(path).read_text()))
        except (OSError, ValueError):  # no such limit, or "max"
            continue
    return total / 1e9


def _gpu_memory_gb(default: float = 8.0) -> float:
    """Memory of the smallest GPU by nvidia-smi, in GB; `default` where it cannot be told."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return default
    command = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return min(float(line) for line in text.split()) * 2**20 / 1e9
    except (OSError, subprocess.SubprocessError, ValueError):
        return default
