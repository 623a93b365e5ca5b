"""The box head: classes and box offsets of each RoI (Fast R-CNN; FPN, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from kmaskrcnn.config import ModelConfig
from kmaskrcnn.layers import initializers
from kmaskrcnn.layers.stacks import build_convs, build_fcs, conv_stack, fc_stack, run_convs
from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops import losses as loss_ops
from kmaskrcnn.ops import matching, sampling
from kmaskrcnn.ops.nms import multiclass_nms
from kmaskrcnn.ops.tensor import Tensor


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class BoxHead(keras.layers.Layer):
    """Optional 3x3 convolutions, then fully connected layers, then the class logits and the box offsets.

    Call with pooled features (K, S, S, C); returns class logits (K, num_classes + 1), of which 0 is the background,
    and deltas (K, num_classes + 1, 4), both float32. Class-agnostic, the deltas are (K, 1, 4). In training,
    `valid` (K,) says which rows are RoIs and not padding; batch normalization takes the statistics of those.

    Args:
        num_classes: object classes, background not counted.
        conv_channels: widths of the 3x3 convolutions; (256,) * 4 with one fully connected layer is 4conv1fc.
        fc_channels: widths of the fully connected layers.
        norm: normalization after the convolutions, which then have no bias.
        class_agnostic: one set of offsets for all classes.
    """

    def __init__(
        self,
        num_classes: int,
        conv_channels: Sequence[int] = (),
        fc_channels: Sequence[int] = (1024, 1024),
        norm: str = "none",
        class_agnostic: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_classes, self.norm, self.class_agnostic = num_classes, norm, class_agnostic
        self.num_boxes = 1 if class_agnostic else num_classes + 1
        self.conv_channels, self.fc_channels = tuple(conv_channels), tuple(fc_channels)
        policy = self.dtype_policy
        self.convs, self.norms = conv_stack(self.conv_channels, norm, policy)
        self.fcs = fc_stack(self.fc_channels, policy)
        self.class_logits = keras.layers.Dense(
            num_classes + 1,
            kernel_initializer=initializers.normal(0.01),
            dtype=policy,
            name="class_logits",
        )
        self.deltas = keras.layers.Dense(
            self.num_boxes * 4,
            kernel_initializer=initializers.normal(0.001),
            dtype=policy,
            name="deltas",
        )

    def build(self, input_shape: tuple) -> None:
        height, width, channels = build_convs(self.convs, self.norms, input_shape)
        units = build_fcs(self.fcs, height * width * channels)
        self.class_logits.build((None, units))
        self.deltas.build((None, units))
        self.built = True

    def call(
        self, features: Tensor, training: bool | None = None, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        features = run_convs(self.convs, self.norms, features, training, valid)
        _, height, width, channels = features.shape
        x = ops.reshape(features, (-1, height * width * channels))  # (K, S, S, C) -> (K, S * S * C)
        for fc in self.fcs:
            x = fc(x)
        deltas = ops.reshape(self.deltas(x), (-1, self.num_boxes, 4))  # (K, (C + 1) * 4) -> (K, C + 1, 4)
        return ops.cast(self.class_logits(x), "float32"), ops.cast(deltas, "float32")

    def get_config(self) -> dict:
        config = {
            "num_classes": self.num_classes,
            "conv_channels": self.conv_channels,
            "fc_channels": self.fc_channels,
            "norm": self.norm,
            "class_agnostic": self.class_agnostic,
        }
        return {**super().get_config(), **config}


class RoISample(NamedTuple):
    """The RoIs of a training step, positives first. R = roi_batch_size.

    boxes (B, R, 4) yxyx pixels; classes (B, R) int32, 0 the background; matched (B, R) int32 rows of the ground
    truth; is_positive and is_valid (B, R) bool.
    """

    boxes: Tensor
    classes: Tensor
    matched: Tensor
    is_positive: Tensor
    is_valid: Tensor


def sample_rois(
    proposals: Tensor,
    proposal_scores: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    gt_valid: Tensor,
    gt_crowd: Tensor,
    config: ModelConfig,
    seeds: Tensor,
) -> RoISample:
    """Sample proposals, the ground truth appended to them, for the box and mask heads (Fast R-CNN, section 2.3).

    Args:
        proposals: (B, P, 4) yxyx pixels.
        proposal_scores: (B, P), -inf where a row holds no proposal.
        gt_boxes, gt_classes, gt_valid, gt_crowd: (B, N, 4), (B, N), (B, N), (B, N).
        config: roi_batch_size, roi_positive_fraction, roi_positive_iou.
        seeds: (B,) integers, of the draw of each image.
    """
    appended = ops.logical_and(gt_valid, ops.logical_not(gt_crowd))
    boxes = ops.concatenate([proposals, gt_boxes], axis=1)
    exists = ops.concatenate([proposal_scores > -float("inf"), appended], axis=1)
    matches = matching.match(boxes, gt_boxes, gt_valid, gt_crowd, config.roi_positive_iou, config.roi_positive_iou)
    indices, is_positive, is_valid = sampling.sample(
        ops.logical_and(matches >= 0, exists),
        ops.logical_and(matches == matching.NEGATIVE, exists),
        config.roi_batch_size,
        config.roi_positive_fraction,
        seeds,
    )
    matched = ops.maximum(box_ops.take_rows(matches, indices), 0)
    classes = ops.where(is_positive, box_ops.take_rows(gt_classes, matched), 0)
    return RoISample(
        boxes=box_ops.take_rows(boxes, indices),
        classes=classes,
        matched=matched,
        is_positive=is_positive,
        is_valid=is_valid,
    )


def box_head_losses(
    logits: Tensor,
    deltas: Tensor,
    sample: RoISample,
    gt_boxes: Tensor,
    normalizer: Tensor,
    config: ModelConfig,
    weights: tuple[float, ...] = box_ops.BOX_HEAD_CODING_WEIGHTS,
) -> dict[str, Tensor]:
    """Scalars `class` and `box` (Fast R-CNN, equation 1).

    Args:
        logits: (B, R, C + 1).
        deltas: (B, R, C + 1, 4), or (B, R, 1, 4) where they are class-agnostic.
        sample: the RoIs.
        gt_boxes: (B, N, 4) yxyx pixels.
        normalizer: what both sums are divided by, the number of all sampled RoIs.
        config: box_loss, box_loss_beta, box_loss_weight.
        weights: of the coding of the deltas.
    """
    valid = ops.cast(sample.is_valid, "float32")
    positive = ops.cast(sample.is_positive, "float32")
    class_loss = ops.sum(loss_ops.softmax_cross_entropy(logits, sample.classes) * valid) / normalizer
    targets = box_ops.take_rows(gt_boxes, sample.matched)  # (B, R, 4)
    own = _own_deltas(deltas, sample.classes)
    box = loss_ops.box_regression(own, sample.boxes, targets, weights, config.box_loss, config.box_loss_beta)
    box_loss = ops.sum(box * positive[..., None]) / normalizer
    return {"class": class_loss, "box": config.box_loss_weight * box_loss}


def predicted_boxes(deltas: Tensor, sample: RoISample) -> Tensor:
    """The boxes (B, R, 4) that the box head makes of the RoIs of their own classes, not clipped, without a gradient.

    Detectron2's TRAIN_ON_PRED_BOXES: the mask head is trained on boxes as it sees them in inference.

    Args:
        deltas: (B, R, C + 1, 4), or (B, R, 1, 4) where they are class-agnostic.
        sample: the RoIs.
    """
    own = _own_deltas(deltas, sample.classes)
    return ops.stop_gradient(box_ops.decode(own, sample.boxes, box_ops.BOX_HEAD_CODING_WEIGHTS))


def _own_deltas(deltas: Tensor, classes: Tensor) -> Tensor:
    """Of deltas (B, R, C + 1, 4) those of each RoI's class (B, R), or the only ones of (B, R, 1, 4) -> (B, R, 4)."""
    if deltas.shape[2] == 1:
        return deltas[:, :, 0]
    # (B, R, C + 1, 4) -> (B * R, C + 1, 4) -> (B * R, 1, 4) -> (B, R, 4)
    own = box_ops.take_rows(ops.reshape(deltas, (-1, *deltas.shape[2:])), ops.reshape(classes, (-1, 1)))
    return ops.reshape(own, (*ops.shape(classes), 4))


