"""The MaskIoU head: how well a predicted mask fits its object (Mask Scoring R-CNN, Huang et al. 2019)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmaskrcnn.layers import initializers
from kmaskrcnn.layers.stacks import build_convs, build_fcs, conv_stack, fc_stack, run_convs
from kmaskrcnn.ops.mask_targets import share_inside
from kmaskrcnn.ops.tensor import Tensor

_CONVS, _FCS = 4, 2
# Of the squared error, as in mmdetection.
_LOSS_WEIGHT = 0.5
# Keeps the whole area of an object finite where nothing of it is inside the RoI; as in mmdetection.
_EPSILON = 1e-7


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class MaskIoUHead(keras.layers.Layer):
    """Four 3x3 convolutions, the last of stride 2, two fully connected layers, and one IoU a class, all with ReLU.

    Call with pooled features (K, S, S, C), of the mask head's RoIAlign, the mask probabilities (K, 2 * S, 2 * S) of
    the class of each RoI, and that class (K,) in 0..num_classes; returns the IoU (K,) float32 that is predicted of the
    mask and the whole object, not bounded to 0..1. `valid` (K,) is as for `BoxHead`.

    The published head is as wide as the mask head and the box head beside it, 256 and 1024. `MaskRCNN` gives it the
    last of mask_conv_channels and of box_fc_channels, so that it is as published by default and small where the other
    heads are. The convolutions have the norm of the other heads; the published head has none.

    Args:
        num_classes: object classes, background not counted (its output, column 0, is there as in the other heads).
        conv_channels: width of the four convolutions.
        fc_channels: width of the two fully connected layers.
        norm: normalization after the convolutions, which then have no bias.
        class_agnostic: one IoU for all classes, for masks that are class-agnostic too.
    """

    def __init__(
        self,
        num_classes: int,
        conv_channels: int = 256,
        fc_channels: int = 1024,
        norm: str = "none",
        class_agnostic: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._settings = {
            "num_classes": num_classes,
            "conv_channels": conv_channels,
            "fc_channels": fc_channels,
            "norm": norm,
            "class_agnostic": class_agnostic,
        }
        self.class_agnostic, policy = class_agnostic, self.dtype_policy
        self.convs, self.norms = conv_stack([conv_channels] * _CONVS, norm, policy, last_stride=2)
        self.fcs = fc_stack([fc_channels] * _FCS, policy)
        self.ious = keras.layers.Dense(
            1 if class_agnostic else num_classes + 1,
            kernel_initializer=initializers.normal(0.01),
            dtype=policy,
            name="ious",
        )

    def build(self, input_shape: tuple) -> None:
        _, height, width, channels = input_shape
        with_mask = (None, height, width, channels + 1)
        height, width, channels = build_convs(self.convs, self.norms, with_mask)
        units = build_fcs(self.fcs, height * width * channels)
        self.ious.build((None, units))
        self.built = True

    def call(
        self,
        features: Tensor,
        masks: Tensor,
        classes: Tensor,
        training: bool | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        masks = ops.max_pool(ops.cast(masks, features.dtype)[..., None], 2, 2)  # (K, 2S, 2S) -> (K, S, S, 1)
        x = ops.concatenate([features, masks], axis=-1)
        x = run_convs(self.convs, self.norms, x, training, valid)
        _, height, width, channels = x.shape
        x = ops.reshape(x, (-1, height * width * channels))  # (K, S / 2, S / 2, C) -> (K, units)
        for fc in self.fcs:
            x = fc(x)
        ious = ops.cast(self.ious(x), "float32")
        return ious[:, 0] if self.class_agnostic else ops.take_along_axis(ious, classes[:, None], axis=-1)[:, 0]

    def get_config(self) -> dict:
        return {**super().get_config(), **self._settings}


def mask_iou_targets(logits: Tensor, targets: Tensor, masks: Tensor, frames: Tensor, rois: Tensor) -> Tensor:
    """IoU of each predicted mask with the whole object, of which the RoI may show a part only.

    As in mmdetection: the mask and its target, both thresholded at one half, are compared cell by cell in the RoI, and
    the object's whole area, in cells, is that of the target divided by the share of the object in the RoI. That
    share is of areas here, without rounding the RoI to whole pixels.

    Args:
        logits: (K, M, M), of the mask head.
        targets: (K, M, M) in 0..1, as for its loss.
        masks, frames, rois: the objects (K, m, m), their frames (K, 4) and the RoIs (K, 4), as for `mask_targets`.

    Returns:
        (K,) float32 in 0..1, without a gradient; 0 where there is neither mask nor object.
    """
    predicted = ops.cast(logits > 0.0, "float32")
    targets = ops.cast(targets >= 0.5, "float32")
    overlap, own, inside = (ops.sum(x, axis=(1, 2)) for x in (predicted * targets, predicted, targets))
    union = own + inside / (share_inside(masks, frames, rois) + _EPSILON) - overlap
    return ops.stop_gradient(ops.where(overlap > 0.0, overlap / ops.maximum(union, 1.0), 0.0))


def mask_iou_loss(ious: Tensor, targets: Tensor, weights: Tensor, normalizer: Tensor) -> Tensor:
    """Half the squared error over the RoIs whose mask meets its object, a scalar.

    mmdetection divides by the number of these RoIs, which is known only after the network has run; this divides by that
    of all RoIs of the mask head, as the mask loss does, so that replicas and parts of a batch add up to the whole.

    Args:
        ious: (K,), of the head.
        targets: (K,), of `mask_iou_targets`.
        weights: (K,), 0 in rows that hold no RoI.
        normalizer: what the sum is divided by.
    """
    counted = ops.where(targets > 0.0, weights, 0.0)
    return _LOSS_WEIGHT * ops.sum(ops.square(ious - targets) * counted) / normalizer
