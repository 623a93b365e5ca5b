"""Cascade R-CNN: box heads in a row, each trained for the boxes of the one before (Cai & Vasconcelos 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kmaskrcnn.config import ModelConfig
from kmaskrcnn.layers.box_head import BoxHead, RoISample, box_head_losses
from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops import matching
from kmaskrcnn.ops.tensor import Tensor

# A box head and boxes (B, R, 4) -> logits (B, R, C + 1), deltas (B, R, 1, 4).
Run = Callable[[BoxHead, Tensor], tuple[Tensor, Tensor]]


def coding_weights(stage: int) -> tuple[float, ...]:
    """Of the box offsets of a stage, from 1 on: each stage moves boxes by less than the one before."""
    return tuple(stage * weight for weight in box_ops.BOX_HEAD_CODING_WEIGHTS)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """x, whose gradient is multiplied."""
    constant = ops.stop_gradient(x)
    return constant + scale * (x - constant)


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class Cascade(keras.layers.Layer):
    """The class-agnostic box heads of the stages 2, 3, ...; stage 1 is the box head of every Mask R-CNN.

    Args:
        num_stages: stages, the first one included.
        num_classes, conv_channels, fc_channels, norm: as for `BoxHead`.
    """

    def __init__(
        self,
        num_stages: int,
        num_classes: int,
        conv_channels: Sequence[int] = (),
        fc_channels: Sequence[int] = (1024, 1024),
        norm: str = "none",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._settings = {
            "num_stages": num_stages,
            "num_classes": num_classes,
            "conv_channels": tuple(conv_channels),
            "fc_channels": tuple(fc_channels),
            "norm": norm,
        }
        self.heads = [
            BoxHead(num_classes, conv_channels, fc_channels, norm, True, dtype=self.dtype_policy, name=f"stage{stage}")
            for stage in range(2, num_stages + 1)
        ]

    def build(self, input_shape: tuple) -> None:
        for head in self.heads:
            head.build(input_shape)
        self.built = True

    def stage_losses(
        self,
        run: Run,
        deltas: Tensor,
        sample: RoISample,
        truth: tuple[Tensor, Tensor, Tensor, Tensor],
        image_shapes: Tensor,
        normalizer: Tensor,
        config: ModelConfig,
    ) -> dict[str, Tensor]:
        """Scalars `class_stage2`, `box_stage2`, `class_stage3` and so on.

        Each stage takes the boxes that the one before made of all RoIs of the sample, and its own IoU says which of
        them are positives now; no ground truth is added to them.

        Args:
            run: a box head on pooled boxes.
            deltas: (B, R, 1, 4), of stage 1 on the sample.
            sample: the RoIs of stage 1.
            truth: gt_boxes (B, N, 4), gt_classes, gt_valid, gt_crowd (B, N).
            image_shapes: (B, 2), height and width that boxes are clipped to.
            normalizer: what the sums are divided by, the number of RoIs of the sample; Detectron2 does not count those
                that a stage has moved out of the image.
            config: cascade_ious, box_loss, box_loss_beta, box_loss_weight.
        """
        losses, boxes = {}, sample.boxes
        for stage, (head, iou) in enumerate(zip(self.heads, config.cascade_ious[1:], strict=True), 2):
            boxes = _refine(deltas, boxes, stage - 1, image_shapes)
            labeled = _label(boxes, sample.is_valid, *truth, iou)
            logits, deltas = run(head, boxes)
            found = box_head_losses(logits, deltas, labeled, truth[0], normalizer, config, coding_weights(stage))
            losses |= {f"{name}_stage{stage}": value for name, value in found.items()}
        return losses

    def refine(
        self, run: Run, logits: Tensor, deltas: Tensor, boxes: Tensor, image_shapes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What all stages say, as if one box head had.

        Args:
            run: a box head on pooled boxes.
            logits, deltas: (B, P, C + 1), (B, P, 1, 4), of stage 1.
            boxes: (B, P, 4), that it saw.
            image_shapes: (B, 2), height and width that boxes are clipped to.

        Returns:
            logits (B, P, C + 1), whose softmax is the mean over the stages of theirs; deltas (B, P, 1, 4) of the last
            stage, in the coding of the first, and the boxes (B, P, 4) that they move.
        """
        every = [ops.log_softmax(logits, axis=-1)]
        for stage, head in enumerate(self.heads, 2):
            boxes = _refine(deltas, boxes, stage - 1, image_shapes)
            logits, deltas = run(head, boxes)
            every.append(ops.log_softmax(logits, axis=-1))
        return ops.logsumexp(ops.stack(every, axis=0), axis=0), deltas / (len(self.heads) + 1), boxes

    def get_config(self) -> dict:
        return {**super().get_config(), **self._settings}


def _refine(deltas: Tensor, boxes: Tensor, stage: int, image_shapes: Tensor) -> Tensor:
    """The boxes (B, R, 4) that a stage makes of boxes, without a gradient."""
    boxes = box_ops.decode(deltas[:, :, 0], boxes, coding_weights(stage))
    return ops.stop_gradient(box_ops.clip(boxes, image_shapes))


def _label(
    boxes: Tensor,
    exists: Tensor,
    gt_boxes: Tensor,
    gt_classes: Tensor,
    gt_valid: Tensor,
    gt_crowd: Tensor,
    iou: float,
) -> RoISample:
    """Which of the boxes (B, R, 4) are positives at an IoU; those that do not exist or are empty are not valid."""
    matches = matching.match(boxes, gt_boxes, gt_valid, gt_crowd, iou, iou)
    exists = ops.logical_and(exists, ops.all(box_ops.sides(boxes) > 0.0, axis=-1))
    is_positive = ops.logical_and(exists, matches >= 0)
    matched = ops.maximum(matches, 0)
    classes = ops.where(is_positive, box_ops.take_rows(gt_classes, matched), 0)
    return RoISample(boxes, classes, matched, is_positive, ops.logical_and(exists, matches != matching.IGNORED))
