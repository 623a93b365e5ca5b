"""What a data set looks like in numbers."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from kmaskrcnn.config import Config, DataConfig
from kmaskrcnn.data.doctor.examine import Examined
from kmaskrcnn.data.sizes import base_scale, network_size
from kmaskrcnn.ops.anchors import cell_anchors

_STRIDES = (4, 8, 16, 32, 64)
# Coverage is measured on at most so many boxes, evenly taken from all.
_MOST_BOXES = 20000
# Anchors are fitted to at most so many boxes of training crops, and gain nothing above the IoU that makes a positive.
_MOST_FITTED, _POSITIVE = 5000, 0.7


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Numbers of an examined set.

    Attributes:
        class_names: in the order of their ids; class_counts: objects of each.
        boxes: (N, 4) float64 yxyx source pixels of the objects that are no crowd.
        scaled: the same in network pixels.
        areas: (N,) mask pixels in the source.
        per_image: (images,) objects.
        image_sizes: (images, 2) height, width of the source; network_sizes: after resizing.
        box_images: (N,) position of the image of each box.
    """

    class_names: list[str]
    class_counts: list[int]
    boxes: np.ndarray
    scaled: np.ndarray
    areas: np.ndarray
    per_image: np.ndarray
    image_sizes: np.ndarray
    network_sizes: np.ndarray
    box_images: np.ndarray


def measure(examined: Examined, config: DataConfig) -> Statistics:
    """The numbers of a set, its images resized as `config` says."""
    index = {image.record["id"]: i for i, image in enumerate(examined.images)}
    sizes = np.array([(i.record["height"], i.record["width"]) for i in examined.images], np.int64).reshape(-1, 2)
    scales = np.array([base_scale(int(h), int(w), config) for h, w in sizes])
    network = [network_size(int(h), int(w), config) for h, w in sizes]
    objects = [a.record for a in examined.annotations if not a.record["iscrowd"]]
    xywh = np.array([a["bbox"] for a in objects], np.float64).reshape(-1, 4)
    boxes = np.stack([xywh[:, 1], xywh[:, 0], xywh[:, 1] + xywh[:, 3], xywh[:, 0] + xywh[:, 2]], axis=1)
    owners = np.array([index[a["image_id"]] for a in objects], np.int64)
    categories = sorted(examined.categories, key=lambda c: c["id"])
    counts = {c["id"]: 0 for c in categories}
    for annotation in objects:
        counts[annotation["category_id"]] += 1
    return Statistics(
        [c["name"] for c in categories],
        list(counts.values()),
        boxes,
        boxes * scales[owners][:, None] if len(boxes) else boxes,
        np.array([a["area"] for a in objects], np.float64),
        np.bincount(owners, minlength=len(sizes)),
        sizes,
        np.array(network, np.int64).reshape(-1, 2),
        owners,
    )


def best_anchor_iou(
    boxes: np.ndarray, sizes: np.ndarray, anchor_sizes: tuple[float, ...], ratios: tuple[float, ...]
) -> np.ndarray:
    """IoU of each box with the best of all anchors.

    Args:
        boxes: (N, 4) yxyx network pixels.
        sizes: (N, 2) height and width of the image of each.
        anchor_sizes: side on each of the strides 4, 8, 16, 32, 64.
        ratios: height / width.

    Returns:
        (N,). Of anchors of one shape the one whose center is nearest has the largest overlap along both axes, so
        only that one is looked at.
    """
    best = np.zeros(len(boxes))
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    for stride, side in zip(_STRIDES, anchor_sizes, strict=True):
        last = np.ceil(sizes / stride) - 1
        nearest = np.clip(np.round(center / stride), 0, last) * stride
        for anchor in cell_anchors(side, ratios).astype(np.float64):
            low = np.maximum(boxes[:, :2], nearest + anchor[:2])
            high = np.minimum(boxes[:, 2:], nearest + anchor[2:])
            overlap = np.maximum(high - low, 0).prod(axis=1)
            union = height * width + (anchor[2:] - anchor[:2]).prod() - overlap
            best = np.maximum(best, overlap / np.maximum(union, 1e-9))
    return best


def boxes_in_training(boxes: np.ndarray, sizes: np.ndarray, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Boxes as training shows them: as they are and at both ends of scale_jitter, cut to the side of the crop.

    Args:
        boxes: (N, 4) yxyx network pixels.
        sizes: (N, 2) height and width of the image of each.
        config: its crop_size and scale_jitter.

    Returns:
        (M, 4) boxes, evenly taken from all, at a place of the crop that is each box's own, and (M, 2) sizes.
    """
    factors = sorted({1.0, *config.scale_jitter})
    boxes = np.concatenate([boxes * factor for factor in factors])
    sizes = np.concatenate([np.asarray(sizes, np.float64) * factor for factor in factors])
    every = max(1, -(-len(boxes) // _MOST_FITTED))
    boxes, sizes = boxes[::every], sizes[::every]
    if not config.crop_size:
        return boxes, sizes
    sides = np.minimum(boxes[:, 2:] - boxes[:, :2], config.crop_size)
    places = np.random.default_rng(0).random(sides.shape) * (config.crop_size - sides)
    return np.concatenate([places, places + sides], axis=1), np.full_like(sizes, config.crop_size)


def training_iou(
    boxes: np.ndarray, sizes: np.ndarray, anchor_sizes: tuple[float, ...], ratios: tuple[float, ...]
) -> float:
    """The mean IoU of `boxes_in_training` with their best anchors, each counted up to 0.7, which makes a positive."""
    return float(np.minimum(best_anchor_iou(boxes, sizes, anchor_sizes, ratios), _POSITIVE).mean())


class Coverage(NamedTuple):
    """How well a set of anchors meets the boxes: shares of the boxes whose best anchor has an IoU ..."""

    anchor_sizes: tuple[float, ...]
    ratios: tuple[float, ...]
    unmatched: float  # below rpn_positive_iou: trained through the one best anchor alone
    hopeless: float  # below rpn_negative_iou
    mean: float  # of the IoUs
    in_training: float  # `training_iou`, which the recipe maximizes


def coverage(
    statistics: Statistics, config: Config, anchor_sizes: tuple[float, ...], ratios: tuple[float, ...]
) -> Coverage:
    """How well anchors of these sizes and ratios meet the boxes of a set."""
    if not len(statistics.scaled):
        return Coverage(anchor_sizes, ratios, 0.0, 0.0, 0.0, 0.0)
    every = max(1, -(-len(statistics.scaled) // _MOST_BOXES))
    sizes = statistics.network_sizes[statistics.box_images[::every]]
    iou = best_anchor_iou(statistics.scaled[::every], sizes, anchor_sizes, ratios)
    limits = config.model.rpn_negative_iou, config.model.rpn_positive_iou
    low, high = (float((iou < limit).mean()) for limit in limits)
    trained = boxes_in_training(statistics.scaled, statistics.network_sizes[statistics.box_images], config.data)
    return Coverage(anchor_sizes, ratios, high, low, float(iou.mean()), training_iou(*trained, anchor_sizes, ratios))
