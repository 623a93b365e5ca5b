"""The rules of a recipe: facts of the data and of the machine -> settings, each with its reason.

A rule is a pure function of what it follows from (`Given`), which holds the settings that the rules before it and the
user chose. The order of RULES is the order in which one follows from another.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from kmaskrcnn.config import Config
from kmaskrcnn.recipe.anchors import fit_anchors
from kmaskrcnn.recipe.facts import Facts, most_in_window
from kmaskrcnn.recipe.given import Choice, Given
from kmaskrcnn.recipe.orientation import find_orientation

# Sides in pixels. P2 has a cell every 4 pixels: an object needs two of them along each side to be told from its
# surroundings, and half of the objects should have the 8 that a mask of 14 x 14 cells is worth its cost for.
_LEAST_SIDE, _WANTED_SIDE = 8.0, 32.0
# Short side of an image: what two cores work off in about a second, and what the published recipes take on GPUs.
_CPU_SHORT_SIDE, _GPU_SHORT_SIDE = 480, 800
_MOST_ENLARGED = 2.0
_SMALLEST_PERCENTILE = 5
# An image with more pixels than this is evaluated in tiles of this side.
_TILE = 1536


def _round_up(value: float, multiple: int) -> int:
    return math.ceil(value / multiple - 1e-9) * multiple


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


def input_scale(given: Given) -> list[Choice]:
    """Size of the network's input: as large as the small objects need, no larger than the machine likes."""
    facts = given.facts
    if {"resize_mode", "min_size", "native_scale", "max_size"} & given.fixed or not len(facts.boxes):
        return []
    shorts = facts.image_sizes.min(axis=1)
    wanted = _GPU_SHORT_SIDE if given.on_gpu else _CPU_SHORT_SIDE
    most = _MOST_ENLARGED if given.on_gpu else 1.0  # what is enlarged costs time and shows no more
    usual = min(most, wanted / float(np.median(shorts)))
    # By the two ways of scaling: sides of the objects, and the factor that shows the small ones.
    native = _scale_for(facts.sides, usual)
    relative = facts.sides / shorts[facts.box_images] * float(np.median(shorts))
    fitted = _scale_for(relative, usual)
    # Pixels of the input for a pixel of a small object: the way that shows those with less of the rest is better.
    areas, small = facts.image_sizes.prod(axis=1), float(np.percentile(facts.sides, _SMALLEST_PERCENTILE))
    cost_native = float(areas.mean()) / small**2
    cost_fitted = float((areas / shorts**2).mean()) * float(np.median(shorts)) ** 2
    cost_fitted /= float(np.percentile(relative, _SMALLEST_PERCENTILE)) ** 2
    varied = float(np.percentile(shorts, 95) / np.percentile(shorts, 5)) > 1.5
    if varied and cost_native < cost_fitted:
        reason = f"images of {shorts.min():.0f} to {shorts.max():.0f} pixels show their objects at about the same scale"
        why = f"5% of the objects are smaller than {small:.0f} pixels, {small * native:.0f} when resized"
        return [Choice("resize_mode", "native", reason), Choice("native_scale", round(native, 3), why)]
    short = max(32, _round_up(fitted * float(np.median(shorts)), 16))
    if not varied and float((areas * (short / shorts) ** 2).max()) > _TILE**2:
        # By its short side a tile would be scaled to the size of a whole image, and show its objects larger.
        scale = round(short / float(np.median(shorts)), 3)
        reason = "images have about the same size, and are predicted in tiles"
        why = f"5% of the objects are smaller than {small:.0f} pixels, {small * scale:.0f} when resized"
        return [Choice("resize_mode", "native", reason), Choice("native_scale", scale, why)]
    aspect = float(np.percentile(facts.image_sizes.max(axis=1) / shorts, 95))
    small = float(np.percentile(relative, _SMALLEST_PERCENTILE)) * short / float(np.median(shorts))
    reason = f"the short sides are {np.median(shorts):.0f} pixels; resized, 5% of the objects are below {small:.0f}"
    return [
        Choice("resize_mode", "short_side", "images have about the same size, or objects scale with them"),
        Choice("min_size", short, reason),
        Choice(
            "max_size",
            _round_up(short * max(aspect, 4 / 3), 32),
            f"long sides are up to {aspect:.2g} times the short ones",
        ),
    ]


def _scale_for(sides: np.ndarray, usual: float) -> float:
    """The usual scale, or a larger one where small objects need it; 1 where it is hardly less."""
    small, median = np.percentile(sides, [_SMALLEST_PERCENTILE, 50])
    scale = max(usual, min(1.0, _WANTED_SIDE / median))
    scale = max(scale, min(_MOST_ENLARGED, _LEAST_SIDE / small))
    return 1.0 if 0.85 < scale < 1 else float(scale)


def scale_of(facts: Facts, config: Config) -> np.ndarray:
    """(I,) network pixels a pixel of each image."""
    data, shorts = config.data, facts.image_sizes.min(axis=1)
    if data.resize_mode == "native":
        return np.full(facts.images, data.native_scale)
    return np.minimum(data.min_size / shorts, data.max_size / facts.image_sizes.max(axis=1))


