"""The guard against losses and gradients that are not finite."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kmaskrcnn.errors import TrainingError
from kmaskrcnn.training.step import AFTER_LOSSES

# Steps in a row with a non-finite loss or gradient after which going on is pointless.
_MAX_SKIPPED = 10
# Batches kept for inspection.
_MAX_FILES = 5


class Guard:
    """Looks at what each step returned; tells of those that were left out and keeps their batches.

    A batch is a function of the seed and the step, so it is made again instead of every batch being held.

    Args:
        stops: end the run at the first such step, as on_nonfinite="stop" has it.
        folder: where batches are kept.
        worker: the number of this worker, for the names of files.
        batch_of: this worker's batch of a step, by name.
        newest: the path of the newest checkpoint.
    """

    def __init__(
        self,
        stops: bool,
        folder: Path,
        worker: int,
        batch_of: Callable[[int], Mapping[str, Any]],
        newest: Callable[[], str],
    ):
        self.stops, self.folder, self.worker, self.batch_of, self.newest = stops, folder, worker, batch_of, newest
        self.skipped_in_a_row = 0

    def check(self, step: int, values: Mapping[str, float]) -> None:
        """Look at the values of a step by name.

        Raises:
            TrainingError: this step was not finite and on_nonfinite is "stop", or ten in a row were not.
        """
        if not values["skipped"]:
            self.skipped_in_a_row = 0
            return
        self.skipped_in_a_row += 1
        told = [name for name in values if name == "gradient_norm" or name not in AFTER_LOSSES]
        numbers = ", ".join(f"{name} {values[name]:g}" for name in told)
        images, file = self._keep_batch(step)
        kept = f", kept in {file}" if file else ""
        line = f"step {step} was skipped, not finite ({numbers}); its images are {images}{kept}"
        if not self.stops and self.skipped_in_a_row < _MAX_SKIPPED:
            print(line, file=sys.stderr, flush=True)  # on stderr, for the workers beside the first are silent else
            return
        times = "" if self.stops else f", the {self.skipped_in_a_row}th in a row"
        raise TrainingError(
            f"{line}{times}; look at them, lower learning_rate or set clip_norm. "
            f"Newest checkpoint: {self.newest() or 'none'}"
        )

    def _keep_batch(self, step: int) -> tuple[list[int], Path | None]:
        """The ids of this worker's images, and the file with its part of the batch."""
        batch = self.batch_of(step)
        file = self.folder / f"step-{step}-worker-{self.worker}.npz"
        self.folder.mkdir(exist_ok=True)
        kept = sum(path.name.endswith(f"-worker-{self.worker}.npz") for path in self.folder.iterdir())
        if kept >= _MAX_FILES:
            return batch["image_ids"].tolist(), None
        try:
            np.savez_compressed(file, **batch)
        except OSError:  # a full disk is reported where a checkpoint is lost
            file.unlink(missing_ok=True)
            return batch["image_ids"].tolist(), None
        return batch["image_ids"].tolist(), file
