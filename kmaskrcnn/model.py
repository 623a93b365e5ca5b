"""Mask R-CNN (He, Gkioxari, Dollar, Girshick 2017) on a feature pyramid (Lin et al. 2017)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kmaskrcnn import backbones
from kmaskrcnn.backbones.folding import fold_normalization
from kmaskrcnn.keras_interface import LOSSES, KerasInterface, num_replicas
from kmaskrcnn.layers.box_head import BoxHead, RoISample, box_head_losses, detect_boxes, sample_rois
from kmaskrcnn.layers.cascade import Cascade, scale_gradient
from kmaskrcnn.layers.fpn import FPN
from kmaskrcnn.layers.mask_head import MaskHead
from kmaskrcnn.layers.roi_align import RoIAlign
from kmaskrcnn.layers.rpn import AnchorSample, RPNHead, level_anchors, propose, rpn_losses, sample_anchors
from kmaskrcnn.ops import losses as loss_ops
from kmaskrcnn.ops.chunks import in_chunks
from kmaskrcnn.ops.mask_targets import mask_targets
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
    1..num_classes and 0 in empty rows, masks (B, D, M, M) probabilities over each box, num_detections (B,). Valid rows
    come first, by decreasing score.

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
        self.mask_head = MaskHead(
            config.num_classes,
            config.mask_conv_channels,
            config.head_norm,
            config.mask_class_agnostic,
            dtype=policy,
            name="mask_head",
        )
        self.mask_head.build((None, config.mask_pool_size, config.mask_pool_size, config.fpn_channels))
        self.built = True

    # The network

    def call(
        self, inputs: Mapping[str, Tensor] | Tensor, training: bool = False, counts_only: bool = False
    ) -> dict[str, Tensor] | Tensor:
        inputs = dict(inputs) if isinstance(inputs, Mapping) else {"images": inputs}
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
        normalizers = inputs["normalizers"] if "normalizers" in inputs else _over_replicas(counts)
        losses = rpn_losses(rpn_outputs, anchors, anchor_sample, gt_boxes, normalizers[0], self.config)
        run = functools.partial(self._run_box_head, features, training, valid=sample.is_valid)
        logits, deltas = run(self.box_head, sample.boxes)
        losses |= box_head_losses(logits, deltas, sample, gt_boxes, normalizers[1], self.config)
        if self.cascade is not None:
            truth = (gt_boxes, gt_classes, gt_valid, gt_crowd)
            losses |= self.cascade.stage_losses(run, deltas, sample, truth, image_shapes, normalizers[1], self.config)
        masks, frames = inputs["masks"], inputs["mask_frames"]
        losses["mask"] = self._mask_loss(features, sample, masks, frames, normalizers[2], training)
        return losses

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
            pooled = self.mask_roi_align(features, boxes)  # (B, D, S, S, C)
            pooled = ops.reshape(pooled, (-1, *pooled.shape[2:]))  # (B, D, S, S, C) -> (B * D, S, S, C)
            masks = ops.sigmoid(self.mask_head(pooled, ops.reshape(classes, (-1,)), training=False))
            masks = ops.reshape(masks, (-1, boxes.shape[1], *masks.shape[1:]))  # (B * D, M, M) -> (B, D, M, M)
            masks = ops.where(valid[:, :, None, None], masks, 0.0)
        else:
            rows, columns = (ops.cast(x, "int32") for x in ops.nonzero(valid))
            flat = rows * boxes.shape[1] + columns
            own_boxes = ops.take(ops.reshape(boxes, (-1, 4)), flat, axis=0)
            found = self.find_masks(features, own_boxes, ops.take(ops.reshape(classes, (-1,)), flat, axis=0), rows)
            total = ops.shape(boxes)[0] * boxes.shape[1]
            masks = ops.scatter(flat[:, None], found, (total, *found.shape[1:]))
            masks = ops.reshape(masks, (-1, boxes.shape[1], *found.shape[1:]))  # (B * D, M, M) -> (B, D, M, M)
        return {"boxes": boxes, "scores": scores, "classes": classes, "masks": masks, "num_detections": count}

    def find_boxes(
        self, features: dict[str, Tensor], proposals: Tensor, scores: Tensor, image_shapes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (B, D, 4), scores (B, D), classes (B, D) and their number (B,), as for `detect`."""
        run = functools.partial(self._run_box_head, features, False)
        logits, deltas = run(self.box_head, proposals)
        if self.cascade is not None:
            logits, deltas, proposals = self.cascade.refine(run, logits, deltas, proposals, image_shapes)
        return detect_boxes(logits, deltas, proposals, scores, image_shapes, self.config, self.static_shapes)

    def find_masks(self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor, batch_indices: Tensor) -> Tensor:
        """Mask probabilities (K, M, M) over boxes (K, 4) of classes (K,) in the images batch_indices (K,)."""

        def find(boxes: Tensor, classes: Tensor, batch_indices: Tensor) -> Tensor:
            pooled = self.mask_roi_align.pool(features, boxes, batch_indices)
            return ops.sigmoid(self.mask_head(pooled, classes, training=False))

        inputs = boxes, classes, batch_indices
        if self.config.max_detections <= _MASKS_AT_ONCE or self.static_shapes:
            return find(*inputs)
        side = 2 * self.config.mask_pool_size
        return in_chunks(find, inputs, _MASKS_AT_ONCE, keras.KerasTensor((side, side), "float32"))

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
        if self.config.rpn_loss_normalizer == "batch_size":
            sampled_anchors = ops.shape(anchors.is_valid)[0] * self.config.rpn_batch_size
        else:
            sampled_anchors = _count(anchors.is_valid)
        counts = (sampled_anchors, _count(rois.is_valid), _count(self._mask_rois(rois, masks)))
        return ops.stack([ops.cast(count, "float32") for count in counts])

    def _mask_rois(self, sample: RoISample, masks: Tensor) -> Tensor:
        """Which RoIs train the mask head, (B, L) bool over the first L of the sample."""
        config = self.config
        limit = int(config.roi_batch_size * config.roi_positive_fraction)
        limit = min(limit, config.max_mask_rois) if config.max_mask_rois else limit
        # Positives come first and in random order; objects past the rows of masks have none.
        return ops.logical_and(sample.is_positive[:, :limit], sample.matched[:, :limit] < ops.shape(masks)[1])

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        sample: RoISample,
        masks: Tensor,
        frames: Tensor,
        normalizer: Tensor,
        training: bool,
    ) -> Tensor:
        """Mean binary cross-entropy over the positive RoIs, on the mask of each RoI's own class (section 3)."""
        config, positive = self.config, self._mask_rois(sample, masks)
        if self.static_shapes:
            batch, limit = ops.shape(positive)
            rows = ops.repeat(ops.arange(batch, dtype="int32"), limit)
            columns = ops.tile(ops.arange(limit, dtype="int32"), [batch])
            weights = ops.cast(ops.reshape(positive, (-1,)), "float32")
        else:
            # A RoI costs the mask branch 3 GFLOP a step, so padded rows would be most of its time.
            # Where there is none the first one goes through it at no weight: the statistics of nothing are not finite,
            # and some kernels get the shape of nothing wrong.
            first = ops.arange(ops.size(positive), dtype="int32") == 0
            pooled = ops.where(ops.any(positive), positive, ops.reshape(first, ops.shape(positive)))
            rows, columns = (ops.cast(x, "int32") for x in ops.nonzero(pooled))
            weights = ops.take(ops.reshape(positive, (-1,)), rows * positive.shape[1] + columns)
            weights = ops.cast(weights, "float32")
        flat = rows * sample.boxes.shape[1] + columns

        def choose(x: Tensor) -> Tensor:
            return ops.take(ops.reshape(x, (-1, *x.shape[2:])), flat, axis=0)  # (B, R, ...) -> (K, ...)

        rois, classes, matched = choose(sample.boxes), choose(sample.classes), choose(sample.matched)
        pooled = self.mask_roi_align.pool(features, rois, rows)
        valid = weights > 0 if self.static_shapes else None
        logits = self.mask_head(pooled, classes, training=training, valid=valid)
        owner = rows * ops.shape(masks)[1] + ops.minimum(matched, ops.shape(masks)[1] - 1)
        own_masks = ops.take(ops.reshape(masks, (-1, *masks.shape[2:])), owner, axis=0)  # (B, N, m, m) -> (K, m, m)
        own_frames = ops.take(ops.reshape(frames, (-1, 4)), owner, axis=0)
        targets = mask_targets(
            own_masks, own_frames, rois, logits.shape[-1], config.binary_mask_targets, config.mask_target_samples
        )
        losses = ops.mean(loss_ops.binary_cross_entropy(logits, targets), axis=(1, 2))
        return ops.sum(losses * weights) / normalizer

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


def _count(flags: Tensor) -> Tensor:
    return ops.sum(ops.cast(flags, "float32"))


def _over_replicas(counts: Tensor) -> Tensor:
    """Counts as each replica divides by them: of all replicas, by their number.

    The mean over the replicas of sums divided by these is what one device gives for the whole batch, however objects
    are spread over the replicas.
    """
    replicas = num_replicas()
    if replicas > 1:
        import tensorflow as tf

        counts = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, ops.stop_gradient(counts))
    return ops.maximum(counts, 1.0) / replicas
