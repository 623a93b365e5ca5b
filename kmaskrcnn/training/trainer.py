"""The training loop."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from kmaskrcnn import model_folder, precision
from kmaskrcnn.cluster import Cluster
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.data import CocoDataset, DataError, steps_per_epoch
from kmaskrcnn.model import MaskRCNN
from kmaskrcnn.progress import phase
from kmaskrcnn.training.agreement import Agreement
from kmaskrcnn.training.batches import Batches
from kmaskrcnn.training.callbacks import Callbacks
from kmaskrcnn.training.changes import what_changed, write_set_facts
from kmaskrcnn.training.folder_lock import FolderLock
from kmaskrcnn.training.guard import Guard
from kmaskrcnn.training.run_log import RunLog
from kmaskrcnn.training.schedules import learning_rate, scaled_rate
from kmaskrcnn.training.signals import StopSignals
from kmaskrcnn.training.state import TrainingState
from kmaskrcnn.training.step import TrainStep, build_optimizer
from kmaskrcnn.training.summaries import Summaries

# (model, step) -> scores by name, and images by name
Evaluate = Callable[[MaskRCNN, int], tuple[dict[str, float], dict[str, np.ndarray]]]
# Settings that workers may have of their own.
_OWN_SETTINGS = ("model_dir", "train_images", "val_images", "train_annotations", "val_annotations", "data_threads")


@dataclasses.dataclass
class Outcome:
    """How a run ended: the step and the epochs it came to, the last scores, and whether a signal ended it."""

    step: int
    epochs: float
    scores: dict[str, float]
    interrupted: bool


class Trainer:
    """Trains a model in a model folder; a new one on the same folder resumes where the last one stopped.

    With several workers each of them creates one, and they take every step, evaluation and end together; the first
    writes the folder, which all of them must see.

    Args:
        config: the settings; config.train.model_dir names the folder.
        train_set: the data set to train on.
        evaluate: (model, step) -> scores and images by name, or None; `mask_AP` chooses the best weights. Called on
            every worker at the same steps; a long one should call `pulse` now and then.
        cluster: the devices and workers that train together; default: this process on one device.
        beat: called after each step and checkpoint, for a watchdog.
        callbacks: Keras callbacks, called as `Callbacks` says, on the first worker; `model.stop_training` ends a run of
            one worker.
        find_weights: turns init_weights into the file or folder to start from, if it names published weights.

    Attributes:
        unsaved: whether steps were taken since the start; a signal before that finds nothing to save.

    Raises:
        TrainingError: the folder is in use, cannot be written or holds another model, or workers have different
            settings.
        ConfigError, WeightsError: the batch does not divide, or init_weights names nothing that fits.
    """

    def __init__(
        self,
        config: Config,
        train_set: CocoDataset,
        evaluate: Evaluate | None = None,
        cluster: Cluster | None = None,
        beat: Callable[[], None] = lambda: None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        find_weights: Callable[[str], str] = str,
    ):
        self.steps_per_epoch = steps_per_epoch(train_set, config.data, config.train.batch_size)
        if config.train.epochs:
            config = config.replace(steps=max(1, round(config.train.epochs * self.steps_per_epoch)))
        if config.train.patience and evaluate is None:
            raise ConfigError(f"patience={config.train.patience}: needs an evaluation, so val_annotations")
        self.train_set, self.evaluate, self.beat = train_set, evaluate, beat
        self._find_weights = find_weights
        self.cluster = cluster or Cluster(tf.distribute.get_strategy())
        self.config = config = self._with_dtype(config)
        self.slots = self.cluster.slots(config.train.batch_size, config.train.accumulate_steps)
        self.labels = model_folder.Labels(tuple(train_set.class_names), tuple(train_set.category_ids))
        self.unsaved = self._profiling = False
        self._signals = StopSignals()
        with self.cluster.in_turn():
            if self.cluster.is_chief:
                self.directory = model_folder.open_directory(config.train.model_dir, config, self.labels)
                self._lock = FolderLock(self.directory)
            else:
                self.directory = model_folder.check_directory(config.train.model_dir, config, self.labels)
        try:
            self._build(callbacks)
        except BaseException:
            self._release()
            raise

    def _build(self, callbacks: Sequence[keras.callbacks.Callback]) -> None:
        config, chief = self.config, self.cluster.is_chief
        with self.cluster.strategy.scope(), phase("building the network"):
            self.model = model_folder.build_model(config)
            self.step_function = TrainStep(self.model, build_optimizer(config.train, self.model), config.train)
        self.state = TrainingState(
            self.directory / "checkpoints", self.model, self.step_function, config.train.keep_checkpoints, chief
        )
        self._batches = Batches(self.train_set, config, self.cluster, self.slots)
        self._callbacks = Callbacks(
            callbacks if chief else (),
            self.model,
            self.step_function.optimizer,
            self.steps_per_epoch,
            config.train.steps,
        )
        self._resume_or_initialize()
        self._check_workers()
        if chief:  # not before the run is known to fit what is there
            model_folder.write_settings(self.directory, config, self.labels)
            write_set_facts(self.directory, self.train_set)

    def _release(self) -> None:
        if self.cluster.is_chief:
            self._lock.release()

    def _with_dtype(self, config: Config) -> Config:
        """The settings with the precision that dtype="auto" means: that of the model folder, or the chief's measure."""
        saved = model_folder.saved_dtype(config.train.model_dir)
        if config.train.dtype != precision.AUTO:
            if config.train.dtype != saved and (warning := precision.slow_bfloat16(config.train.dtype)):
                self._say(warning)
            return config
        dtype = saved or precision.resolve_dtype(precision.AUTO)
        return config.replace(dtype=self.cluster.gather(dtype.encode())[0].decode())

    def _resume_or_initialize(self) -> None:
        if self.state.restore():
            self._say(f"resuming from step {int(self.state.step.numpy())}, {self.state.newest}")
            for line in what_changed(self.directory, self.config, self.train_set):
                self._say(line)
            return
        source = self.config.train.init_weights
        if source and source != "none":
            with phase(f"reading the weights {source}"):
                self._say(model_folder.load_initial_weights(self.model, self._find_weights(source)))
        elif not source:
            self._say("starting from random weights, which takes many images and steps; init_weights names better ones")
        self.step_function.reset_averages()

    def _check_workers(self) -> None:
        settings = {}
        for group in dataclasses.asdict(self.config).values():
            settings |= {name: str(value) for name, value in group.items() if name not in _OWN_SETTINGS}
        images = f"{len(self.train_set)} images, {len(self.train_set.boxes)} objects"
        step = str(int(self.state.step.numpy()))
        self.cluster.check_equal(**settings, step=step, labels=str(self.labels), train_set=images)

    def train(self) -> Outcome:
        """Train until the end of the steps or the time, a signal (SIGINT, SIGTERM), or an error.

        Raises:
            TrainingError: losses or gradients were not finite (on_nonfinite), or a checkpoint could not be written.
            WorkerLost: another worker died.
        """
        self._say(self._plan())
        step = int(self.state.step.numpy())
        tensorboard = "tensorboard" in self.config.train.logger
        summaries = None
        try:
            if self.cluster.is_chief:
                self._lock = FolderLock(self.directory)
                summaries = Summaries(self.directory, step, tensorboard)
            with self._signals, self.cluster.watch():
                self._callbacks.begin()
                outcome = self._loop(summaries)
                self._callbacks.end()
                return outcome
        except _Interrupted:  # the step was saved before the evaluation, which the other workers need not hear of
            step = int(self.state.step.numpy())
            self._say_stopped(step)
            return self._outcome(step, {}, True)
        finally:
            if summaries:
                summaries.close()
            self._release()

    def _outcome(self, step: int, scores: dict[str, float], interrupted: bool) -> Outcome:
        return Outcome(step, step / self.steps_per_epoch, scores, interrupted)

    def _plan(self) -> str:
        train, cluster = self.config.train, self.cluster
        parts = f" x {train.accumulate_steps} parts" if train.accumulate_steps > 1 else ""
        rule = f" x {train.batch_size}/{train.reference_batch_size}" if train.reference_batch_size else ""
        return (
            f"{train.batch_size} images per step: {cluster.replicas} devices of {cluster.workers} workers x "
            f"{len(self.slots[0])} images{parts}; learning rate {train.learning_rate:g}{rule} = {scaled_rate(train):g}"
        )

    def _loop(self, summaries: Summaries | None) -> Outcome:
        train = self.config.train
        step, scores = int(self.state.step.numpy()), {}
        guard = Guard(
            train.on_nonfinite == "stop",
            self.directory / "nonfinite",
            self.cluster.worker,
            self._whole_batch,
            lambda: self.state.newest,
        )
        run_log = RunLog(train, summaries, self._say)
        self._batches.start(step)
        before = time.monotonic() - float(self.state.elapsed.numpy())
        agreed = Agreement(float(self.state.elapsed.numpy()))
        results: list[tuple[int, tf.Tensor]] = []  # of steps that were started and not looked at

        # Several workers must stop at the same step.
        alone = self.cluster.workers == 1

        def stopping() -> bool:
            return self._signals.number is not None if alone else agreed.stop > 0

        def settle(left: int = 0) -> None:
            while len(results) > left:
                number, result = results.pop(0)
                values = dict(zip(self.step_function.names, map(float, result.numpy()), strict=True))
                guard.check(number, values)
                run_log.add(values)
                self._callbacks.step(number, values)
                agreed.hear(number, values)

        while True:
            if not stopping() and self._evaluation_due(step):
                settle()
                pause = time.monotonic()
                self._save(step, pause - before)
                scores = self._score(summaries, step)
                self._save(step, pause - before, anew=True)
                before += time.monotonic() - pause  # max_minutes is for training
                run_log.restart()
            own = time.monotonic() - before
            elapsed = own if alone else agreed.clock
            share = self._share(step, elapsed)
            if share >= 1.0 or stopping() or self._wants_end():
                break
            rate = learning_rate(train, step, share)
            self._profile(step)
            try:
                parts = self._batches.take(step)
            except DataError:  # what was done up to here is not lost
                settle()
                if self.unsaved:
                    self._save(step, elapsed)
                raise
            first, pause = not self.unsaved, time.monotonic()
            values = self._take_step(parts, rate, step, own)
            if first:
                before += time.monotonic() - pause  # most of it is tracing, which is no training either
            results.append((step, values))
            step += 1
            settle(left=1)  # waits for the step before, while this one runs
            agreed.advance(step)
            self.beat()
            if run_log.is_due(step):
                settle()
                run_log.tell(step, self._share(step, elapsed), elapsed, self._numbers(rate))
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
        elif self._out_of_patience():
            best = float(self.state.best.numpy())
            self._say(
                f"early stopping at step {step}: no mask AP above {best:.3f} in {train.patience} evaluations (patience)"
            )
        return self._outcome(step, scores, stopping())

    def _take_step(self, parts: list, rate: float, step: int, clock: float) -> tf.Tensor:
        stop = self._signals.number is not None
        if self.unsaved:
            return self.step_function(parts, rate, step, stop, clock)
        with phase("tracing the graph of a training step"):
            values = self.step_function(parts, rate, step, stop, clock)
            values.numpy()
        self.unsaved = True
        return values

    def _numbers(self, rate: float) -> dict[str, float]:
        numbers = {"learning_rate": rate}
        if self.step_function.loss_scale is not None:
            numbers["loss_scale"] = float(self.step_function.loss_scale.numpy()[0])
        if self._batches.left_out:
            numbers["unreadable_images"] = float(len(self._batches.left_out))
        return numbers

    def pulse(self) -> None:
        """Report progress of an evaluation, after each of its batches; a signal ends it here."""
        self.beat()
        if self._signals.number is not None:
            raise _Interrupted

    def batches(self, step: int) -> tf.data.Dataset:
        """This worker's part of the batches from a step on, each part of a step and device by itself."""
        return self._batches.dataset(step)

    def _whole_batch(self, step: int) -> dict[str, np.ndarray]:
        """This worker's batch of a step."""
        parts = list(self.batches(step).take(len(self.slots)))
        return {name: tf.concat([part[name] for part in parts], axis=0).numpy() for name in parts[0]}

    def _share(self, step: int, elapsed: float) -> float:
        if self.config.train.max_minutes:
            return elapsed / (60.0 * self.config.train.max_minutes)
        return step / self.config.train.steps

    def _evaluation_due(self, step: int) -> bool:
        every = self.config.train.eval_every
        return bool(every and step and step % every == 0) and int(self.state.scored.numpy()) != step

    def _wants_end(self) -> bool:
        """Whether the run is to end before its time, for which each worker has the same reasons."""
        return self._out_of_patience() or (self.cluster.workers == 1 and self._callbacks.wants_stop)

    def _out_of_patience(self) -> bool:
        return 0 < self.config.train.patience <= int(self.state.stale.numpy())

    def _save(self, step: int, elapsed: float, anew: bool = False) -> None:
        """Save a step, once unless `anew`: after an evaluation."""
        if self.state.newest and int(self.state.step.numpy()) == step and not anew:
            return
        self.state.save(step, elapsed)
        self._save_weights(step, model_folder.LAST)
        self.beat()

    def _save_weights(self, step: int, name: str) -> None:
        if not self.cluster.is_chief:
            return
        try:
            with self.step_function.averaged_weights():
                model_folder.save_weights(self.model, self.directory / name)
        except OSError as error:
            raise self.state.failure(step, error) from None

    def _score(self, summaries: Summaries | None, step: int) -> dict[str, float]:
        self.state.scored.assign(step)
        if self.evaluate is None:
            return {}
        with self.step_function.averaged_weights():
            scores, overlays = self.evaluate(self.model, step)
        self._callbacks.scored(scores)
        if scores["mask_AP"] > float(self.state.best.numpy()):
            self.state.best.assign(scores["mask_AP"])
            self.state.stale.assign(0)
            self._save_weights(step, model_folder.BEST)
        else:
            self.state.stale.assign_add(1)
        if summaries:
            summaries.scalars(step, scores, "evaluation")
            summaries.overlays(step, overlays)
        return scores

    def _say_stopped(self, step: int) -> None:
        name = signal.Signals(self._signals.number).name if self._signals.number else "a signal to another worker"
        self._say(f"{name}: saved step {step} in {self.directory}; the same command resumes from there")

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


class _Interrupted(Exception):
    """A signal came during an evaluation."""