def training_crop(given: Given) -> list[Choice]:
    """Side of the training crops: room for the large objects and for the surroundings of most, no more."""
    facts = given.facts
    if "crop_size" in given.fixed or given.config.data.crop_probability or not len(facts.boxes):
        return []
    scales = scale_of(facts, given.config)
    longs = facts.long_sides * scales[facts.box_images]
    large, most = np.percentile(longs, [95, 75])
    least, limit = (512, 1024) if given.on_gpu else (256, 448)
    image = float((facts.image_sizes.max(axis=1) * scales).max())
    side = min(max(1.25 * large, 2.5 * most, least), limit, max(image, 32))
    reason = f"resized, 95% of the objects are at most {large:.0f} pixels long, 75% at most {most:.0f}"
    return [Choice("crop_size", _round_up(side, 32), reason)]


def scale_jitter(given: Given) -> list[Choice]:
    """Random scale: down as far as half of the objects stay visible, up as far as the large ones fit the crop."""
    facts, crop = given.facts, given.config.data.crop_size
    if not crop or not len(facts.boxes):
        return []
    scales = scale_of(facts, given.config)[facts.box_images]
    median = float(np.median(facts.sides * scales))
    large = float(np.percentile(facts.long_sides * scales, 95))
    low = min(1.0, max(0.6, 2 * _LEAST_SIDE / median))
    high = min(1.6, max(1.25, crop / max(large, 1.0)))
    reason = f"resized, the median object has {median:.0f} pixels, the 95th percentile {large:.0f}, the crop {crop}"
    return [Choice("scale_jitter", (round(low, 2), round(high, 2)), reason)]


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


def flips(given: Given) -> list[Choice]:
    """Mirror images, turns and colors: what leaves the statistics of the annotations as they are."""
    crop = given.config.data.crop_size
    found = find_orientation(given.facts)
    return [
        Choice("horizontal_flip", not found.one_sided, found.left_right),
        Choice("vertical_flip", found.upside_down_free, found.up_down),
        Choice("rotate90", bool(found.turn_free and crop), found.turns),
    ]


def colors(given: Given) -> list[Choice]:
    """Random colors: the fewer images there are, the less is known of other light."""
    images = given.facts.images
    strength = 0.3 if images < 2000 else 0.2 if images < 20000 else 0.0
    return [Choice("color_jitter", strength, f"{images} images")]


