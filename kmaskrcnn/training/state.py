"""What a run needs to go on exactly, in checkpoints that are whole or not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import tensorflow as tf

from kmaskrcnn.errors import TrainingError
from kmaskrcnn.training.step import TrainStep

_PREFIX = "ckpt"


class TrainingState:
    """The state of a run and its newest checkpoints.

    A checkpoint is written beside its place, moved there, and only then named in the list of checkpoints, so a process
    that is killed at any moment leaves the earlier ones as they were.

    Args:
        directory: of the checkpoints; made if need be.
        model, step_function: whose variables are saved.
        keep: newest checkpoints kept.
        writes: whether this process saves; the others only read.

    Attributes:
        step: steps done.
        elapsed: seconds of training.
        best: the best score so far.
        scored: the step that was last evaluated.
    """

    def __init__(self, directory: Path, model: keras.Model, step_function: TrainStep, keep: int, writes: bool):
        self.directory, self.writes = directory, writes
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.elapsed = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self.best = tf.Variable(-1.0, dtype=tf.float64, trainable=False)
        self.scored = tf.Variable(-1, dtype=tf.int64, trainable=False)
        # Lists of variables and not the model, whose metrics only all workers together could save.
        parts = {"weights": model.weights, "optimizer": step_function.optimizer, "averages": step_function.averages}
        if step_function.loss_scale is not None:
            parts["loss_scale"] = step_function.loss_scale
        own = {"step": self.step, "elapsed": self.elapsed, "best": self.best, "scored": self.scored}
        self._checkpoint = tf.train.Checkpoint(**parts, **own)
        # Numbered by saves: a second save of a step must not write over the first.
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(directory), keep, checkpoint_name=_PREFIX)

    @property
    def newest(self) -> str:
        """The path of the newest checkpoint; empty where there is none."""
        return self._manager.latest_checkpoint or ""

    def restore(self) -> bool:
        """Read the newest checkpoint that is whole; returns whether there was one.

        Raises:
            TrainingError: the checkpoint is of other settings, or none of several can be read.
        """
        damaged = []
        for path in reversed(self._manager.checkpoints):
            try:
                self._checkpoint.restore(path).assert_existing_objects_matched()
            except (tf.errors.OpError, IndexError, RuntimeError) as error:  # the reader has exceptions of its own
                damaged.append(f"{path} cannot be read ({_first_line(error)})")
                continue
            except (AssertionError, ValueError) as error:
                raise TrainingError(
                    f"{path} does not fit these settings ({_first_line(error)}): "
                    "keep --optimizer, --ema_decay and --dtype as they were, or choose another --model_dir"
                ) from None
            for line in damaged:
                print(f"{line}; the one before it is whole")
            self._clean()
            return True
        if damaged:
            raise TrainingError(f"{'; '.join(damaged)}: mend it, or remove the folder to start afresh")
        self._clean()
        return False

    def save(self, step: int, elapsed: float) -> None:
        """Write a checkpoint; raises TrainingError where that fails, with the earlier ones as they were."""
        self.step.assign(step)
        self.elapsed.assign(elapsed)
        if not self.writes:
            return
        try:
            self._manager.save()
        except (OSError, tf.errors.OpError) as error:
            self._clean()
            raise self.failure(step, error) from None

    def failure(self, step: int, error: Exception) -> TrainingError:
        """The exception for a step that could not be saved."""
        whole = f"what was saved before is whole: {self.newest}" if self.newest else "nothing was saved before"
        return TrainingError(f"step {step} could not be saved in {self.directory} ({_first_line(error)}); {whole}")

    def _clean(self) -> None:
        """Remove what a killed or failed save left behind."""
        if not self.writes or not self.directory.is_dir():
            return
        known = {Path(path).name for path in self._manager.checkpoints}
        for path in self.directory.glob(f"{_PREFIX}-*"):
            if path.name.split(".")[0] not in known:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
