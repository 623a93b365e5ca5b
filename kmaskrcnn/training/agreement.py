"""What several workers go by together: whether to stop, and the clock."""

from __future__ import annotations

from collections.abc import Mapping


class Agreement:
    """The values that the workers told each other in a step, for all of them the same one: that before the last.

    A worker that looks at its newest step for a line of its log must not act on it before the others can.

    Args:
        clock: seconds of training so far.

    Attributes:
        stop: above 0 where a worker wants to stop.
        clock: seconds of training.
    """

    def __init__(self, clock: float):
        self.stop, self.clock = 0.0, clock
        self._heard: dict[int, tuple[float, float]] = {}

    def hear(self, step: int, values: Mapping[str, float]) -> None:
        """Take in what a step returned, each step once."""
        self._heard[step] = values["stop"], values["clock"]

    def advance(self, step: int) -> None:
        """Go by the last but one of `step` steps, which every worker has heard."""
        self.stop, self.clock = self._heard.pop(step - 2, (self.stop, self.clock))