def detect_boxes(
    logits: Tensor,
    deltas: Tensor,
    proposals: Tensor,
    proposal_scores: Tensor,
    image_shapes: Tensor,
    config: ModelConfig,
    static_shapes: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Detections from all (RoI, class) pairs: threshold, NMS of each class, the best over all classes.

    Args:
        logits, deltas: (B, P, C + 1), (B, P, C + 1, 4) or (B, P, 1, 4), of the box head.
        proposals, proposal_scores: (B, P, 4) yxyx pixels, (B, P) with -inf where a row is empty.
        image_shapes: (B, 2), height and width that boxes are clipped to.
        config: score_threshold, nms_iou, soft_nms_sigma, box_min_size, class_agnostic_nms, max_detections.
        static_shapes: as for `multiclass_nms`.

    Returns:
        boxes (B, D, 4), scores (B, D), classes (B, D) with 0 in empty rows, number of detections (B,).
    """
    scores = ops.softmax(logits, axis=-1)[..., 1:]
    scores = ops.where(proposal_scores[..., None] > -float("inf"), scores, 0.0)
    deltas = deltas if deltas.shape[2] == 1 else deltas[:, :, 1:]
    boxes = box_ops.decode(deltas, proposals[:, :, None], box_ops.BOX_HEAD_CODING_WEIGHTS)
    boxes = box_ops.clip(boxes, image_shapes)
    if config.box_min_size:
        scores = ops.where(ops.all(box_ops.sides(boxes) >= config.box_min_size, axis=-1), scores, 0.0)
    if boxes.shape[2] < scores.shape[2]:
        boxes = ops.repeat(boxes, scores.shape[2], axis=2)  # (B, P, 1, 4) -> (B, P, C, 4)
    boxes, scores, classes, _, count = multiclass_nms(
        boxes,
        scores,
        config.score_threshold,
        config.nms_iou,
        config.max_detections,
        static_shapes=static_shapes,
        class_agnostic=config.class_agnostic_nms,
        soft_sigma=config.soft_nms_sigma,
    )
    return boxes, scores, classes, count
