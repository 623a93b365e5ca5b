"""The host's part of a model for the GPU, in NumPy: proposals, RoIAlign, detections, and the mask of each one's class.

`kmaskrcnn.export.gpu_graphs` says what the graphs between are. The same steps, in the same order and with the same
names, are in demo/browser/host.js, demo/android (Host.kt) and demo/ios/Host.swift; tests/golden/host_vectors.json holds
what each must give. Needs NumPy alone. Boxes are float32 yxyx in pixels of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MAX_LOG_SCALE = math.log(1000.0 / 16.0)
_POOL_LEVELS = ("P2", "P3", "P4", "P5")
_FARTHEST = 1e6

Arrays = Mapping[str, np.ndarray]
# A graph by name, and its input -> its outputs.
Run = Callable[[str, np.ndarray], Arrays]


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k highest of scores (N,), or of all where there are fewer; of equal ones the first comes first."""
    return np.argsort(-scores, kind="stable")[:k]


def decode(deltas: np.ndarray, anchors: np.ndarray, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> np.ndarray:
    """The boxes (..., 4) that (dy, dx, dh, dw) (..., 4) make of anchors (..., 4)."""
    deltas = deltas / np.asarray(weights, np.float32)
    size = anchors[..., 2:] - anchors[..., :2]
    center = deltas[..., :2] * size + (anchors[..., :2] + np.float32(0.5) * size)
    half = np.float32(0.5) * np.exp(np.minimum(deltas[..., 2:], np.float32(MAX_LOG_SCALE))) * size
    return np.concatenate([center - half, center + half], axis=-1)


def clip(boxes: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    """Boxes (..., 4) cut at an image of height and width."""
    return np.clip(boxes, np.float32(0), np.array([*image_shape, *image_shape], np.float32))


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float, max_output: int) -> list[int]:
    """Greedy non-maximum suppression: indices by decreasing score, of equal scores the first.

    A box of no area is never kept; one whose IoU with a kept box is above the threshold is dropped.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-scores, kind="stable")
    good = (boxes[order, 2] > boxes[order, 0]) & (boxes[order, 3] > boxes[order, 1])
    order, keep = order[good], []
    while len(order) and len(keep) < max_output:
        best, order = order[0], order[1:]
        keep.append(int(best))
        size = np.minimum(boxes[best, 2:], boxes[order, 2:]) - np.maximum(boxes[best, :2], boxes[order, :2])
        overlap = np.maximum(size[:, 0], 0) * np.maximum(size[:, 1], 0)
        order = order[overlap <= np.float32(iou_threshold) * (area[best] + area[order] - overlap)]
    return keep


def anchors_of(level: Mapping[str, Any]) -> np.ndarray:
    """The anchors (h * w * A, 4) of a level of the settings."""
    y = np.arange(level["height"], dtype=np.float32) * np.float32(level["strides"][0])
    x = np.arange(level["width"], dtype=np.float32) * np.float32(level["strides"][1])
    shifts = np.stack(np.broadcast_arrays(y[:, None], x[None, :]) * 2, axis=-1)  # (h, w, 4)
    return (shifts[:, :, None] + np.array(level["anchors"], np.float32)).reshape(-1, 4)


def proposals(outputs: Arrays, image_shape: tuple[int, int], settings: Mapping[str, Any]) -> np.ndarray:
    """Boxes (n, 4) by falling objectness, n at most rpn_post_nms_top_k.

    Args:
        outputs: of the graph pyramid.
        image_shape: height and width of the image inside the padding.
        settings: `host` of the metadata.
    """
    most, boxes, scores = settings["rpn_post_nms_top_k"], [], []
    for level in settings["levels"]:
        logits = outputs[f"objectness_{level['name']}"].reshape(-1)
        rows = top_k(logits, settings["rpn_pre_nms_top_k"])
        deltas = outputs[f"deltas_{level['name']}"].reshape(-1, 4)[rows]
        found = clip(decode(deltas, anchors_of(level)[rows]), image_shape)
        large = ((found[:, 2:] - found[:, :2]) > settings["rpn_min_size"]).all(axis=1)
        found, logits = found[large], logits[rows][large]
        keep = nms(found, logits, settings["rpn_nms_iou"], most)
        boxes.append(found[keep])
        scores.append(logits[keep])
    return np.concatenate(boxes)[top_k(np.concatenate(scores), most)]


def roi_level(box: np.ndarray) -> int:
    """The level 2..5 that a box (4,) is pooled from (FPN, equation 1)."""
    side = math.sqrt(max(float(box[2] - box[0]), 0.0) * max(float(box[3] - box[1]), 0.0))
    return min(max(math.floor(4 + math.log2(side / 224.0 + 1e-6)), 2), 5)


def axis_weights(
    start: float, stop: float, length: int, size: int, ratio: int, aligned: bool
) -> tuple[np.ndarray, int]:
    """RoIAlign along one axis: how much of each map cell goes into each bin, (size, cells), and the first of the cells.

    Args:
        start, stop: of the RoI, in cells of the map.
        length: of the map.
        size: number of bins.
        ratio: samples of a bin.
        aligned: shift by half a cell.
    """
    extent = np.float32(stop - start)
    origin = np.float32(start - 0.5 if aligned else start)
    if not aligned:
        extent = max(extent, np.float32(1))
    samples = (np.arange(size * ratio, dtype=np.float32) + np.float32(0.5)) / np.float32(ratio)
    position = origin + samples * (extent / np.float32(size))
    inside = ((position >= -1) & (position <= length)).astype(np.float32) / np.float32(ratio)
    position = np.clip(position, 0, np.float32(length - 1))
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, length - 1)
    fraction = position - low
    first = int(low.min())
    weights = np.zeros((size, int(high.max()) - first + 1), np.float32)
    bins = np.repeat(np.arange(size), ratio)
    np.add.at(weights, (bins, low - first), (1 - fraction) * inside)
    np.add.at(weights, (bins, high - first), fraction * inside)
    return weights, first


def roi_align(maps: Arrays, boxes: np.ndarray, count: int, size: int, settings: Mapping[str, Any]) -> np.ndarray:
    """Pool boxes (n, 4), n at most count, each from its level -> (count, size, size, C), rows past n are 0."""
    ratio, aligned = settings["roi_sampling_ratio"], settings["roi_aligned"]
    pooled = np.zeros((count, size, size, settings["channels"]), np.float32)
    boxes = np.clip(boxes, -_FARTHEST, _FARTHEST)
    for i, box in enumerate(boxes):
        level = roi_level(box)
        feature, (y0, x0, y1, x1) = maps[f"P{level}"][0], box * np.float32(0.5**level)
        rows, top = axis_weights(y0, y1, feature.shape[0], size, ratio, aligned)
        columns, left = axis_weights(x0, x1, feature.shape[1], size, ratio, aligned)
        window = feature[top : top + rows.shape[1], left : left + columns.shape[1]]
        bands = np.tensordot(rows, window, (1, 0))  # (size, columns, C)
        pooled[i] = np.matmul(columns, bands)
    return pooled


def detections(
    scores: np.ndarray,
    deltas: np.ndarray,
    boxes: np.ndarray,
    image_shape: tuple[int, int],
    settings: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The objects by decreasing score: boxes (m, 4), scores (m,) and classes (m,) in 1..C, m at most max_detections.

    Args:
        scores, deltas: of the graph boxes.
        boxes: (n, 4), what was pooled for it; further rows of the graph's outputs are left out.
        image_shape: height and width of the image inside the padding.
        settings: `host` of the metadata.
    """
    count, classes = len(boxes), settings["num_classes"]
    scores = scores[:count, 1:]
    deltas = deltas[:count].reshape(count, classes + 1, 4)[:, 1:]
    decoded = clip(decode(deltas, boxes[:, None], settings["box_coding_weights"]), image_shape)
    found = []  # (RoI, class) pairs in each class's order
    for column in range(classes):
        rows = np.flatnonzero(scores[:, column] > settings["score_threshold"])
        keep = nms(decoded[rows, column], scores[rows, column], settings["nms_iou"], settings["max_detections"])
        found += [(int(rows[i]), column) for i in keep]
    found.sort()  # of equal scores the first pair comes first
    roi, number = np.array(found, np.int64).reshape(-1, 2).T
    order = top_k(scores[roi, number], settings["max_detections"])
    roi, number = roi[order], number[order]
    return decoded[roi, number], scores[roi, number], (number + 1).astype(np.int32)


def detect(run: Run, images: np.ndarray, image_shape: tuple[int, int], settings: Mapping[str, Any]) -> Arrays:
    """The whole model: boxes (m, 4), scores (m,), classes (m,), masks (m, 2M, 2M) probabilities over each box.

    Args:
        run: runs one of the graphs pyramid, boxes and masks.
        images: (1, H, W, 3) float32 RGB in 0..255.
        image_shape: height and width of the image inside the padding.
        settings: `host` of the metadata.
    """
    maps = run("pyramid", images)
    rois = proposals(maps, image_shape, settings)
    pooled = roi_align(maps, rois, settings["rpn_post_nms_top_k"], settings["box_pool_size"], settings)
    heads = run("boxes", pooled)
    boxes, scores, classes = detections(heads["scores"], heads["deltas"], rois, image_shape, settings)
    masks = np.zeros((0, 2 * settings["mask_pool_size"], 2 * settings["mask_pool_size"]), np.float32)
    if len(boxes):
        pooled = roi_align(maps, boxes, settings["max_detections"], settings["mask_pool_size"], settings)
        masks = run("masks", pooled)["masks"][np.arange(len(boxes)), :, :, classes]
    return {"boxes": boxes, "scores": scores, "classes": classes, "masks": masks}
