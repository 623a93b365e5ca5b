"""Batch, length and optimizer of a run, and when it is evaluated."""

from __future__ import annotations

import math

from kmaskrcnn.recipe.given import Choice, Given, round_up, scale_of

# GB that training takes beside the images, and for a million pixels of them (measured on the recipes of configs/).
_MEMORY_BASE, _MEMORY_MEGAPIXEL = 1.5, 2.2


def batch(given: Given) -> list[Choice]:
    """Images a step: as many as fit half of the memory, four at most on a processor, which gains nothing by more.

    With accumulate_steps more, where each part of a step is to have an image on each device.
    """
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
    parts = given.config.train.accumulate_steps
    if each % parts:
        each, reason = round_up(each, parts), f"{reason}; in {parts} equal parts, as accumulate_steps asks"
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


# Rate and decay of AdamW for 16 images: of ConvNeXt's authors' Mask R-CNN, and of Swin's for other backbones.
_ADAMW_RATE, _ADAMW_DECAY = 1e-4, 0.05


def optimizer(given: Given) -> list[Choice]:
    """Optimizer, AdamW for a ConvNeXt, learning rate for it and the batch, warm-up, cosine and gradient clipping."""
    train, fixed, choices = given.config.train, given.fixed, []
    convnext, from_coco = given.config.model.backbone == "convnext_tiny", given.start.kind == "coco"
    size, name = train.batch_size, train.optimizer
    if convnext and not {"optimizer", "momentum"} & fixed:  # AdamW reads no momentum
        name = "adamw"
        choices.append(Choice("optimizer", name, "as ConvNeXt is published"))
    if name == "adamw":
        source = "as ConvNeXt is published" if convnext else "as Swin's Mask R-CNN (Liu et al. 2021)"
        choices.append(Choice("weight_decay", _ADAMW_DECAY, source))
        most = _ADAMW_RATE / 4 if from_coco else _ADAMW_RATE
        # Adaptive rates scale with the square root of the batch (Malladi et al. 2022), those of SGD with the batch.
        rate = most * math.sqrt(size / 16)
        reason = f"{most:g} for 16 images, by the square root for {size}, {source}"
    else:
        each = 0.02 / 16 if from_coco else 0.005
        rate = min(each * size, 0.02 if from_coco else 0.04)
        reason = f"{each:g} for each of the {size} images of a batch"
    if reference := train.reference_batch_size:
        reason = f"{reason}; {rate:.3g}, scaled to the {reference} images of reference_batch_size"
        rate *= reference / size
    choices.append(Choice("learning_rate", rate, reason))
    if "drop_at" in fixed:
        choices.append(Choice("schedule", "step", "drop_at is given, which no other schedule reads"))
    else:
        choices.append(Choice("schedule", "cosine", "falls to 0 at the end of the run, whatever its length"))
    if "warmup_steps" not in fixed:  # whose place a share would take
        choices.append(Choice("warmup_share", 0.1, "of the run: the new heads start from random weights"))
    return [*choices, Choice("clip_norm", 10.0, "gradient clipping, so that no bad batch undoes the warm-up")]


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


# Evaluations without a better score after which a run ends.
_PATIENCE = 4


def evaluation(given: Given) -> list[Choice]:
    """When to save and to evaluate."""
    steps, choices = expected_steps(given), []
    if steps:
        every = max(50, round_up(steps / 8, 10))
        often = "an eighth of the run" if every == round_up(steps / 8, 10) else f"not more often in {steps} steps"
        choices.append(Choice("checkpoint_every", min(every, 1000), often))
        if given.has_evaluation and not ("eval_every" in given.fixed and not given.config.train.eval_every):
            choices.append(Choice("eval_every", every, f"{often}; the best weights are kept"))
            reason = f"early stopping after {_PATIENCE} evaluations without a better score"
            choices.append(Choice("patience", _PATIENCE, reason))
    else:
        choices.append(Choice("checkpoint_every", 200, "at most a few minutes of work can be lost"))
    return choices
