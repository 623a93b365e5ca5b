"""Test-time augmentation: one image predicted mirrored, in quarter turns and at several sizes.

Boxes of all views are brought together class by class, with class_agnostic_nms all at once: those with an IoU above
nms_iou are one object, whose box is their mean weighted by the scores and whose score is the mean over all views, a
view that missed it counting 0; of several classes the object's is that with the highest score. The mask head then runs
on the objects' boxes in every view, and its probabilities are averaged, as are the IoUs that the MaskIoU head predicts.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import tensorflow as tf

from kmaskrcnn.config import Config, DataConfig
from kmaskrcnn.data.resize import pixel_dtype, prepare_image
from kmaskrcnn.model import MaskRCNN


@dataclasses.dataclass(frozen=True)
class _View:
    """How one view of an image is made: it is mirrored, then turned, then scaled; and what the network saw."""

    shape: tuple[int, int]  # height and width of the image
    mirrored: bool
    turns: int  # quarter turns, counterclockwise
    scales: np.ndarray  # (2,) network pixels a pixel of the turned image
    features: dict[str, tf.Tensor]

    def to_network(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) of the image in the network's pixels."""
        if self.mirrored:
            boxes = _mirror(boxes, self.shape[1])
        return _turn(boxes, self.shape, self.turns) * np.tile(self.scales, 2)

    def from_network(self, boxes: np.ndarray) -> np.ndarray:
        """The other way round."""
        height, width = self.shape
        turned = (width, height) if self.turns % 2 else (height, width)
        boxes = _turn(boxes / np.tile(self.scales, 2), turned, -self.turns)
        return _mirror(boxes, self.shape[1]) if self.mirrored else boxes

    def upright(self, masks: np.ndarray) -> np.ndarray:
        """Masks (N, M, M) of the view's boxes as those of the image's."""
        masks = np.rot90(masks, -self.turns, axes=(1, 2))
        return masks[:, :, ::-1] if self.mirrored else masks


def _mirror(boxes: np.ndarray, width: int) -> np.ndarray:
    y0, x0, y1, x1 = boxes.T
    return np.stack([y0, width - x1, y1, width - x0], axis=1)


def _turn(boxes: np.ndarray, shape: tuple[int, int], turns: int) -> np.ndarray:
    """Boxes (N, 4) of an image with this height and width after as many quarter turns of `np.rot90`."""
    for _ in range(turns % 4):
        y0, x0, y1, x1 = boxes.T
        boxes = np.stack([shape[1] - x1, y0, shape[1] - x0, y1], axis=1)
        shape = shape[::-1]
    return boxes


