"""Instance masks cropped to a frame and resampled to m x m cells, from COCO polygons or RLE."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.data.sets.check_mask import rle_counts

Segmentation = list[np.ndarray] | dict[str, Any]


def mask_frame(segmentation: Segmentation, box: tuple[float, ...], height: int, width: int) -> tuple[float, ...]:
    """The yxyx rectangle that a mask is cropped to: the box grown to cover the segmentation, inside the image.

    For RLE it has whole pixels, so that the crop is exact.
    """
    if isinstance(segmentation, dict):
        x, y, w, h = mask_utils.toBbox(segmentation)
        bounds = y, x, y + h, x + w
    else:
        x, y = (np.concatenate([p[axis::2] for p in segmentation]) for axis in (0, 1))
        bounds = y.min(), x.min(), y.max(), x.max()
    y0, x0, y1, x1 = min(box[0], bounds[0]), min(box[1], bounds[1]), max(box[2], bounds[2]), max(box[3], bounds[3])
    if isinstance(segmentation, dict):
        y0, x0, y1, x1 = np.floor(y0), np.floor(x0), np.ceil(y1), np.ceil(x1)
    return max(y0, 0.0), max(x0, 0.0), min(y1, float(height)), min(x1, float(width))


@functools.lru_cache(maxsize=256)
def _cell_weights(pixels: int, cells: int) -> np.ndarray:
    """(cells, pixels) share of each cell that each pixel covers, for `cells` equal cells over `pixels` pixels."""
    edges = np.arange(cells + 1) * (pixels / cells)
    start, pixel = edges[:-1, None], np.arange(pixels)[None]
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(start, pixel)
    return (np.maximum(overlap, 0) * (cells / pixels)).astype(np.float32)


# Multiplications of a matrix product that OpenBLAS does on the thread that asks. For more it wakes threads of its own,
# which spin for longer than the product takes, and there is a thread of tf.data on every processor already.
_SERIAL_PRODUCT = 2**18


def _cell_means(values: np.ndarray, cells: int) -> np.ndarray:
    """(pixels, w) float32 to (cells, w), the means over equal cells."""
    pixels, width = values.shape
    step = cells
    while step > 1 and step * (step * pixels // cells + 2) * width > _SERIAL_PRODUCT:
        step //= 2
    weights, means = _cell_weights(pixels, cells), np.empty((cells, width), np.float32)
    for start in range(0, cells, step):
        stop = min(start + step, cells)
        covered = slice(start * pixels // cells, -(-stop * pixels // cells))
        np.matmul(weights[start:stop, covered], values[covered], out=means[start:stop])
    return means


def resample_area(crop: np.ndarray, cells: int) -> np.ndarray:
    """(h, w) 0/1 mask to the (cells, cells) uint8 coverage 0..255 of equal cells, exact in area."""
    rows = _cell_means(crop.astype(np.float32), cells)
    return np.rint(_cell_means(rows.T, cells).T * 255).astype(np.uint8)


# Coverage of a cell by how many of its 2 x 2 parts are set.
_QUARTERS = (np.arange(5) * 255 // 4).astype(np.uint8)


def rasterize_polygons(polygons: list[np.ndarray], frame: np.ndarray, cells: int) -> np.ndarray:
    """Polygons drawn straight into the cells of a frame, never at image size: (cells, cells) uint8 0..255."""
    y0, x0, y1, x1 = (float(v) for v in frame)
    # A cell wider than a pixel needs its coverage, not only what lies at its center.
    fine = 2 if max(y1 - y0, x1 - x0) > cells else 1
    side = fine * cells
    scale, shift = np.array([side / (x1 - x0), side / (y1 - y0)]), np.array([x0, y0])
    moved = [((p.reshape(-1, 2) - shift) * scale).reshape(-1) for p in polygons]
    mask = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(moved, side, side)))
    if fine == 1:
        return mask * np.uint8(255)
    rows = mask[::2] + mask[1::2]
    return _QUARTERS[rows[:, ::2] + rows[:, 1::2]]


def decode_crop(rle: dict[str, Any], frame: np.ndarray) -> np.ndarray:
    """(h, w) 0/1 uint8 part of an RLE mask inside a frame of whole pixels."""
    y0, x0, y1, x1 = (round(float(v)) for v in frame)
    height = int(rle["size"][0])
    # The runs of the frame's columns alone: the whole mask of each object of a large image would take seconds an image.
    ends = np.clip(np.cumsum(rle_counts(rle["counts"])), x0 * height, x1 * height) - x0 * height
    values = (np.arange(len(ends)) % 2).astype(np.uint8)
    return np.repeat(values, np.diff(ends, prepend=0)).reshape(-1, height).T[y0:y1]


class CropCache:
    """RLE crops at their own resolution, one bit a pixel, up to a limit in bytes.

    The crop of a small object is a few dozen bytes.
    """

    def __init__(self, limit_bytes: int = 256 * 2**20):
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self._crops: dict[int, tuple[np.ndarray, tuple[int, int]]] = {}

    def crop(self, key: int, rle: dict[str, Any], frame: np.ndarray) -> np.ndarray:
        """`decode_crop(rle, frame)`, remembered under `key`."""
        if key in self._crops:
            bits, shape = self._crops[key]
            return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape)
        mask = decode_crop(rle, frame)
        bits = np.packbits(np.ascontiguousarray(mask).reshape(-1))
        if self.used_bytes + bits.nbytes <= self.limit_bytes:
            self._crops[key] = bits, mask.shape
            self.used_bytes += bits.nbytes
        return mask
