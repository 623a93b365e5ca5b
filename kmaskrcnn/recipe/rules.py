"""The rules of a recipe: facts of the data and of the machine -> settings, each with its reason.

A rule is a pure function of what it follows from (`Given`), which holds the settings that the rules before it and the
user chose. The order of RULES is the order in which one follows from another.
"""

from __future__ import annotations

from collections.abc import Callable

from kmaskrcnn.recipe import input_rules, model_rules, training_rules
from kmaskrcnn.recipe.given import Choice, Given

RULES: tuple[Callable[[Given], list[Choice]], ...] = (
    model_rules.starting_weights,
    model_rules.backbone_training,
    input_rules.input_scale,
    input_rules.training_crop,
    input_rules.scale_jitter,
    input_rules.flips,
    model_rules.anchors,
    input_rules.colors,
    input_rules.tiles,
    model_rules.instances,
    model_rules.heads,
    training_rules.batch,
    training_rules.run_length,
    training_rules.optimizer,
    training_rules.averages,
    training_rules.sampling,
    training_rules.evaluation,
)
