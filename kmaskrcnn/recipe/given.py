"""What a rule of a recipe follows from, and what it gives."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

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