class AugmentedDetector:
    """Detections of an image from several views of it.

    Args:
        model: with its weights.
        config: tta_flip, tta_rotate90, tta_scales, and how images are resized.
    """

    def __init__(self, model: MaskRCNN, config: Config):
        self.model, self.config = model, config
        settings = config.evaluation
        self.scales = settings.tta_scales or (1.0,)
        self.mirrored = (False, True) if settings.tta_flip else (False,)
        self.turns = range(4) if settings.tta_rotate90 else range(1)
        images = tf.TensorSpec((1, None, None, 3), pixel_dtype(config.data.resize_method))
        features = {f"P{i}": tf.TensorSpec((1, None, None, model.config.fpn_channels), tf.float32) for i in range(2, 7)}
        boxes = tf.TensorSpec((None, 4), tf.float32)
        # One graph for every size of image.
        self._boxes = tf.function(self._find_boxes, [images, tf.TensorSpec((1, 2), tf.int32)], autograph=False)
        self._masks = tf.function(
            self._find_masks, [features, boxes, tf.TensorSpec((None,), tf.int32)], autograph=False
        )

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Detections of (H, W, 3) uint8, as of the model for one image but with boxes in the image's own pixels."""
        height, width = image.shape[:2]
        views, found = [], []
        for scale, mirrored, turns in itertools.product(self.scales, self.mirrored, self.turns):
            pixels = np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, turns))
            network_image, shape, scales = prepare_image(pixels, scaled_config(self.config.data, scale))
            boxes, scores, classes, features = self._boxes(network_image[None], shape[None])
            views.append(_View((height, width), mirrored, turns, scales, features))
            boxes = np.clip(views[-1].from_network(boxes.numpy()), 0, [height, width, height, width])
            found.append((boxes, scores.numpy(), classes.numpy()))
        settings = self.model.config
        boxes, scores, classes = merge_boxes(found, settings.nms_iou, settings.class_agnostic_nms)
        keep = np.flatnonzero(scores > settings.score_threshold)[: settings.max_detections]
        boxes, scores, classes = boxes[keep].astype(np.float32), scores[keep], classes[keep]
        seen = [self._view_masks(view, boxes, classes) for view in views]
        means = {name: np.mean([masks[name] for masks in seen], axis=0) for name in seen[0]}
        if "mask_ious" in means:
            means["mask_scores"] = scores * means.pop("mask_ious")
        count = np.int32(len(boxes))
        return {"boxes": boxes, "scores": scores, "classes": classes, **means, "num_detections": count}

    def _view_masks(self, view: _View, boxes: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
        found = self._masks(view.features, view.to_network(boxes).astype(np.float32), classes)
        arrays = {name: value.numpy() for name, value in found.items()}
        return arrays | {"masks": view.upright(arrays["masks"])}

    def _find_boxes(self, images: tf.Tensor, image_shapes: tf.Tensor) -> tuple[Any, ...]:
        """Boxes, scores and classes of one image, and the pyramid, float32."""
        model = self.model
        images, image_shapes = model.preprocess(images, image_shapes)
        features = model.pyramid(images)
        _, _, proposals, scores = model.propose(features, image_shapes)
        boxes, scores, classes, counts = model.find_boxes(features, proposals, scores, image_shapes)
        count = counts[0]
        features = {level: tf.cast(feature, tf.float32) for level, feature in features.items()}
        return boxes[0, :count], scores[0, :count], classes[0, :count], features

    def _find_masks(self, features: dict[str, tf.Tensor], boxes: tf.Tensor, classes: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `MaskRCNN.find_masks` finds in boxes (N, 4) of the network's pixels."""
        features = {level: tf.cast(feature, self.model.compute_dtype) for level, feature in features.items()}
        return self.model.find_masks(features, boxes, classes, tf.zeros_like(classes))


def scaled_config(config: DataConfig, factor: float) -> DataConfig:
    """The settings that bring an image to `factor` times the network's size."""
    sides = {name: max(round(getattr(config, name) * factor), 1) for name in ("min_size", "max_size")}
    return dataclasses.replace(config, native_scale=config.native_scale * factor, **sides)


def merge_boxes(
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]], iou: float, class_agnostic: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring the detections of several views together.

    Args:
        found: boxes (N, 4), scores (N,), classes (N,) of each view.
        iou: boxes of a class with a higher IoU than this, from different views, are one object.
        class_agnostic: so are boxes of different classes; the object's is that with the highest sum of scores.

    Returns:
        boxes (K, 4), scores (K,), classes (K,), by decreasing score.
    """
    boxes, scores, classes = (np.concatenate([view[i] for view in found]) for i in range(3))
    owners = np.repeat(np.arange(len(found)), [len(view[1]) for view in found])
    order = np.argsort(-scores, kind="stable")
    boxes, scores, classes, owners = boxes[order].astype(np.float64), scores[order], classes[order], owners[order]
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    free = np.ones(len(boxes), bool)
    merged: list[tuple[np.ndarray, float, int]] = []
    for i in range(len(boxes)):
        if not free[i]:
            continue
        size = np.minimum(boxes[i, 2:], boxes[:, 2:]) - np.maximum(boxes[i, :2], boxes[:, :2])
        shared = np.prod(np.maximum(size, 0), axis=1)
        alike = class_agnostic | (classes == classes[i])
        same = free & alike & (shared > iou * (areas + areas[i] - shared))
        same[i] = True
        free &= ~same
        # One detection a view, its best: the others are what NMS would have dropped.
        rows = np.flatnonzero(same)
        rows = rows[np.unique(owners[rows], return_index=True)[1]]
        weights = scores[rows].astype(np.float64)
        box = weights @ boxes[rows] / max(weights.sum(), 1e-12)
        votes = np.bincount(classes[rows], weights)
        merged.append((box, votes.max() / len(found), int(votes.argmax())))
    merged.sort(key=lambda row: -row[1])
    return (
        np.array([box for box, _, _ in merged], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in merged], np.float32),
        np.array([number for _, _, number in merged], np.int32),
    )
