"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from kmaskrcnn import precision
from kmaskrcnn.config import Config
from kmaskrcnn.data import CocoDataset, training_dataset
from kmaskrcnn.model import LOSSES, MaskRCNN
from kmaskrcnn.progress import clock
from kmaskrcnn.training import checkpoints
from kmaskrcnn.training.cluster import Cluster
from kmaskrcnn.training.guard import Guard
from kmaskrcnn.training.schedules import learning_rate, scaled_rate
from kmaskrcnn.training.state import TrainingState
from kmaskrcnn.training.step import VALUES, TrainStep, build_optimizer
from kmaskrcnn.training.summaries import Summaries, peak_memory_gb

# (model, step) -> scores by name, and pictures by name
Evaluate = Callable[[MaskRCNN, int], tuple[dict[str, float], dict[str, np.ndarray]]]
# Settings that workers may have of their own.
_OWN_SETTINGS = ("model_dir", "train_images", "val_images", "train_annotations", "val_annotations", "data_threads")


@dataclasses.dataclass
class Outcome:
    """How a run ended: the step it came to, the last scores, and whether a signal ended it."""

    step: int
    scores: dict[str, float]
    interrupted: bool


class Trainer:
    """Trains a model in a model folder; made anew on the same folder, it goes on where the last one stopped.

    With several workers each of them makes one, and they take every step, evaluation and end together; the first
    writes the folder, which all of them must see.

    Args:
        config: the resolved settings; config.train.model_dir names the folder.
        train_set: what to train on.
        evaluate: scores a model, or None; `mask_AP` chooses the best. Called on every worker at the same steps; it
            should call `pulse` now and then.
        cluster: who trains together; default: this process on one device.
        beat: called after each step and checkpoint, for a watchdog.

    Raises:
        TrainingError: the folder cannot be written or holds another model, or workers have different settings.
        ConfigError, WeightsError: the batch does not divide, or init_weights names nothing that fits.
    """

    def __init__(
        self,
        config: Config,
        train_set: CocoDataset,
        evaluate: Evaluate | None = None,
        cluster: Cluster | None = None,
        beat: Callable[[], None] = lambda: None,
    ):
        self.train_set, self.evaluate, self.beat = train_set, evaluate, beat
        self.cluster = cluster or Cluster(tf.distribute.get_strategy())
        self.config = config = self._with_dtype(config)
        self.slots = self.cluster.slots(config.train.batch_size, config.train.accumulate_steps)
        self.labels = checkpoints.Labels(tuple(train_set.class_names), tuple(train_set.category_ids))
        self.directory = Path(config.train.model_dir)
        with self.cluster.in_turn():
            if self.cluster.is_chief:
                checkpoints.prepare_directory(self.directory, config, self.labels)
            else:
                checkpoints.check_directory(self.directory, config, self.labels)
        with self.cluster.strategy.scope():
            self.model = checkpoints.build_model(config)
            self.step_function = TrainStep(self.model, build_optimizer(config.train, self.model), config.train)
        self.state = TrainingState(
            self.directory / "checkpoints",
            self.model,
            self.step_function,
            config.train.keep_checkpoints,
            self.cluster.is_chief,
        )
        self._profiling = False
        self._stop_signal: int | None = None
        self._resume_or_initialise()
        self._check_workers()

    def _with_dtype(self, config: Config) -> Config:
        """The settings with the precision that --dtype=auto means: that of the model folder, or the chief's measure."""
        if config.train.dtype != precision.AUTO:
            if warning := precision.slow_bfloat16(config.train.dtype):
                self._say(warning)
            return config
        dtype = checkpoints.saved_dtype(config.train.model_dir) or precision.resolve_dtype(precision.AUTO)
        return config.replace(dtype=self.cluster.gather(dtype.encode())[0].decode())

    def _resume_or_initialise(self) -> None:
        if self.state.restore():
            self._say(f"going on from step {int(self.state.step.numpy())}, {self.state.newest}")
            return
        source = self.config.train.init_weights
        if source and source != "none":
            self._say(checkpoints.load_initial_weights(self.model, source))
        self.step_function.reset_averages()

    def _check_workers(self) -> None:
        settings = {}
        for group in dataclasses.asdict(self.config).values():
            settings |= {f"--{name}": str(value) for name, value in group.items() if name not in _OWN_SETTINGS}
        images = f"{len(self.train_set)} images, {len(self.train_set.boxes)} objects"
        step = str(int(self.state.step.numpy()))
        self.cluster.check_equal(**settings, step=step, labels=str(self.labels), train_set=images)

    def train(self) -> Outcome:
        """Run to the end of the steps or the time, to a signal (SIGINT, SIGTERM), or to an error.

        Raises:
            TrainingError: losses or gradients were not finite, as --on_nonfinite has it, or a checkpoint could not be
                written.
            WorkerLost: another worker died.
        """
        self._say(self._plan())
        summaries = Summaries(self.directory, int(self.state.step.numpy())) if self.cluster.is_chief else None
        try:
            with self._signals(), self.cluster.watch():
                return self._loop(summaries)
        except _Interrupted:  # the step was saved before the evaluation, which the other workers need not hear of
            step = int(self.state.step.numpy())
            self._say_stopped(step)
            return Outcome(step, {}, True)
        finally:
            if summaries:
                summaries.close()

    def _plan(self) -> str:
        train, cluster = self.config.train, self.cluster
        parts = f" x {train.accumulate_steps} parts" if train.accumulate_steps > 1 else ""
        rule = f" x {train.batch_size}/{train.reference_batch_size}" if train.reference_batch_size else ""
        return (
            f"{train.batch_size} images a step: {cluster.replicas} devices of {cluster.workers} workers x "
            f"{len(self.slots[0])} images{parts}; learning rate {train.learning_rate:g}{rule} = {scaled_rate(train):g}"
        )

    def _loop(self, summaries: Summaries | None) -> Outcome:
        train = self.config.train
        step, scores = int(self.state.step.numpy()), {}
        guard = Guard(self)
        window = _Window(train.batch_size)
        batches = self._batches(step)
        before = time.monotonic() - float(self.state.elapsed.numpy())
        agreed = {"stop": 0.0, "clock": float(self.state.elapsed.numpy())}
        results: list[tuple[int, tf.Tensor]] = []  # of steps that were started and not looked at

        # Several workers must stop at the same step, so they go by what they told each other in an earlier one.
        alone = self.cluster.workers == 1

        def stopping() -> bool:
            return self._stop_signal is not None if alone else agreed["stop"] > 0

        def settle(left: int = 0) -> None:
            while len(results) > left:
                number, result = results.pop(0)
                values = result.numpy()
                guard.check(number, values)
                window.add(values)
                agreed.update({name: float(values[VALUES.index(name)]) for name in agreed})

        while True:
            if not stopping() and self._evaluation_due(step):
                settle()
                pause = time.monotonic()
                self._save(step, pause - before)
                scores = self._score(summaries, step)
                self._save(step, pause - before, anew=True)
                before += time.monotonic() - pause  # the budget is for training
                window.restart()
            own = time.monotonic() - before
            elapsed = own if alone else agreed["clock"]
            share = self._share(step, elapsed)
            if share >= 1.0 or stopping():
                break
            rate = learning_rate(train, step, share)
            self._profile(step)
            parts = [next(batches) for _ in range(train.accumulate_steps)]
            results.append((step, self.step_function(parts, rate, step, self._stop_signal is not None, own)))
            step += 1
            settle(left=1)  # waits for the step before, while this one runs
            self.beat()
            if step % train.log_every == 0:
                settle()
                self._report(window, summaries, step, rate, elapsed)
            if step % train.checkpoint_every == 0:
                settle()
                self._save(step, time.monotonic() - before)
        settle()
        self._profile(math.inf)
        self._save(step, elapsed)
        if not stopping() and int(self.state.scored.numpy()) != step:
            scores = self._score(summaries, step)
            self._save(step, elapsed, anew=True)
        self.cluster.barrier()
        if stopping():
            self._say_stopped(step)
        return Outcome(step, scores, stopping())

    def pulse(self) -> None:
        """Tell that an evaluation goes on, after each of its batches; a signal ends it here."""
        self.beat()
        if self._stop_signal is not None:
            raise _Interrupted

    def batches(self, step: int) -> tf.data.Dataset:
        """This worker's part of the batches from a step on, each part of a step and device by itself."""
        train = self.config.train
        return training_dataset(self.train_set, self.config.data, train.batch_size, train.seed, step, self.slots)

    def _batches(self, step: int) -> Iterator[dict[str, tf.Tensor]]:
        return iter(self.cluster.strategy.distribute_datasets_from_function(lambda _: self.batches(step)))

    def _share(self, step: int, elapsed: float) -> float:
        if self.config.train.max_minutes:
            return elapsed / (60.0 * self.config.train.max_minutes)
        return step / self.config.train.steps

    def _evaluation_due(self, step: int) -> bool:
        every = self.config.train.eval_every
        return bool(every and step and step % every == 0) and int(self.state.scored.numpy()) != step

    def _save(self, step: int, elapsed: float, anew: bool = False) -> None:
        """Save a step, once unless `anew`: after an evaluation."""
        if self.state.newest and int(self.state.step.numpy()) == step and not anew:
            return
        self.state.save(step, elapsed)
        self._save_weights(step, checkpoints.LAST)
        self.beat()

    def _save_weights(self, step: int, name: str) -> None:
        if not self.cluster.is_chief:
            return
        try:
            with self.step_function.averaged_weights():
                checkpoints.save_weights(self.model, self.directory / name)
        except OSError as error:
            raise self.state.failure(step, error) from None

    def _report(self, window: _Window, summaries: Summaries | None, step: int, rate: float, elapsed: float) -> None:
        train = self.config.train
        values, images_a_second = window.take()
        if summaries is None:
            return
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
        more = {"learning_rate": rate, "images_per_second": images_a_second, "memory_gb": memory}
        if self.step_function.loss_scale is not None:
            more["loss_scale"] = float(self.step_function.loss_scale.numpy()[0])
        summaries.scalars(step, values | more)

    def _score(self, summaries: Summaries | None, step: int) -> dict[str, float]:
        self.state.scored.assign(step)
        if self.evaluate is None:
            return {}
        with self.step_function.averaged_weights():
            scores, pictures = self.evaluate(self.model, step)
        if scores["mask_AP"] > float(self.state.best.numpy()):
            self.state.best.assign(scores["mask_AP"])
            self._save_weights(step, checkpoints.BEST)
        if summaries:
            summaries.scalars(step, scores, "evaluation")
            summaries.pictures(step, pictures)
        return scores

    def _say_stopped(self, step: int) -> None:
        name = signal.Signals(self._stop_signal).name if self._stop_signal else "a signal to another worker"
        self._say(f"{name}: saved step {step} in {self.directory}; the same command goes on from there")

    def _say(self, line: str) -> None:
        if self.cluster.is_chief:
            print(line, flush=True)

    def _profile(self, step: float) -> None:
        """Start or end the profile before a step is taken."""
        if not self.config.train.profile_steps:
            return
        first, last = self.config.train.profile_steps
        if step == first:
            tf.profiler.experimental.start(str(self.directory / "tensorboard"))
            self._profiling = True
        if self._profiling and step > last:
            tf.profiler.experimental.stop()
            self._profiling = False
            self._say(f"profile of the steps {first} to {last}: {self.directory / 'tensorboard'}")

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


class _Interrupted(Exception):
    """A signal came during an evaluation."""


class _Window:
    """The values of the steps between two reports."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        """Forget the steps so far."""
        self._rows: list[np.ndarray] = []
        self._start = time.monotonic()

    def add(self, row: np.ndarray) -> None:
        """Take what a step returned."""
        self._rows.append(row)

    def take(self) -> tuple[dict[str, float], float]:
        """Means since the last report, of the steps that were taken, the number of others, and images a second."""
        rows = np.stack(self._rows)  # (steps, len(VALUES))
        lost = {name: rows[:, VALUES.index(name)] for name in ("skipped", "overflowed")}
        taken = rows[(lost["skipped"] + lost["overflowed"]) == 0]
        means = taken.mean(axis=0) if len(taken) else np.full(len(VALUES), math.nan)
        values = dict(zip(VALUES, map(float, means), strict=True)) | {k: float(v.sum()) for k, v in lost.items()}
        values = {name: values[name] for name in (*LOSSES, "loss", "gradient_norm", "skipped", "overflowed")}
        rate = len(rows) * self.batch_size / (time.monotonic() - self._start)
        self.restart()
        return values, rate
