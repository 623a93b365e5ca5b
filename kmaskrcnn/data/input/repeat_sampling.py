"""How often an epoch shows each image: repeat-factor sampling (LVIS, Gupta et al. 2019, section 5.1)."""

from __future__ import annotations

import numpy as np

from kmaskrcnn.data.sets.dataset import CocoDataset


def repeat_factors(dataset: CocoDataset, threshold: float) -> np.ndarray:
    """How many times an epoch shows each image on average, (len(dataset),) float64.

    A class in a share f of the images asks for max(1, sqrt(threshold / f)), an image for the most that one of its
    classes does. Crowd regions count as objects.
    """
    if not threshold:
        return np.ones(len(dataset))
    rows = [dataset.rows(index) for index in range(len(dataset))]
    classes = [np.unique(dataset.classes[own]) for own in rows]
    counts = np.bincount(np.concatenate([*classes, np.zeros(0, np.int64)]).astype(np.int64))
    shares = np.maximum(counts / len(dataset), 1e-12)
    wanted = np.maximum(1.0, np.sqrt(threshold / shares))
    return np.array([wanted[own].max(initial=1.0) for own in classes])


def draw_repeats(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Positions 0..len(factors) - 1, each so many times as its factor says: rounded up or down at random.

    Their number is round(sum(factors)) at each draw, so that every epoch has as many steps: one point is drawn on the
    axis of the summed factors and the others lie at equal distances from it (systematic sampling).
    """
    total = round(float(factors.sum()))
    order = rng.permutation(len(factors))
    edges = np.cumsum(factors[order]) * (total / factors.sum())
    points = np.arange(total) + rng.random()
    return order[np.minimum(np.searchsorted(edges, points, side="right"), len(order) - 1)]
