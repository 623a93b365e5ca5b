"""Backbone, anchors and heads, and how many objects they take."""

from __future__ import annotations

import numpy as np

from kmaskrcnn.errors import counted
from kmaskrcnn.recipe.anchor_fit import fit_anchors
from kmaskrcnn.recipe.facts import most_in_window
from kmaskrcnn.recipe.given import Choice, Given, round_up, scale_of


def starting_weights(given: Given) -> list[Choice]:
    """Backbone and weights: what a model of COCO or the backbone's ImageNet weights bring along."""
    start = given.start
    return [Choice(name, value, start.reason) for name, value in start.settings.items()]


# A photograph has colors, and about the contrast of ImageNet's images, 0.226: three quarters of it.
_PHOTO_CONTRAST, _PHOTO_COLOR = 0.17, 0.06


def backbone_training(given: Given) -> list[Choice]:
    """Normalization and frozen stages: ImageNet's statistics for photographs, those of the new data for the rest.

    In equal minutes, photographs reach more with the first stages frozen, which halves the time of a step, and nuclei
    under a microscope with trained ones (docs/results/measurements.md).
    """
    if given.start.kind == "coco":
        return []  # as the model was trained
    if given.config.model.backbone == "convnext_tiny":
        return [
            Choice("frozen_stages", 0, "layer normalization works on any images, so that every stage can follow"),
            Choice("roi_aligned", True, "its cells are centered half a stride further than a ResNet's"),
        ]
    if given.start.kind == "none":
        return [
            Choice("backbone_norm", "bn", "random weights: statistics must be learned"),
            Choice("frozen_stages", 0, "random weights: every stage must be learned"),
        ]
    facts, norm = given.facts, given.config.model.backbone_norm
    keeps = "backbone_norm" not in given.fixed or norm == "frozen_bn"
    look = f"contrast {facts.contrast:.2f}, colorfulness {facts.color:.2f}"
    if keeps and facts.contrast >= _PHOTO_CONTRAST and facts.color >= _PHOTO_COLOR:
        return [
            Choice("backbone_norm", "frozen_bn", f"the images look like photographs, as ImageNet's do: {look}"),
            Choice("frozen_stages", 2, "what the first stages see in ImageNet's photographs they see in these"),
        ]
    return [
        Choice("backbone_norm", "bn", f"the images look unlike ImageNet's photographs: {look}"),
        Choice("frozen_stages", 0, "as the statistics change, the stages must follow"),
    ]


def anchors(given: Given) -> list[Choice]:
    """Anchors that meet the boxes as they are after resizing and cropping, none larger than the crop."""
    facts = given.facts
    if given.start.kind == "coco" or not len(facts.boxes):
        return []  # its RPN was trained on these
    scales = scale_of(facts, given.config)[facts.box_images]
    sizes = facts.image_sizes[facts.box_images] * scales[:, None]
    boxes = facts.boxes * scales[:, None]
    config, crop = given.config.model, given.config.data.crop_size
    fixed_sizes = tuple(config.anchor_sizes) if "anchor_sizes" in given.fixed else None
    fixed_ratios = tuple(config.anchor_aspect_ratios) if "anchor_aspect_ratios" in given.fixed else None
    found = fit_anchors(
        boxes,
        sizes,
        given.config.data,
        fixed_sizes,
        fixed_ratios,
    )
    reason = f"in training, mean IoU of {found.mean:.2f} between a box and its best anchor, counted up to 0.7"
    limit = f"; none longer than the crop of {crop}" if crop else ""
    return [
        Choice("anchor_sizes", found.sizes, reason + limit),
        Choice("anchor_aspect_ratios", found.ratios, "shapes of the boxes"),
    ]


# Proposals for an object: mask AP on 2,000 nuclei is 0.482 with 2.5 and 0.491 with 5 (docs/results/crowds.md).
_PROPOSALS = 4


def instances(given: Given) -> list[Choice]:
    """Rows of masks and of detections: as many objects as a crop or a tile shows, and room for mistakes."""
    facts, data, tile = given.facts, given.config.data, given.config.evaluation.tile_size
    most = int(facts.per_image.max(initial=0))
    in_crop = in_tile = most
    if data.crop_size:
        factor = min(1.0, *data.scale_jitter) if data.scale_jitter else 1.0
        in_crop = min(most, most_in_window(facts, data.crop_size / (scale_of(facts, given.config) * factor)))
    if tile:
        in_tile = min(most, most_in_window(facts, np.full(facts.images, float(tile))))
    reason = f"an image has up to {counted(most, 'object')}"
    in_crop_too, in_tile_too = f", a crop {in_crop}" * bool(data.crop_size), f", a tile {in_tile}" * bool(tile)
    found = max(100, round_up(1.25 * in_tile, 50))
    choices = [
        Choice("max_instances", max(10, round_up(in_crop, 10)), reason + in_crop_too),
        Choice("max_detections", found, reason + in_tile_too),
    ]
    proposals = round_up(_PROPOSALS * in_tile, 100)
    if proposals > given.config.model.rpn_post_nms_top_k:
        for name in ("rpn_pre_nms_top_k", "rpn_post_nms_top_k"):
            choices.append(Choice(name, proposals, f"{_PROPOSALS} for each of {counted(in_tile, 'object')}"))
    return choices


def objects_in_view(given: Given) -> float:
    """Objects of a training crop, about: those of an image with objects, by the share of it that a crop shows."""
    facts, crop = given.facts, given.config.data.crop_size
    counts = facts.per_image
    share = np.ones(facts.images)
    if crop:
        scaled = facts.image_sizes * scale_of(facts, given.config)[:, None]
        share = np.minimum(crop / scaled, 1.0).prod(axis=1)
    seen = (counts * share)[counts > 0]
    return float(np.median(seen)) if len(seen) else 0.0


def heads(given: Given) -> list[Choice]:
    """Widths and samples of the heads: those of the paper on a GPU, what pays on a processor otherwise."""
    if given.on_gpu or given.start.kind == "coco":
        widths = []
    else:
        reason = "on a CPU, narrow heads reach a higher AP in the same time"
        widths = [
            Choice("fpn_channels", 128, reason),
            Choice("box_fc_channels", (512, 512), reason),
            Choice("mask_conv_channels", (128, 128, 128, 128), reason),
        ]
    if given.on_gpu:
        return widths
    seen, most = objects_in_view(given), int(given.facts.per_image.max(initial=0))
    rois = int(min(192, max(128, round_up(16 * seen, 64))))  # a quarter are positives, four for an object
    reason = f"a crop holds about {counted(round(seen), 'object')}"
    proposals = 1000 if most > 50 else 500
    if given.config.model.rpn_post_nms_top_k <= 1000:  # `instances` has not asked for more
        widths.append(Choice("rpn_post_nms_top_k", proposals, f"an image has up to {counted(most, 'object')}"))
    if not given.config.model.mask_point_rend:  # whose masks are finer
        widths.append(Choice("mask_resolution", 56, "predicted masks are 28 x 28"))
    return [
        *widths,
        Choice("roi_batch_size", rois, reason),
        Choice("max_mask_rois", int(min(40, max(24, round_up(4 * seen, 8)))), reason),
    ]