def tiles(given: Given) -> list[Choice]:
    """In which pieces large images are predicted, at the scale of training: not where images are scaled to a size."""
    if given.config.data.resize_mode != "native":
        return []
    facts, scales = given.facts, scale_of(given.facts, given.config)
    if float((facts.image_sizes.prod(axis=1) * scales**2).max(initial=0)) <= _TILE**2:
        return []
    side = _round_up(_TILE / float(np.median(scales)), 32)
    length = float(np.percentile(facts.long_sides, 95)) if len(facts.boxes) else 0.0
    overlap = min(side // 2, max(32, _round_up(1.5 * length, 32)))
    return [
        Choice("tile_size", side, "images are too large to predict in one piece"),
        Choice("tile_overlap", overlap, "objects fit into the overlap"),
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
    reason = f"an image has up to {most} objects"
    in_crop_too, in_tile_too = f", a crop {in_crop}" * bool(data.crop_size), f", a tile {in_tile}" * bool(tile)
    found = max(100, _round_up(1.25 * in_tile, 50))
    choices = [
        Choice("max_instances", max(10, _round_up(in_crop, 10)), reason + in_crop_too),
        Choice("max_detections", found, reason + in_tile_too),
    ]
    proposals = _round_up(_PROPOSALS * in_tile, 100)
    if proposals > given.config.model.rpn_post_nms_top_k:
        for name in ("rpn_pre_nms_top_k", "rpn_post_nms_top_k"):
            choices.append(Choice(name, proposals, f"{_PROPOSALS} for each of {in_tile} objects"))
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
    rois = int(min(192, max(128, _round_up(16 * seen, 64))))  # a quarter are positives, four for an object
    reason = f"a crop holds about {seen:.0f} objects"
    proposals = 1000 if most > 50 else 500
    if given.config.model.rpn_post_nms_top_k <= 1000:  # `instances` has not asked for more
        widths.append(Choice("rpn_post_nms_top_k", proposals, f"an image has up to {most} objects"))
    return [
        *widths,
        Choice("roi_batch_size", rois, reason),
        Choice("max_mask_rois", int(min(40, max(24, _round_up(4 * seen, 8)))), reason),
        Choice("mask_resolution", 56, "predicted masks are 28 x 28"),
    ]


# GB that training takes beside the images, and for a million pixels of them (measured on the recipes of configs/).
_MEMORY_BASE, _MEMORY_MEGAPIXEL = 1.5, 2.2


def batch(given: Given) -> list[Choice]:
    """Images a step: as many as fit half of the memory, four at most on a processor, which gains nothing by more."""
    side = given.config.data.crop_size
    pixels = (
        side**2
        if side
        else float((given.facts.image_sizes * scale_of(given.facts, given.config)[:, None]).prod(axis=1).max())
    )
    need = _MEMORY_MEGAPIXEL * pixels / 1e6
    fit = max(1.0, (0.5 * given.machine.memory_gb - _MEMORY_BASE) / need)
    most = 16 if given.on_gpu else 2 if given.start.kind == "coco" else 4
    each = 2 ** int(math.log2(min(fit, most)))
    if given.on_gpu:
        each = max(1, min(each, 16 // given.machine.devices))
    reason = f"{need:.1f} GB per image, {given.machine.memory_gb:.0f} GB of memory"
    return [Choice("batch_size", each * given.machine.devices, reason)]


# Passes over the images, and the least and most steps, from the weights of a COCO model, of ImageNet, and from none.
_EPOCHS = {"coco": 12, "imagenet": 36, "none": 72}
_FLOOR = {"coco": 300, "imagenet": 600, "none": 1500}
_CPU_CEILING, _GPU_CEILING = 4000, 90000


def run_length(given: Given) -> list[Choice]:
    """Steps: passes over the images, with a floor for small sets and a ceiling for what a machine does in hours."""
    if given.config.train.max_minutes or given.config.train.epochs or "steps" in given.fixed:
        return []
    kind, size = given.start.kind, given.config.train.batch_size
    wanted = math.ceil(_EPOCHS[kind] * given.facts.images / size)
    ceiling = _GPU_CEILING if given.on_gpu else _CPU_CEILING
    steps = min(max(wanted, _FLOOR[kind]), ceiling)
    what = {"coco": "a COCO model", "imagenet": "ImageNet weights", "none": "random weights"}[kind]
    bound = f", at least {_FLOOR[kind]}" if steps > wanted else f", at most {ceiling}" if steps < wanted else ""
    return [Choice("steps", steps, f"{_EPOCHS[kind]} epochs of {given.facts.images} images from {what}{bound}")]


def expected_steps(given: Given) -> int:
    """Steps of the run; 0 where the clock ends it."""
    train = given.config.train
    if train.max_minutes:
        return 0
    if train.epochs:
        return math.ceil(train.epochs * given.facts.images / train.batch_size)
    return train.steps


def optimizer(given: Given) -> list[Choice]:
    """Learning rate for the batch (the linear rule), a warm-up and a cosine over the run, clipping."""
    size = given.config.train.batch_size
    each = 0.02 / 16 if given.start.kind == "coco" else 0.005
    rate = min(each * size, 0.02 if given.start.kind == "coco" else 0.04)
    return [
        Choice("learning_rate", rate, f"{each:g} for each of the {size} images of a batch"),
        Choice("schedule", "cosine", "falls to 0 at the end of the run, whatever its length"),
        Choice("warmup_share", 0.1, "of the run: the new heads start from random weights"),
        Choice("clip_norm", 10.0, "gradient clipping, so that no bad batch undoes the warm-up"),
    ]


def averages(given: Given) -> list[Choice]:
    """Moving average of the weights over the last tenth of the run; a young one is shorter by itself."""
    steps = expected_steps(given)
    if not steps:
        return [Choice("ema_decay", 0.999, "over the last tenth of a run of unknown length, 1000 steps at most")]
    decay = min(0.9998, max(0.9, 1 - 10 / steps))
    return [Choice("ema_decay", round(decay, 4), f"over a tenth of {steps} steps")]


# Classes are sampled by repeat factors where the most frequent one is in so many times the images of the rarest.
_SKEWED = 4.0


def sampling(given: Given) -> list[Choice]:
    """Repeat-factor sampling (Gupta et al. 2019) where some classes are in few images."""
    shares = given.facts.class_shares
    shares = shares[shares > 0]
    if len(shares) < 2 or shares.max() < _SKEWED * shares.min():
        return []
    reason = f"the most frequent class is in {shares.max():.0%} of the images, the rarest in {shares.min():.1%}"
    return [Choice("repeat_factor_threshold", round(float(shares.max()), 4), reason)]


def evaluation(given: Given) -> list[Choice]:
    """When to save and to evaluate."""
    steps, choices = expected_steps(given), []
    if steps:
        every = max(50, _round_up(steps / 8, 10))
        choices.append(Choice("checkpoint_every", min(every, 1000), "an eighth of the run"))
        if given.has_evaluation and not ("eval_every" in given.fixed and not given.config.train.eval_every):
            choices.append(Choice("eval_every", every, "eight evaluations in the run; the best weights are kept"))
            choices.append(
                Choice("patience", _PATIENCE, "early stopping after half of the evaluations without a better score")
            )
    else:
        choices.append(Choice("checkpoint_every", 200, "at most a few minutes of work can be lost"))
    return choices


# Evaluations without a better score after which a run ends.
_PATIENCE = 4

RULES: tuple[Callable[[Given], list[Choice]], ...] = (
    starting_weights,
    backbone_training,
    input_scale,
    training_crop,
    scale_jitter,
    flips,
    anchors,
    colors,
    tiles,
    instances,
    heads,
    batch,
    run_length,
    optimizer,
    averages,
    sampling,
    evaluation,
)
