"""What a rule of the recipe takes and returns: the facts with the settings so far, and settings with reasons."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from kmaskrcnn.config import Config
from kmaskrcnn.recipe.facts import Facts, Machine
from kmaskrcnn.recipe.starts import Start


class Choice(NamedTuple):
    """A setting, and the fact that it follows from."""

    name: str
    value: Any
    reason: str


@dataclasses.dataclass(frozen=True)
class Given:
    """What a rule follows from.

    Attributes:
        facts: of the training set.
        machine: what trains.
        start: the weights to start from.
        config: the settings so far.
        fixed: names of the settings that the user gave, which rules do not change.
        has_evaluation: whether there is a set to evaluate on.
    """

    facts: Facts
    machine: Machine
    start: Start
    config: Config
    fixed: frozenset[str] = frozenset()
    has_evaluation: bool = True

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU trains."""
        return self.machine.gpus > 0


def scale_of(facts: Facts, config: Config) -> np.ndarray:
    """(I,) network pixels a pixel of each image."""
    data, shorts = config.data, facts.image_sizes.min(axis=1)
    if data.resize_mode == "native":
        return np.full(facts.images, data.native_scale)
    return np.minimum(data.min_size / shorts, data.max_size / facts.image_sizes.max(axis=1))


def round_up(value: float, multiple: int) -> int:
    """The least multiple that is not below a value."""
    return math.ceil(value / multiple - 1e-9) * multiple
