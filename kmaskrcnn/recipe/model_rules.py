"""Backbone, anchors and heads, and how many objects they take."""

from __future__ import annotations

import numpy as np

from kmaskrcnn.recipe.anchor_fit import fit_anchors
from kmaskrcnn.recipe.given import Choice, Given, round_up, scale_of


def starting_weights(given: Given) -> list[Choice]:
    """Backbone and weights: what a model of COCO or the backbone's ImageNet weights bring along."""
    start = given.start
    return [Choice(name, value, start.reason) for name, value in start.settings.items()]


def backbone_training(given: Given) -> list[Choice]:
    """Normalization and frozen stages: statistics of the new data, where a batch is enough to take them from."""
    if given.start.kind == "coco":
        return []  # as the model was trained
    if given.start.kind == "none":
        return [
            Choice("backbone_norm", "bn", "random weights: statistics must be learned"),
            Choice("frozen_stages", 0, "random weights: every stage must be learned"),
        ]
    return [
        Choice("backbone_norm", "bn", "images may look unlike ImageNet's, and a batch holds enough to measure them"),
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
    factors = sorted({1.0, *given.config.data.scale_jitter})
    fixed_sizes = tuple(config.anchor_sizes) if "anchor_sizes" in given.fixed else None
    fixed_ratios = tuple(config.anchor_aspect_ratios) if "anchor_aspect_ratios" in given.fixed else None
    found = fit_anchors(
        np.concatenate([boxes * factor for factor in factors]),
        np.concatenate([sizes * factor for factor in factors]),
        crop,
        given.config.data.rotate90,
        fixed_sizes,
        fixed_ratios,
    )
    reason = f"mean IoU of {found.mean:.2f} between a box and its best anchor"
    limit = f"; none longer than the crop of {crop}" if crop else ""
    return [
        Choice("anchor_sizes", found.sizes, reason + limit),
        Choice("anchor_aspect_ratios", found.ratios, "shapes of the boxes"),
    ]


def instances(given: Given) -> list[Choice]:
    """Rows of ground truth and of detections: as many as the fullest image has, and room for mistakes."""
    most = int(given.facts.per_image.max(initial=0))
    rows = max(10, round_up(most, 10))
    found = max(100, round_up(1.25 * most, 50))
    reason = f"an image has up to {most} objects"
    return [
        Choice("max_instances", rows, reason),
        Choice("max_detections", found, reason),
        Choice("eval_max_detections", max(found, given.config.model.max_detections), "as max_detections"),
    ]


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
    reason = f"a crop holds about {seen:.0f} objects"
    return [
        *widths,
        Choice("roi_batch_size", rois, reason),
        Choice("max_mask_rois", int(min(40, max(24, round_up(4 * seen, 8)))), reason),
        Choice("rpn_post_nms_top_k", 1000 if most > 50 else 500, f"an image has up to {most} objects"),
        Choice("mask_resolution", 56, "predicted masks are 28 x 28"),
    ]
