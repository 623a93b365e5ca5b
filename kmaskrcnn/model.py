"""Mask R-CNN (He, Gkioxari, Dollar, Girshick 2017) on a feature pyramid (Lin et al. 2017)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kmaskrcnn import backbones, onednn
from kmaskrcnn.backbones.folding import fold_normalization
from kmaskrcnn.keras_interface import LOSSES, MASK_IOU_LOSS, MASK_POINT_LOSS, KerasInterface, over_replicas
from kmaskrcnn.layers.box_head import BoxHead, RoISample, box_head_losses, detect_boxes, predicted_boxes, sample_rois
from kmaskrcnn.layers.cascade import Cascade, scale_gradient
from kmaskrcnn.layers.fpn import FPN
from kmaskrcnn.layers.mask_head import MaskHead
from kmaskrcnn.layers.mask_iou_head import MaskIoUHead, mask_iou_loss, mask_iou_targets
from kmaskrcnn.layers.point_rend import PointRendMaskHead
from kmaskrcnn.layers.roi_align import RoIAlign
from kmaskrcnn.layers.rpn import AnchorSample, RPNHead, level_anchors, propose, rpn_losses, sample_anchors
from kmaskrcnn.ops import losses as loss_ops
from kmaskrcnn.ops.chunks import in_chunks
from kmaskrcnn.ops.mask_targets import mask_targets, point_targets
from kmaskrcnn.ops.sampling import flagged_rows, seeds_within
from kmaskrcnn.ops.tensor import Tensor

__all__ = ["LOSSES", "SIZE_MULTIPLE", "MaskRCNN"]


# Network sides are multiples of the stride of C5, so that every 2x upsampling of the FPN meets its lateral.
SIZE_MULTIPLE = 32
# In inference, RoIs that go through the box head and the mask head at a time where there may be more: at 256 channels
# one takes 0.3 and 2 MB on its way.
_BOXES_AT_ONCE, _MASKS_AT_ONCE = 1000, 200


@keras.saving.register_keras_serializable(package="kmaskrcnn")
class MaskRCNN(KerasInterface):
    """Mask R-CNN with a ResNet-FPN or a mobile FPN backbone.

    Inference: `model(images)` or `model({"images": ..., "image_shapes": ...})` returns detections; ground truth in the
    dict is ignored. Training: `model(batch, training=True)` on a batch that holds the ground truth returns the five
    losses by name, so that `model.compile(optimizer)` and `model.fit(dataset)` work on a dataset of such batches.

    Inputs (a dict, or the images alone):
        images: (B, H, W, 3) RGB in 0..255, uint8 or float, padded at the bottom and right.
        image_shapes: (B, 2) height and width of the part of each image that is not padding; default: all of it.
        boxes: (B, N, 4) ground truth, yxyx in pixels of `images`, continuous (pixel i covers [i, i + 1)).
        classes: (B, N) int32 in 1..num_classes; 0 marks a padded row.
        is_crowd: (B, N) bool; crowd regions are neither positives nor negatives.
        masks: (B, M, m, m) coverage of the cells of `mask_frames`, uint8 in 0..255, bool or float in 0..1, of the
            first M <= N rows; the others train the RPN and the box head alone.
        mask_frames: (B, M, 4) the yxyx rectangle in pixels of `images` that each mask tiles.
        sample_seeds: (B,) integers, of the random samples of each image; default: drawn.
        normalizers: (3,) what the sums of losses are divided by, as `counts_only` gives it; default: this batch's, over
            all replicas. For gradient accumulation.

    Detections (a dict): boxes (B, D, 4) yxyx pixels of `images`, scores (B, D), classes (B, D) int32 in
    1..num_classes and 0 in empty rows, masks (B, D, M, M) probabilities over each box, num_detections (B,); with
    mask_scoring also mask_scores (B, D), scores times the predicted IoU of each mask. Valid rows come first, by
    decreasing score.

    The keywords from num_classes to mask_paste are the fields of `kmaskrcnn.config.ModelConfig`, documented there
    and in docs/reference/settings.md.

    Args:
        seed: random seed of the samples of anchors and RoIs.
        name: as for every Keras model.
        dtype: as for every Keras model; it may be a policy such as "mixed_bfloat16". Box arithmetic and losses are
            float32 under every policy.

    Raises:
        ConfigError: an unknown or impossible setting, or a keras.json with channels_first or another floatx.
    """

    def _build_layers(self) -> None:
        config, policy = self.config, self.dtype_policy
        mean, std = backbones.pixel_statistics(config.backbone)
        self._mean, self._std = config.image_mean or mean, config.image_std or std
        self.backbone = backbones.build_backbone(
            config.backbone,
            norm=config.backbone_norm,
            stride_in_1x1=config.backbone_stride_in_1x1,
            stem_pool_padding=config.stem_pool_padding,
            frozen_stages=config.frozen_stages,
            dtype=policy,
        )
        # In a function, so that the weights are tracked once.
        folded = fold_normalization(self.backbone)
        self._run_backbone = lambda images, training: folded(images, training=training)
        self.fpn = FPN(config.fpn_channels, config.fpn_norm, dtype=policy, name="fpn")
        self.fpn.build({level: output.shape for level, output in self.backbone.output.items()})
        self.rpn_head = RPNHead(
            config.rpn_channels or config.fpn_channels,
            len(config.anchor_aspect_ratios),
            config.rpn_conv_layers,
            dtype=policy,
            name="rpn_head",
        )
        self.rpn_head.build((None, None, None, config.fpn_channels))
        pool = {
            "sampling_ratio": config.roi_sampling_ratio,
            "aligned": config.roi_aligned,
            "implementation": config.roi_align_implementation,
            "dtype": policy,
        }
        self.box_roi_align = RoIAlign(config.box_pool_size, name="box_roi_align", **pool)
        self.mask_roi_align = RoIAlign(config.mask_pool_size, name="mask_roi_align", **pool)
        head = (config.num_classes, config.box_conv_channels, config.box_fc_channels, config.head_norm)
        pooled = (None, config.box_pool_size, config.box_pool_size, config.fpn_channels)
        stages = len(config.cascade_ious)
        self.box_head = BoxHead(*head, config.box_class_agnostic or stages > 0, dtype=policy, name="box_head")
        self.box_head.build(pooled)
        self.cascade = Cascade(stages, *head, dtype=policy, name="cascade") if stages else None
        if self.cascade is not None:
            self.cascade.build(pooled)
        classes, last = config.num_classes, (config.head_norm, config.mask_class_agnostic)
        pooled = (None, config.mask_pool_size, config.mask_pool_size, config.fpn_channels)
        width = (config.fpn_channels, *config.mask_conv_channels)[-1]
        if config.mask_point_rend:
            widths = (config.mask_pool_size, width, config.mask_fc_channels, config.mask_point_channels)
            end = (config.mask_class_agnostic, config.mask_subdivisions)
            self.mask_head = PointRendMaskHead(classes, *widths, *end, dtype=policy, name="mask_head")
        else:
            self.mask_head = MaskHead(classes, config.mask_conv_channels, *last, dtype=policy, name="mask_head")
        self.mask_head.build(pooled)
        self.mask_iou_head = None
        if config.mask_scoring:
            units = (width, *config.box_fc_channels)[-1]
            self.mask_iou_head = MaskIoUHead(classes, width, units, *last, dtype=policy, name="mask_iou_head")
            self.mask_iou_head.build(pooled)
        self.built = True

    # The network

    def call(
        self, inputs: Mapping[str, Tensor] | Tensor, training: bool = False, counts_only: bool = False
    ) -> dict[str, Tensor] | Tensor:
        inputs = dict(inputs) if isinstance(inputs, Mapping) else {"images": inputs}
        if training and keras.backend.backend() == "tensorflow":
            onednn.check_trainable()
        images, image_shapes = self.preprocess(inputs["images"], inputs.get("image_shapes"), training)
        features = self.pyramid(images, training)
        rpn_outputs, anchors, proposals, scores = self.propose(features, image_shapes, training)
        if "boxes" not in inputs or not (training or self._in_evaluation):
            return self.detect(features, proposals, scores, image_shapes)

        gt_boxes, gt_classes, gt_crowd = self._ground_truth(inputs)
        gt_valid = gt_classes > 0
        seeds = self._sample_seeds(inputs)
        anchor_sample = sample_anchors(anchors, gt_boxes, gt_valid, gt_crowd, self.config, seeds)
        sample = sample_rois(proposals, scores, gt_boxes, gt_classes, gt_valid, gt_crowd, self.config, seeds + 1)
        counts = self._counts(anchor_sample, sample, inputs["masks"])
        if counts_only:
            return counts
        normalizers = inputs["normalizers"] if "normalizers" in inputs else over_replicas(counts)
        losses = rpn_losses(rpn_outputs, anchors, anchor_sample, gt_boxes, normalizers[0], self.config)
        run = functools.partial(self._run_box_head, features, training, valid=sample.is_valid)
        logits, deltas = run(self.box_head, sample.boxes)
        losses |= box_head_losses(logits, deltas, sample, gt_boxes, normalizers[1], self.config)
        if self.cascade is not None:
            truth = (gt_boxes, gt_classes, gt_valid, gt_crowd)
            losses |= self.cascade.stage_losses(run, deltas, sample, truth, image_shapes, normalizers[1], self.config)
        if self.config.mask_point_rend:
            sample = sample._replace(boxes=predicted_boxes(deltas, sample))
        return losses | self._mask_losses(features, sample, inputs, normalizers[2], seeds + 2, training)

    def pyramid(self, images: Tensor, training: bool = False) -> dict[str, Tensor]:
        """The maps P2..P6 of normalized images."""
        return self.fpn(self._run_backbone(images, training), training=training)

    def preprocess(self, images: Tensor, image_shapes: Tensor | None, training: bool = False) -> tuple[Tensor, Tensor]:
        """Normalized images with padding set to 0 and sides of multiples of 32, and their shapes (B, 2).

        In inference, padding beyond the next multiple of the largest image is cropped, so that neither the detections
        nor the time depend on how far images were padded; with static shapes it stays.
        """
        if image_shapes is not None and not (training or self.static_shapes):
            needed = ops.maximum(ops.max(ops.cast(image_shapes, "int32"), axis=0), 1)
            needed = -(-needed // SIZE_MULTIPLE) * SIZE_MULTIPLE
            images = images[:, : needed[0], : needed[1]]
        batch, height, width = ops.shape(images)[:3]
        mean, std = (ops.convert_to_tensor(value, "float32") for value in (self._mean, self._std))
        images = (ops.cast(images, "float32") - mean) / std
        if image_shapes is None:
            image_shapes = ops.cast(ops.tile(ops.stack([height, width])[None], (batch, 1)), "int32")
        else:
            image_shapes = ops.cast(image_shapes, "int32")
            inside_y = ops.arange(height, dtype="int32")[None, :] < image_shapes[:, :1]  # (B, H)
            inside_x = ops.arange(width, dtype="int32")[None, :] < image_shapes[:, 1:]  # (B, W)
            inside = ops.logical_and(inside_y[:, :, None], inside_x[:, None, :])
            images = ops.where(inside[..., None], images, 0.0)
        missing = [(-side) % SIZE_MULTIPLE for side in (height, width)]
        if any(not isinstance(side, int) or side for side in missing):
            images = ops.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
        return ops.cast(images, self.compute_dtype), image_shapes

    def propose(
        self, features: dict[str, Tensor], image_shapes: Tensor, training: bool = False
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor], Tensor, Tensor]:
        """What the RPN says of each level, its anchors, and the proposals (B, P, 4) with their scores (B, P)."""
        rpn_outputs = {level: self.rpn_head(feature, training=training) for level, feature in features.items()}
        anchors = level_anchors(features, self.config)
        return rpn_outputs, anchors, *propose(rpn_outputs, anchors, image_shapes, self.config, training)

    def detect(
        self, features: dict[str, Tensor], proposals: Tensor, scores: Tensor, image_shapes: Tensor
    ) -> dict[str, Tensor]:
        """Detections from the pyramid's features and the proposals (B, P, 4) with their scores (B, P)."""
        boxes, scores, classes, count = self.find_boxes(features, proposals, scores, image_shapes)
        valid = ops.arange(boxes.shape[1], dtype="int32")[None, :] < count[:, None]  # (B, D)
        if self.static_shapes:
            owners = ops.repeat(ops.arange(ops.shape(boxes)[0], dtype="int32"), boxes.shape[1])
            found = self.find_masks(features, ops.reshape(boxes, (-1, 4)), ops.reshape(classes, (-1,)), owners)
            # (B * D, M, M) -> (B, D, M, M)
            found = {name: ops.reshape(x, (-1, boxes.shape[1], *x.shape[1:])) for name, x in found.items()}
            found["masks"] = ops.where(valid[:, :, None, None], found["masks"], 0.0)
        else:
            rows, columns = (ops.cast(x, "int32") for x in ops.nonzero(valid))
            flat = rows * boxes.shape[1] + columns
            own_boxes = ops.take(ops.reshape(boxes, (-1, 4)), flat, axis=0)
            found = self.find_masks(features, own_boxes, ops.take(ops.reshape(classes, (-1,)), flat, axis=0), rows)
            total = ops.shape(boxes)[0] * boxes.shape[1]
            for name, value in found.items():  # (K, M, M) -> (B * D, M, M) -> (B, D, M, M)
                value = ops.scatter(flat[:, None], value, (total, *value.shape[1:]))
                found[name] = ops.reshape(value, (-1, boxes.shape[1], *value.shape[1:]))
        if self.mask_iou_head is not None:
            found["mask_scores"] = scores * found.pop("mask_ious")
        return {"boxes": boxes, "scores": scores, "classes": classes, **found, "num_detections": count}

    def find_boxes(
        self, features: dict[str, Tensor], proposals: Tensor, scores: Tensor, image_shapes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (B, D, 4), scores (B, D), classes (B, D) and their number (B,), as for `detect`."""
        run = functools.partial(self._run_box_head, features, False)
        logits, deltas = run(self.box_head, proposals)
        if self.cascade is not None:
            logits, deltas, proposals = self.cascade.refine(run, logits, deltas, proposals, image_shapes)
        return detect_boxes(logits, deltas, proposals, scores, image_shapes, self.config, self.static_shapes)

    def find_masks(
        self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor, batch_indices: Tensor
    ) -> dict[str, Tensor]:
        """Mask probabilities `masks` (K, M, M) over boxes (K, 4) of classes (K,) in the images batch_indices (K,).

        With mask_scoring there are `mask_ious` (K,) too, what the MaskIoU head predicts, in 0..1.
        """

        find, inputs = functools.partial(self._run_mask_heads, features), (boxes, classes, batch_indices)
        if self.config.max_detections <= _MASKS_AT_ONCE or self.static_shapes:
            return find(*inputs)
        side = self.mask_head.side if self.config.mask_point_rend else 2 * self.config.mask_pool_size
        signature = {"masks": keras.KerasTensor((side, side), "float32")}
        if self.mask_iou_head is not None:
            signature["mask_ious"] = keras.KerasTensor((), "float32")
        return in_chunks(find, inputs, _MASKS_AT_ONCE, signature)

    def _run_mask_heads(
        self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor, batch_indices: Tensor
    ) -> dict[str, Tensor]:
        if self.config.mask_point_rend:
            return {"masks": ops.sigmoid(self.mask_head(features, boxes, classes, batch_indices))}
        pooled = self.mask_roi_align.pool(features, boxes, batch_indices)
        masks = ops.sigmoid(self.mask_head(pooled, classes, training=False))
        if self.mask_iou_head is None:
            return {"masks": masks}
        ious = self.mask_iou_head(pooled, masks, classes, training=False)
        return {"masks": masks, "mask_ious": ops.clip(ious, 0.0, 1.0)}

    def _run_box_head(
        self,
        features: dict[str, Tensor],
        training: bool,
        head: BoxHead,
        boxes: Tensor,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if boxes.shape[1] > _BOXES_AT_ONCE and not (training or self.static_shapes):
            return self._box_head_in_chunks(features, head, boxes)
        pooled = self.box_roi_align(features, boxes)  # (B, R, S, S, C)
        if training and self.cascade is not None:  # all stages together teach the pyramid as much as one box head does
            pooled = scale_gradient(pooled, 1.0 / len(self.config.cascade_ious))
        rois = boxes.shape[1]
        pooled = ops.reshape(pooled, (-1, *pooled.shape[2:]))  # (B, R, S, S, C) -> (B * R, S, S, C)
        valid = None if valid is None else ops.reshape(valid, (-1,))  # (B, R) -> (B * R,)
        logits, deltas = head(pooled, training=training, valid=valid)
        logits = ops.reshape(logits, (-1, rois, logits.shape[-1]))  # (B * R, C + 1) -> (B, R, C + 1)
        return logits, ops.reshape(deltas, (-1, rois, *deltas.shape[1:]))  # (B * R, C + 1, 4) -> (B, R, C + 1, 4)

    def _box_head_in_chunks(self, features: dict[str, Tensor], head: BoxHead, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """`_run_box_head` in inference, in memory that does not grow with the number of RoIs (B, R, 4)."""

        def run(boxes: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
            return head(self.box_roi_align.pool(features, boxes, owners), training=False)

        batch, rois = ops.shape(boxes)[0], boxes.shape[1]
        owners = ops.repeat(ops.arange(batch, dtype="int32"), rois)
        shapes = (self.config.num_classes + 1,), (head.num_boxes, 4)
        signature = tuple(keras.KerasTensor(shape, "float32") for shape in shapes)
        found = in_chunks(run, (ops.reshape(boxes, (-1, 4)), owners), _BOXES_AT_ONCE, signature)
        logits, deltas = (ops.reshape(x, (batch, rois, *shape)) for x, shape in zip(found, shapes, strict=True))
        return logits, deltas

    # Training

    def _ground_truth(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, classes and crowd flags; off static shapes without the columns that are padding in every image."""
        boxes, classes = ops.cast(inputs["boxes"], "float32"), ops.cast(inputs["classes"], "int32")
        crowd = ops.cast(inputs["is_crowd"], "bool")
        if self.static_shapes:
            return boxes, classes, crowd
        filled = ops.where(classes > 0, ops.arange(1, ops.shape(classes)[1] + 1, dtype="int32"), 0)
        rows = ops.maximum(ops.max(filled), 1)
        return boxes[:, :rows], classes[:, :rows], crowd[:, :rows]

    def _sample_seeds(self, inputs: Mapping[str, Tensor]) -> Tensor:
        if "sample_seeds" in inputs:
            return inputs["sample_seeds"]
        batch = ops.shape(inputs["boxes"])[:1]
        return keras.random.randint(batch, 0, 2**31 - 1, seed=self.seed_generator)

    def _counts(self, anchors: AnchorSample, rois: RoISample, masks: Tensor) -> Tensor:
        """What the losses of the RPN, the box head and the mask head are divided by, of this batch, (3,) float32."""
        flags = (anchors.is_valid, rois.is_valid, self._mask_rois(rois, masks))
        counts = [ops.sum(ops.cast(x, "float32")) for x in flags]
        if self.config.rpn_loss_normalizer == "batch_size":
            counts[0] = ops.cast(ops.shape(anchors.is_valid)[0] * self.config.rpn_batch_size, "float32")
        return ops.stack(counts)

    def _mask_rois(self, sample: RoISample, masks: Tensor) -> Tensor:
        """Which RoIs train the mask head, (B, L) bool over the first L of the sample."""
        config = self.config
        limit = int(config.roi_batch_size * config.roi_positive_fraction)
        limit = min(limit, config.max_mask_rois) if config.max_mask_rois else limit
        # Positives come first and in random order; objects past the rows of masks have none.
        return ops.logical_and(sample.is_positive[:, :limit], sample.matched[:, :limit] < ops.shape(masks)[1])

    def _mask_losses(
        self,
        features: dict[str, Tensor],
        sample: RoISample,
        inputs: Mapping[str, Tensor],
        normalizer: Tensor,
        seeds: Tensor,
        training: bool,
    ) -> dict[str, Tensor]:
        """Mean cross-entropy over the positive RoIs, on the mask of each one's own class; those of the variations."""
        masks, frames, config = inputs["masks"], inputs["mask_frames"], self.config
        positive = self._mask_rois(sample, masks)
        rows, columns, weights = flagged_rows(positive, self.static_shapes)
        flat = rows * sample.boxes.shape[1] + columns

        def choose(x: Tensor) -> Tensor:
            return ops.take(ops.reshape(x, (-1, *x.shape[2:])), flat, axis=0)  # (B, R, ...) -> (K, ...)

        rois, classes, matched = choose(sample.boxes), choose(sample.classes), choose(sample.matched)
        if config.mask_point_rend:
            seeds = seeds_within(ops.take(seeds, rows), columns)
            logits, points, point_logits = self.mask_head.sample(features, rois, classes, rows, seeds)
        else:
            pooled = self.mask_roi_align.pool(features, rois, rows)
            valid = weights > 0 if self.static_shapes else None
            logits = self.mask_head(pooled, classes, training=training, valid=valid)
        owner = rows * ops.shape(masks)[1] + ops.minimum(matched, ops.shape(masks)[1] - 1)
        own_masks = ops.take(ops.reshape(masks, (-1, *masks.shape[2:])), owner, axis=0)  # (B, N, m, m) -> (K, m, m)
        own_frames = ops.take(ops.reshape(frames, (-1, 4)), owner, axis=0)
        targets = mask_targets(
            own_masks, own_frames, rois, logits.shape[-1], config.binary_mask_targets, config.mask_target_samples
        )
        errors = ops.mean(loss_ops.binary_cross_entropy(logits, targets), axis=(1, 2))
        losses = {"mask": ops.sum(errors * weights) / normalizer}
        if config.mask_point_rend:
            targets = point_targets(own_masks, own_frames, rois, points)
            errors = ops.mean(loss_ops.binary_cross_entropy(point_logits, targets), axis=1)
            losses[MASK_POINT_LOSS] = ops.sum(errors * weights) / normalizer
        if self.mask_iou_head is not None:
            ious = self.mask_iou_head(pooled, ops.sigmoid(logits), classes, training=training, valid=valid)
            targets = mask_iou_targets(logits, targets, own_masks, own_frames, rois)
            losses[MASK_IOU_LOSS] = mask_iou_loss(ious, targets, weights, normalizer)
        return losses

    @classmethod
    def from_preset(
        cls, name_or_path: str, mirror: str | None = None, offline: bool | None = None, **settings: Any
    ) -> MaskRCNN:
        """A model with pretrained weights; those of a preset are downloaded and converted the first time.

        Args:
            name_or_path: a preset (`PRESETS` and `SHIPPED` of `kmaskrcnn.weights.presets`), hf://OWNER/NAME of a model
                folder on the Hugging Face Hub, a weight file of torchvision, Detectron2 or matterport, or a model
                folder of ours.
            mirror: base URL to download from instead of the publishers' servers; default: KMASKRCNN_MIRROR, or none.
            offline: do not use the network, only the cache; default: KMASKRCNN_OFFLINE.
            **settings: replace those of the file. Another num_classes keeps everything but the last layers.

        Raises:
            WeightsError: the weights are missing and cannot be downloaded (the message has the URL and where to put the
                file), or do not fit.
            ConfigError: an impossible setting.
        """
        # Imported here, since the importers build models.
        from kmaskrcnn.weights.convert import open_model

        return open_model(name_or_path, mirror, offline, **settings)
