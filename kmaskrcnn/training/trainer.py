"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from kmaskrcnn.config import Config
from kmaskrcnn.data import CocoDataset, training_dataset
from kmaskrcnn.model import LOSSES, MaskRCNN
from kmaskrcnn.progress import clock
from kmaskrcnn.training import checkpoints
from kmaskrcnn.training.errors import TrainingError
from kmaskrcnn.training.schedules import learning_rate
from kmaskrcnn.training.step import VALUES, TrainStep, build_optimizer
from kmaskrcnn.training.summaries import Summaries, peak_memory_gb

# Steps in a row with a non-finite loss or gradient after which going on is pointless.
_MAX_SKIPPED = 10
# Exit code of a run that a signal ended after its state was saved: start it again to go on.
EXIT_INTERRUPTED = 75

# (model, step) -> scores by name, and pictures by name
Evaluate = Callable[[MaskRCNN, int], tuple[dict[str, float], dict[str, np.ndarray]]]


@dataclasses.dataclass
class Outcome:
    """How a run ended: the step it came to, the last scores, and whether a signal ended it."""

    step: int
    scores: dict[str, float]
    interrupted: bool


class Trainer:
    """Trains a model in a model folder; made anew on the same folder, it goes on where the last one stopped.

    Args:
        config: the resolved settings; config.train.model_dir names the folder.
        train_set: what to train on.
        evaluate: scores a model, or None; `mask_AP` chooses the best.

    Raises:
        TrainingError: the folder cannot be written or holds another model.
        ConfigError, WeightsError: init_weights names nothing that fits.
    """

    def __init__(self, config: Config, train_set: CocoDataset, evaluate: Evaluate | None = None):
        self.config, self.train_set, self.evaluate = config, train_set, evaluate
        self.labels = checkpoints.Labels(tuple(train_set.class_names), tuple(train_set.category_ids))
        self.directory: Path = checkpoints.prepare_directory(config.train.model_dir, config, self.labels)
        self.model = checkpoints.build_model(config)
        self.step_function = TrainStep(self.model, build_optimizer(config.train, self.model), config.train)
        self.step = tf.Variable(0, dtype=tf.int64)
        self.elapsed = tf.Variable(0.0, dtype=tf.float64)
        self.best = tf.Variable(-1.0, dtype=tf.float64)
        state = tf.train.Checkpoint(
            model=self.model,
            optimizer=self.step_function.optimizer,
            averages=self.step_function.averages,
            step=self.step,
            elapsed=self.elapsed,
            best=self.best,
        )
        self.manager = tf.train.CheckpointManager(
            state, str(self.directory / "checkpoints"), config.train.keep_checkpoints, step_counter=self.step
        )
        self._stop_signal: int | None = None
        self._resume_or_initialise(state)

    def _resume_or_initialise(self, state: tf.train.Checkpoint) -> None:
        if self.manager.latest_checkpoint:
            try:
                state.restore(self.manager.latest_checkpoint).assert_existing_objects_matched()
            except (AssertionError, ValueError, tf.errors.OpError) as error:
                raise TrainingError(
                    f"{self.manager.latest_checkpoint} does not fit these settings ({str(error).splitlines()[0]}): "
                    "keep --optimizer and --ema_decay as they were, or choose another --model_dir"
                ) from None
            print(f"going on from {self.manager.latest_checkpoint}")
            return
        source = self.config.train.init_weights
        if source and source != "none":
            print(checkpoints.load_initial_weights(self.model, source))
        self.step_function.reset_averages()

    def train(self) -> Outcome:
        """Run to the end of the steps or the time, to a signal (SIGINT, SIGTERM), or to an error.

        Raises:
            TrainingError: ten steps in a row had a non-finite loss or gradient (names the images), or a checkpoint
                could not be written.
        """
        train = self.config.train
        step, scored = int(self.step.numpy()), -1
        summaries = Summaries(self.directory, step)
        scores: dict[str, float] = {}
        window = _Window(train.batch_size)
        try:
            with self._signals():
                before = time.monotonic() - float(self.elapsed.numpy())
                for batch in self._batches(step):
                    elapsed = time.monotonic() - before
                    share = self._share(step, elapsed)
                    if share >= 1.0 or self._stop_signal is not None:
                        break
                    rate = learning_rate(train, step, share)
                    window.add(self.step_function(batch, rate, step), batch)
                    step += 1
                    if step % train.log_every == 0:
                        self._report(window, summaries, step, rate, time.monotonic() - before)
                    if step % train.checkpoint_every == 0:
                        self._save(step, time.monotonic() - before)
                    if train.eval_every and step % train.eval_every == 0:
                        pause = time.monotonic()
                        scores, scored = self._score(summaries, step), step
                        before += time.monotonic() - pause  # the budget is for training
                        window.restart()
                elapsed = time.monotonic() - before
                self._save(step, elapsed)
                if self._stop_signal is None and scored != step:
                    scores = self._score(summaries, step)
                    self._save(step, elapsed)
            interrupted = self._stop_signal is not None
            if interrupted:
                print(
                    f"{signal.Signals(self._stop_signal).name}: saved step {step} in {self.directory}; "
                    "the same command goes on from there"
                )
        finally:
            summaries.close()
        return Outcome(step, scores, interrupted)

    def _batches(self, step: int) -> Iterator[dict[str, tf.Tensor]]:
        train = self.config.train
        yield from training_dataset(self.train_set, self.config.data, train.batch_size, train.seed, start_step=step)

    def _share(self, step: int, elapsed: float) -> float:
        if self.config.train.max_minutes:
            return elapsed / (60.0 * self.config.train.max_minutes)
        return step / self.config.train.steps

    def _save(self, step: int, elapsed: float) -> None:
        self.step.assign(step)
        self.elapsed.assign(elapsed)
        try:
            self.manager.save()
            with self.step_function.averaged_weights():
                checkpoints.save_weights(self.model, self.directory / checkpoints.LAST)
        except (OSError, tf.errors.OpError) as error:
            raise TrainingError(
                f"step {step} could not be saved in {self.directory} ({str(error).splitlines()[0]}); "
                f"what was saved before is whole: {self.manager.latest_checkpoint}"
            ) from None

    def _report(self, window: _Window, summaries: Summaries, step: int, rate: float, elapsed: float) -> None:
        train = self.config.train
        values, images_a_second = window.take()
        share = self._share(step, elapsed)
        losses = "  ".join(f"{name} {values[name]:.3f}" for name in LOSSES)
        total = "" if train.max_minutes else f"/{train.steps}"
        memory = peak_memory_gb()
        if train.max_minutes:
            remaining = 60 * train.max_minutes - elapsed
        else:
            remaining = (train.steps - step) * train.batch_size / images_a_second
        print(
            f"step {step}{total}  {100 * share:.1f}%  loss {values['loss']:.3f}  {losses}  lr {rate:.2g}  "
            f"{images_a_second:.1f} images/s  ETA {clock(remaining)}  {memory:.1f} GB",
            flush=True,
        )
        summaries.scalars(
            step, values | {"learning_rate": rate, "images_per_second": images_a_second, "memory_gb": memory}
        )
        if window.skipped_in_a_row >= _MAX_SKIPPED:
            raise TrainingError(
                f"step {step}: the loss or a gradient was not finite {window.skipped_in_a_row} times in a row, last on "
                f"the images {window.skipped_images}; lower --learning_rate, set --clip_norm, or look at these images"
            )

    def _score(self, summaries: Summaries, step: int) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        with self.step_function.averaged_weights():
            scores, pictures = self.evaluate(self.model, step)
            if scores["mask_AP"] > float(self.best.numpy()):
                self.best.assign(scores["mask_AP"])
                checkpoints.save_weights(self.model, self.directory / checkpoints.BEST)
        summaries.scalars(step, scores, "evaluation")
        summaries.pictures(step, pictures)
        return scores

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into a wish to stop after the step; a second one acts as usual."""

        def wish(number: int, _: object) -> None:
            self._stop_signal = number
            for other, handler in old.items():
                signal.signal(other, handler)

        old = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class _Window:
    """The values of the steps between two reports, left on the device: reading them each step would stall it."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.skipped_in_a_row = 0
        self.skipped_images: list[int] = []
        self.restart()

    def restart(self) -> None:
        """Forget the steps so far."""
        self._values: list[tf.Tensor] = []
        self._image_ids: list[tf.Tensor] = []
        self._start = time.monotonic()

    def add(self, values: tf.Tensor, batch: dict[str, tf.Tensor]) -> None:
        """Take what a step returned."""
        self._values.append(values)
        self._image_ids.append(batch["image_ids"])

    def take(self) -> tuple[dict[str, float], float]:
        """Means since the last report, skipped steps left out of all but their number, and images a second."""
        rows = np.stack([v.numpy() for v in self._values])  # (steps, len(VALUES))
        skipped = rows[:, VALUES.index("skipped")] > 0
        for bad, ids in zip(skipped, self._image_ids, strict=True):
            self.skipped_in_a_row = self.skipped_in_a_row + 1 if bad else 0
            if bad:
                self.skipped_images = ids.numpy().tolist()
        means = rows[~skipped].mean(axis=0) if not skipped.all() else np.full(len(VALUES), np.nan)
        values = dict(zip(VALUES, map(float, means), strict=True)) | {"skipped": float(skipped.sum())}
        rate = len(rows) * self.batch_size / (time.monotonic() - self._start)
        self.restart()
        return values, rate
