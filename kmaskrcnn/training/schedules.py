"""Learning-rate schedules, as pure functions of the step and of the share of the run that is done."""

from __future__ import annotations

import math

from kmaskrcnn.config import TrainConfig


def scaled_rate(config: TrainConfig) -> float:
    """The peak rate for batch_size images per step (the linear scaling rule, Goyal et al. 2017)."""
    scale = config.batch_size / config.reference_batch_size if config.reference_batch_size else 1.0
    return config.learning_rate * scale


def learning_rate(config: TrainConfig, step: int, share: float) -> float:
    """The rate of one step.

    Args:
        config: learning_rate, reference_batch_size (the linear scaling rule), warmup_steps or warmup_share,
            warmup_factor, schedule, drop_at.
        step: steps done before this one.
        share: share of the run that is done, 0..1.

    Returns:
        The scheduled rate, times a linear warm-up from warmup_factor to 1 over the first warmup_steps steps, or over
        the first warmup_share of the run (Goyal et al. 2017; Detectron2's WarmupMultiStepLR for schedule="step").
    """
    rate = scaled_rate(config)
    done = share / config.warmup_share if config.warmup_share else step / max(config.warmup_steps, 1)
    if done < 1:
        rate *= config.warmup_factor * (1 - done) + done
    if config.schedule == "step":
        return rate * 0.1 ** sum(share >= drop for drop in config.drop_at)
    if config.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return rate
