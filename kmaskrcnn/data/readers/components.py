"""Connected components of label images: what is one object where a value is a class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# A part counts from this share of the largest of its value on; two are apart by this share of the long side.
_PART, _GAP = 0.1, 0.02


class Components(NamedTuple):
    """Runs of one value along the rows of a label image, row by row, and the components that they make.

    Attributes:
        rows, starts, ends: (R,) row, first column and the one after the last of each run that is not of value 0.
        owners: (R,) component of each run, from 0.
        values: (C,) value of each component.
    """

    rows: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    owners: np.ndarray
    values: np.ndarray


def find_components(indices: np.ndarray) -> Components:
    """The components of an (H, W) image of integers: pixels of one value, not 0, that touch, at corners too."""
    height, width = indices.shape
    change = np.ones((height, width + 1), bool)  # before each pixel, and after the last one of a row
    change[:, 1:-1] = indices[:, 1:] != indices[:, :-1]
    rows, columns = np.nonzero(change)
    inside = columns[:-1] < width
    rows, starts, ends = rows[:-1][inside], columns[:-1][inside], columns[1:][inside]
    values = indices[rows, starts]
    rows, starts, ends, values = (a[values != 0] for a in (rows, starts, ends, values))
    # The runs of the row above that a run touches lie side by side in the order of all runs.
    above = (rows - 1) * (width + 2)
    first = np.searchsorted(rows * (width + 2) + ends, above + starts, "left")
    count = np.searchsorted(rows * (width + 2) + starts, above + ends, "right") - first
    low = np.repeat(np.arange(len(rows)), count)
    high = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    same = values[low] == values[high]
    roots = _join(len(rows), low[same], high[same])
    first_runs, owners = np.unique(roots, return_inverse=True)
    return Components(rows, starts, ends, owners, values[first_runs])


def _join(count: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The smallest number that each of 0..count - 1 is joined with by pairs (low, high)."""
    roots = np.arange(count)
    while (apart := roots[low] != roots[high]).any():
        one, other = roots[low[apart]], roots[high[apart]]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while (nearer := roots[roots] != roots).any():
            roots[nearer] = roots[roots[nearer]]
    return roots


def label_components(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) numbers 1, 2, ... of the components of an image, 0 elsewhere, and the value of each component."""
    found = find_components(indices)
    labels = np.zeros(indices.shape, np.int64)
    labels[indices != 0] = np.repeat(found.owners + 1, found.ends - found.starts)
    return labels, found.values


def count_scattered(indices: np.ndarray) -> tuple[int, int]:
    """How many values but 0 an image has, and how many of them lie in several large parts far from each other."""
    found = find_components(indices)
    count = len(found.values)
    if not count:
        return 0, 0
    area = np.bincount(found.owners, found.ends - found.starts, count)
    low, high = np.full((count, 2), np.iinfo(np.int64).max), np.zeros((count, 2), np.int64)
    np.minimum.at(low, found.owners, np.stack([found.rows, found.starts], axis=1))
    np.maximum.at(high, found.owners, np.stack([found.rows + 1, found.ends], axis=1))
    values, owners = np.unique(found.values, return_inverse=True)
    largest = np.zeros(len(values))
    np.maximum.at(largest, owners, area)
    parts = area >= _PART * largest[owners]
    # Two parts are apart where one begins so far behind the end of another.
    last, end = np.zeros((len(values), 2), np.int64), np.full((len(values), 2), np.iinfo(np.int64).max)
    np.maximum.at(last, owners[parts], low[parts])
    np.minimum.at(end, owners[parts], high[parts])
    scattered = (last - end >= max(2.0, _GAP * max(indices.shape))).any(axis=1)
    return len(values), int(scattered.sum())
