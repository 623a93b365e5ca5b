"""What a run says on its way: lines of progress, and rows of numbers for metrics.jsonl and TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from kmaskrcnn.config import Config, TrainConfig
from kmaskrcnn.progress import clock
from kmaskrcnn.training.step import AFTER_LOSSES
from kmaskrcnn.training.summaries import Summaries, peak_memory_gb

# Where log_every is 0: steps between rows, and seconds between lines.
_STEPS_BETWEEN_ROWS, _SECONDS_BETWEEN_LINES = 20, 10.0


class RunLog:
    """Collects what steps return, and tells it.

    Args:
        config: log_every, batch_size, steps, max_minutes.
        summaries: takes the rows; none: nothing is told, by the workers beside the first.
        say: prints a line.
    """

    def __init__(self, config: TrainConfig, summaries: Summaries | None, say: Callable[[str], None]):
        self.config, self.summaries, self.say = config, summaries, say
        self._line, self._row = _Window(config.batch_size), _Window(config.batch_size)
        self._steps = 0
        self._told = time.monotonic()

    def add(self, values: dict[str, float]) -> None:
        """Take what a step returned."""
        self._line.add(values)
        self._row.add(values)

    def restart(self) -> None:
        """Forget the steps so far, whose time has an evaluation in it."""
        self._line.restart()
        self._row.restart()

    def is_due(self, step: int) -> bool:
        """Whether `tell` has something to tell after a step, of which this is called once."""
        self._steps += 1
        return self._row_is_due(step) or self._line_is_due(step)

    def _row_is_due(self, step: int) -> bool:
        return step % (self.config.log_every or _STEPS_BETWEEN_ROWS) == 0

    def _line_is_due(self, step: int) -> bool:
        if self._steps == 1 or (not self.config.max_minutes and step == self.config.steps):
            return True
        if self.config.log_every:
            return step % self.config.log_every == 0
        return time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES

    def tell(self, step: int, share: float, elapsed: float, more: dict[str, float]) -> None:
        """Tell where the run is after a step that `is_due`, all steps so far having been added.

        Args:
            step: steps done.
            share: share of the run that is done.
            elapsed: seconds of training.
            more: further numbers for the row; learning_rate is in the line, too.
        """
        if self._line_is_due(step):
            values, rate, seconds = self._line.take()
            self._told = time.monotonic()
            self.say(self._text(step, share, elapsed, values, rate, seconds, more["learning_rate"]))
        if self._row_is_due(step):
            values, rate, _ = self._row.take()
            if self.summaries:
                numbers = {"images_per_second": rate, "memory_gb": peak_memory_gb()}
                self.summaries.scalars(step, values | numbers | more)

    def _text(
        self, step: int, share: float, elapsed: float, values: dict[str, float], rate: float, seconds: float, lr: float
    ) -> str:
        config = self.config
        total = "" if config.max_minutes else f"/{config.steps}"
        losses = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if name not in AFTER_LOSSES)
        if config.max_minutes:
            left = 60 * config.max_minutes - elapsed
        else:
            left = (config.steps - step) * config.batch_size / rate
        speed = f"{rate:.1f} images/s  ETA {clock(left)}"
        if self._steps == 1 and left > 0:  # most of the first step is the making of its graph
            speed = f"{seconds:.1f} s including startup"
        return (
            f"step {step}{total}  {100 * share:.1f}%  loss {values['loss']:.3f}  {losses}  lr {lr:.2g}  "
            f"{speed}  {peak_memory_gb():.1f} GB"
        )


def verdict(config: Config, step: int, epochs: float, scores: dict[str, float]) -> str:
    """What is wrong with a run that came to its end, and what to do; empty where nothing is known to be."""
    found = scores.get("mask_AP")
    if found is None or found >= 0.0005:
        return ""
    if not found >= 0:
        return "the evaluation set has no object of the model's classes to score: nothing is known of how good it is"
    if epochs < 10:
        advice = "that is short, train longer (epochs=30)"
    else:
        advice = (
            "check what the network sees (preview_augmentations=16) and at the categories of both sets, and try a "
            f"lower rate (learning_rate={config.train.learning_rate / 10:g})"
        )
    if config.train.init_weights in ("", "none"):
        advice += ", and start from trained weights (init_weights), as this run did not"
    return f"mask AP is 0.000 after {step} steps ({epochs:.1f} epochs), so this model finds nothing: {advice}"


class _Window:
    """The values of the steps since the last report."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forget the steps so far."""
        self._rows: list[dict[str, float]] = []
        self._start = time.monotonic()

    def add(self, row: dict[str, float]) -> None:
        """Take what a step returned."""
        self._rows.append(row)

    def take(self) -> tuple[dict[str, float], float, float]:
        """Means of the steps that were taken, the number of others, images a second, and the seconds."""
        taken = [row for row in self._rows if not (row["skipped"] or row["overflowed"])]
        names = [name for name in self._rows[0] if name not in ("stop", "clock")]
        values = {name: float(np.mean([row[name] for row in taken])) if taken else math.nan for name in names}
        values |= {name: sum(row[name] for row in self._rows) for name in ("skipped", "overflowed")}
        seconds = time.monotonic() - self._start
        rate = len(self._rows) * self.batch_size / seconds
        self.restart()
        return values, rate, seconds
