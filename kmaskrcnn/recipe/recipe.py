"""A recipe: what the rules chose, as settings and as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from kmaskrcnn.config import Config
from kmaskrcnn.recipe.facts import Facts, Machine
from kmaskrcnn.recipe.given import Choice, Given
from kmaskrcnn.recipe.rules import RULES
from kmaskrcnn.recipe.starts import Start


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings with the reasons for those that rules chose.

    Attributes:
        config: all settings.
        choices: what the rules chose and the user did not give.
        advice: one line on better weights to start from, or empty.
    """

    config: Config
    choices: tuple[Choice, ...]
    advice: str = ""

    def text(self) -> str:
        """One line a setting, with its reason."""
        flags = [flag_text(choice.name, choice.value) for choice in self.choices]
        width = min(44, max(map(len, flags), default=0))
        lines = [f"  {flag:{width}}  {choice.reason}" for flag, choice in zip(flags, self.choices, strict=True)]
        return "\n".join(lines + ([f"  {self.advice}"] if self.advice else []))

    def flagfile(self, given: Collection[tuple[str, Any]] = ()) -> str:
        """The text of a flagfile: the flags that the user gave, then the chosen ones, each under its reason."""
        lines = [flag_text(name, value) for name, value in given]
        for choice in self.choices:
            lines += [f"# {choice.reason}", flag_text(choice.name, choice.value)]
        return "\n".join(lines) + "\n"


def flag_text(name: str, value: Any) -> str:
    """A setting as a flag."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no{name}"
    items = value if isinstance(value, tuple) else (value,)
    return f"--{name}={','.join(f'{v:g}' if isinstance(v, float) else str(v) for v in items)}"


def make_recipe(
    facts: Facts,
    machine: Machine,
    start: Start,
    config: Config,
    fixed: Collection[str] = (),
    has_evaluation: bool = True,
) -> Recipe:
    """Settings for a training set.

    Args:
        facts: of the training set.
        machine: what trains.
        start: the weights to start from.
        config: the settings that the user gave, over the defaults.
        fixed: the names of those, which stay as they are.
        has_evaluation: whether there is a set to evaluate on.

    Raises:
        ConfigError: the given settings exclude what the rules need.
    """
    given = Given(facts, machine, start, config, frozenset(fixed), has_evaluation)
    choices: list[Choice] = []
    for rule in RULES:
        new = [choice for choice in rule(given) if choice.name not in given.fixed]
        choices += new
        changed = given.config.replace(**{choice.name: choice.value for choice in new})
        given = dataclasses.replace(given, config=changed)
    return Recipe(given.config, tuple(choices), start.advice)
