"""The region proposal network, run on each level by itself (Ren et al. 2015; FPN, section 4.1)."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from kmaskrcnn.config import ModelConfig
from kmaskrcnn.layers import initializers
from kmaskrcnn.ops import anchors as anchor_ops
from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops import losses as loss_ops
from kmaskrcnn.ops import matching, sampling
from kmaskrcnn.ops.nms import batched_nms
from kmaskrcnn.ops.sparse_gradient import convolve_twice
from kmaskrcnn.ops.tensor import Tensor

LEVELS = ("P2", "P3", "P4", "P5", "P6")
STRIDES = (4, 8, 16, 32, 64)


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class RPNHead(keras.layers.Layer):
    """3x3 convolutions with ReLU, then 1x1 convolutions to the objectness and the box offsets of each anchor.

    Call with one level's features (B, H, W, C); returns logits (B, H * W * A) and deltas (B, H * W * A, 4), both
    float32. The same weights serve all levels.

    Args:
        channels: width of the 3x3 convolutions.
        num_anchors: anchors of a cell, A.
        conv_layers: number of 3x3 convolutions.
    """

    def __init__(self, channels: int, num_anchors: int, conv_layers: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.channels, self.num_anchors, self.conv_layers = channels, num_anchors, conv_layers

        def conv(filters: int, size: int, name: str, **options: Any) -> keras.layers.Conv2D:
            return keras.layers.Conv2D(
                filters,
                size,
                padding="same",
                kernel_initializer=initializers.normal(0.01),
                dtype=self.dtype_policy,
                name=name,
                **options,
            )

        self.convs = [conv(channels, 3, f"conv{i + 1}", activation="relu") for i in range(conv_layers)]
        self.objectness = conv(num_anchors, 1, "objectness")
        self.deltas = conv(num_anchors * 4, 1, "deltas")

    def build(self, input_shape: tuple) -> None:
        for layer in self.convs:
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], self.channels)
        self.objectness.build(input_shape)
        self.deltas.build(input_shape)
        self.built = True

    def call(self, features: Tensor, training: bool | None = None) -> tuple[Tensor, Tensor]:
        *first, last = self.convs
        for conv in first:
            features = conv(features)
        # Both 1x1 convolutions read the map in one pass.
        heads, anchors = (self.objectness, self.deltas), self.num_anchors
        kernel = ops.concatenate([ops.convert_to_tensor(head.kernel) for head in heads], axis=-1)
        bias = ops.concatenate([ops.convert_to_tensor(head.bias) for head in heads], axis=0)
        if training and keras.backend.backend() == "tensorflow":
            last_kernel, last_bias = (ops.convert_to_tensor(w) for w in (last.kernel, last.bias))
            both = convolve_twice(features, last_kernel, last_bias, kernel, bias)
        else:
            both = ops.add(ops.conv(last(features), kernel, padding="same"), bias)
        both = ops.cast(both, "float32")
        logits, deltas = both[..., :anchors], both[..., anchors:]
        batch = ops.shape(features)[0]
        cells = -1 if None in features.shape[1:3] else features.shape[1] * features.shape[2] * self.num_anchors
        logits = ops.reshape(logits, (batch, cells))  # (B, H, W, A) -> (B, H * W * A)
        return logits, ops.reshape(deltas, (batch, cells, 4))  # (B, H, W, A * 4) -> (B, H * W * A, 4)

    def get_config(self) -> dict:
        config = {"channels": self.channels, "num_anchors": self.num_anchors, "conv_layers": self.conv_layers}
        return {**super().get_config(), **config}


def level_anchors(features: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The anchors (H * W * A, 4) of each level, in pixels of the network's image."""
    result = {}
    sides = [STRIDES[0] * side for side in ops.shape(features["P2"])[1:3]]
    stride: int | tuple[Tensor, Tensor]
    for level, stride, size in zip(LEVELS, STRIDES, config.anchor_sizes, strict=True):
        cell = anchor_ops.cell_anchors(size, config.anchor_aspect_ratios, config.round_anchors)
        height, width = ops.shape(features[level])[1:3]
        if config.fit_anchor_strides:
            stride = (sides[0] // height, sides[1] // width)
        result[level] = anchor_ops.grid_anchors(height, width, stride, cell)
    return result


def _top(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of scores (B, N) and their indices; where N < k, -inf with index N - 1 fills up."""
    count = scores.shape[1]
    if count is not None:
        k = min(k, count)
        return ops.top_k(scores, k)
    last = ops.shape(scores)[1] - 1
    values, indices = ops.top_k(ops.pad(scores, ((0, 0), (0, k)), constant_values=-float("inf")), k)
    return values, ops.minimum(indices, last)


def num_proposals(config: ModelConfig, training: bool = False) -> tuple[int, int]:
    """Proposals kept on each level before NMS, and over all levels after it.

    Neighboring proposals become one detection: with no more of them than there are objects, a crowded image would lose
    objects whatever max_detections says, so in inference there are at least twice as many as detections.
    """
    if training:
        return config.rpn_pre_nms_top_k_train, config.rpn_post_nms_top_k_train
    least = 2 * config.max_detections
    return max(config.rpn_pre_nms_top_k, least), max(config.rpn_post_nms_top_k, least)


def propose(
    outputs: dict[str, tuple[Tensor, Tensor]],
    anchors: dict[str, Tensor],
    image_shapes: Tensor,
    config: ModelConfig,
    training: bool,
) -> tuple[Tensor, Tensor]:
    """Proposals: on each level the top k by objectness, decoded, clipped, NMS; then the best over all levels.

    Args:
        outputs: what `RPNHead` returned for each level.
        anchors: of each level, (N, 4) yxyx pixels.
        image_shapes: (B, 2), height and width that proposals are clipped to.
        config: rpn_nms_iou, rpn_min_size, and what `num_proposals` looks at.
        training: choose the *_train numbers.

    Returns:
        boxes (B, P, 4) yxyx pixels by decreasing score, and their objectness logits (B, P), -inf where a row is empty.
    """
    pre_nms, post_nms = num_proposals(config, training)
    all_boxes, all_scores = [], []
    for level, (logits, deltas) in outputs.items():
        scores, indices = _top(logits, pre_nms)
        deltas = box_ops.take_rows(deltas, indices)
        boxes = box_ops.decode(deltas, ops.take(anchors[level], indices, axis=0))
        boxes = box_ops.clip(boxes, image_shapes)
        large = ops.all(box_ops.sides(boxes) > config.rpn_min_size, axis=-1)
        scores = ops.where(large, scores, -float("inf"))
        keep, valid = batched_nms(boxes, scores, min(boxes.shape[1], post_nms), config.rpn_nms_iou)
        kept_scores = box_ops.take_rows(scores, keep)
        kept = ops.arange(keep.shape[1], dtype="int32") < valid[:, None]
        all_boxes.append(box_ops.take_rows(boxes, keep))
        all_scores.append(ops.where(kept, kept_scores, -float("inf")))
    boxes, scores = ops.concatenate(all_boxes, axis=1), ops.concatenate(all_scores, axis=1)
    scores, indices = ops.top_k(scores, min(post_nms, scores.shape[1]))
    boxes = box_ops.take_rows(boxes, indices)
    boxes = ops.where(scores[..., None] > -float("inf"), boxes, 0.0)
    return ops.stop_gradient(boxes), ops.stop_gradient(scores)


class AnchorSample(NamedTuple):
    """The anchors of a training step. S = rpn_batch_size.

    indices (B, S) int32 rows of the anchors of all levels; matched (B, S) int32 rows of the ground truth; is_positive
    and is_valid (B, S) bool.
    """

    indices: Tensor
    matched: Tensor
    is_positive: Tensor
    is_valid: Tensor


def sample_anchors(
    anchors: dict[str, Tensor],
    gt_boxes: Tensor,
    gt_valid: Tensor,
    gt_crowd: Tensor,
    config: ModelConfig,
    seeds: Tensor,
) -> AnchorSample:
    """A balanced sample of the anchors of each image (Ren et al. 2015, section 3.1.3).

    Args:
        anchors: of each level, (N, 4) yxyx pixels.
        gt_boxes, gt_valid, gt_crowd: (B, M, 4), (B, M), (B, M).
        config: rpn_positive_iou, rpn_negative_iou, rpn_batch_size, rpn_positive_fraction.
        seeds: (B,) integers, of the draw of each image.
    """
    boxes = ops.concatenate(list(anchors.values()), axis=0)
    matches = matching.match(
        boxes, gt_boxes, gt_valid, gt_crowd, config.rpn_positive_iou, config.rpn_negative_iou, keep_low_quality=True
    )
    indices, is_positive, is_valid = sampling.sample(
        matches >= 0, matches == matching.NEGATIVE, config.rpn_batch_size, config.rpn_positive_fraction, seeds
    )
    matched = ops.maximum(box_ops.take_rows(matches, indices), 0)
    return AnchorSample(indices, matched, is_positive, is_valid)


def rpn_losses(
    outputs: dict[str, tuple[Tensor, Tensor]],
    anchors: dict[str, Tensor],
    sample: AnchorSample,
    gt_boxes: Tensor,
    normalizer: Tensor,
    config: ModelConfig,
) -> dict[str, Tensor]:
    """Objectness and box losses over the sampled anchors; scalars `rpn_objectness` and `rpn_box`.

    Args:
        outputs: what `RPNHead` returned for each level.
        anchors: of each level, (N, 4) yxyx pixels.
        sample: the anchors.
        gt_boxes: (B, M, 4) yxyx pixels.
        normalizer: what both sums are divided by.
        config: rpn_box_loss, rpn_box_loss_beta, rpn_box_loss_weight.
    """
    logits = ops.concatenate([outputs[level][0] for level in outputs], axis=1)  # (B, N)
    deltas = ops.concatenate([outputs[level][1] for level in outputs], axis=1)  # (B, N, 4)
    boxes = ops.concatenate([anchors[level] for level in outputs], axis=0)  # (N, 4)
    positive, valid = ops.cast(sample.is_positive, "float32"), ops.cast(sample.is_valid, "float32")
    sampled_logits = box_ops.take_rows(logits, sample.indices)
    objectness = ops.sum(loss_ops.binary_cross_entropy(sampled_logits, positive) * valid)

    box = loss_ops.box_regression(
        box_ops.take_rows(deltas, sample.indices),
        ops.take(boxes, sample.indices, axis=0),
        box_ops.take_rows(gt_boxes, sample.matched),
        box_ops.RPN_CODING_WEIGHTS,
        config.rpn_box_loss,
        config.rpn_box_loss_beta,
    )
    box_loss = ops.sum(box * positive[..., None]) / normalizer
    return {"rpn_objectness": objectness / normalizer, "rpn_box": config.rpn_box_loss_weight * box_loss}
