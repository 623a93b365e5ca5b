"""What a run needs to resume exactly, in checkpoints that are either complete or not there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras
import tensorflow as tf

from kmaskrcnn.errors import TrainingError
from kmaskrcnn.results.labels import write_text
from kmaskrcnn.training.step import TrainStep

_INDEX = re.compile(r"ckpt-(\d+)\.index")
_FILE = re.compile(r"ckpt-(\d+)\.(?:index|data-\d{5}-of-\d{5})")
# What a save that was killed leaves: ours, and those of the releases that let TensorFlow write in place.
_REST = re.compile(r"part\.ckpt-.*|ckpt-\d+_temp.*|ckpt-\d+\.(?:index|data-\d{5}-of-\d{5})\.tempstate\d+")
_PART = "part."
_LIST = "checkpoint"  # the name that TensorFlow's tools look for


class TrainingState:
    """The state of a run and its newest checkpoints.

    The files ckpt-N.index of the folder are the list of its checkpoints, N the number of the save; TensorFlow's own
    list, `checkpoint`, is written for its tools and never relied on. A checkpoint is written beside its place and moved
    there, the index last, so a process that is killed at any moment leaves the earlier ones as they were. Files are
    listed and removed by name, never by a pattern, which characters of the folder's name would be part of.

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
        stale: evaluations since the best one.
    """

    def __init__(self, directory: Path, model: keras.Model, step_function: TrainStep, keep: int, writes: bool):
        self.directory, self.keep, self.writes = directory, keep, writes
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.elapsed = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self.best = tf.Variable(-1.0, dtype=tf.float64, trainable=False)
        self.scored = tf.Variable(-1, dtype=tf.int64, trainable=False)
        self.stale = tf.Variable(0, dtype=tf.int64, trainable=False)
        # Lists of variables and not the model, whose metrics only all workers together could save.
        parts = {"weights": model.weights, "optimizer": step_function.optimizer, "averages": step_function.averages}
        if step_function.loss_scale is not None:
            parts["loss_scale"] = step_function.loss_scale
        own = {"step": self.step, "elapsed": self.elapsed, "best": self.best, "scored": self.scored}
        self._checkpoint = tf.train.Checkpoint(**parts, **own, stale=self.stale)
        self._first_release = tf.train.Checkpoint(**parts, **own)  # whose checkpoints have no `stale`
        self._damaged: set[int] = set()

    @property
    def newest(self) -> str:
        """The path of the newest checkpoint that is not known to be damaged; empty where there is none."""
        whole = [number for number in self._numbers() if number not in self._damaged]
        return self._path(whole[-1]) if whole else ""

    def restore(self) -> bool:
        """Read the newest checkpoint that is whole; returns whether there was one.

        Raises:
            TrainingError: the checkpoint is of other settings, or there are checkpoints and none of them can be read.
        """
        told = []
        numbers = self._numbers()
        for number in reversed(numbers):
            path = self._path(number)
            try:
                self._read(number)
            except Exception as error:  # the readers have exceptions of their own, of every kind
                damage = self._damage(number)
                if damage:
                    self._damaged.add(number)
                    told.append(f"{path} cannot be read ({damage})")
                    continue
                if not isinstance(error, AssertionError | ValueError):
                    raise
                raise TrainingError(
                    f"{path} does not match these settings ({_first_line(error)}): "
                    "keep optimizer, ema_decay and dtype as they were, or choose another model_dir"
                ) from None
            self._tell(told, path)
            self._clean()
            return True
        if told:
            raise TrainingError(f"{'; '.join(told)}: repair it, or remove the folder to start over")
        self._check_lost_indices()
        self._clean()
        return False

    def save(self, step: int, elapsed: float) -> None:
        """Write a checkpoint; raises TrainingError where that fails, with the earlier ones as they were."""
        self.step.assign(step)
        self.elapsed.assign(elapsed)
        if not self.writes:
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            number = max((int(match[1]) for name in self._names() if (match := _FILE.fullmatch(name))), default=0) + 1
            part = _PART + Path(self._path(number)).name
            with _without_pattern(self.directory) as folder:
                self._checkpoint.write(str(folder / part))
            files = [name for name in self._names() if name.startswith(part + ".")]
            for name in sorted(files, key=lambda name: name.endswith(".index")):
                os.replace(self.directory / name, self.directory / name.removeprefix(_PART))
            self._prune()
            self._write_list()
        except (OSError, tf.errors.OpError) as error:
            self._clean()
            raise self.failure(step, error) from None

    def failure(self, step: int, error: Exception) -> TrainingError:
        """The exception for a step that could not be saved."""
        whole = f"what was saved before is intact: {self.newest}" if self.newest else "nothing was saved before"
        return TrainingError(f"step {step} could not be saved in {self.directory} ({_first_line(error)}); {whole}")

    def _path(self, number: int) -> str:
        return str(self.directory / f"ckpt-{number}")

    def _names(self) -> list[str]:
        return os.listdir(self.directory) if self.directory.is_dir() else []

    def _numbers(self) -> list[int]:
        return sorted(int(match[1]) for name in self._names() if (match := _INDEX.fullmatch(name)))

    def _read(self, number: int) -> None:
        with _without_pattern(self.directory) as folder:
            path = str(folder / f"ckpt-{number}")
            names = tf.train.load_checkpoint(path).get_variable_to_shape_map()
            has_all = any(name.startswith("stale/") for name in names)
            (self._checkpoint if has_all else self._first_release).read(path).assert_existing_objects_matched()

    def _damage(self, number: int) -> str:
        """Why a checkpoint cannot be read, by reading all of it against its checksums; empty where it is whole."""
        try:
            with _without_pattern(self.directory) as folder:
                reader = tf.train.load_checkpoint(str(folder / f"ckpt-{number}"))
                for name in reader.get_variable_to_shape_map():
                    reader.get_tensor(name)
        except Exception as error:  # as for `restore`
            return _first_line(error)
        return ""

    def _tell(self, told: list[str], path: str) -> None:
        """Say which checkpoints were passed over, and what became of a list that does not name the newest one."""
        for line in told:
            print(f"{line}; it stays where it is, and {path} is intact")
        listed = self._listed()
        if listed == Path(self._path(self._numbers()[-1])).name:
            return
        state = f"names {listed} as the newest" if listed else "is missing or cannot be read"
        print(f"{self.directory / _LIST} {state}: used the files beside it, of which {path} is the newest intact one")
        if self.writes:
            self._write_list()

    def _listed(self) -> str:
        """The newest checkpoint by TensorFlow's list; empty where the list is missing or damaged."""
        try:
            text = (self.directory / _LIST).read_bytes()
        except OSError:
            return ""
        match = re.search(rb'^model_checkpoint_path: "(?:[^"\n]*/)?(ckpt-\d+)"$', text, re.MULTILINE)
        return match[1].decode() if match else ""

    def _write_list(self) -> None:
        names = [f"ckpt-{number}" for number in self._numbers() if number not in self._damaged]
        lines = [f'model_checkpoint_path: "{names[-1]}"', *(f'all_model_checkpoint_paths: "{n}"' for n in names)]
        try:
            write_text(self.directory / _LIST, "\n".join(lines) + "\n")
        except OSError as error:  # no reason to end a run: the checkpoints are there
            print(f"{self.directory / _LIST} cannot be written: {error.strerror}", file=sys.stderr, flush=True)

    def _prune(self) -> None:
        """Remove the checkpoints before the newest `keep` whole ones, each index first: without it there is none."""
        whole = [number for number in self._numbers() if number not in self._damaged]
        oldest = whole[-self.keep :][0]
        for name in sorted(self._names(), key=lambda name: not name.endswith(".index")):
            match = _FILE.fullmatch(name)
            if match and int(match[1]) < oldest:
                (self.directory / name).unlink(missing_ok=True)

    def _check_lost_indices(self) -> None:
        """Raise TrainingError where there are data of checkpoints and none of their indices."""
        names = self._names()
        lost = [name for name in names if _FILE.fullmatch(name) and f"{_PART}{name.split('.')[0]}.index" not in names]
        if lost:
            raise TrainingError(
                f"{self.directory} holds {', '.join(sorted(lost)[:3])} without the .index that belongs to it, so that "
                "no checkpoint can be read: put the index back, or remove the folder to start over"
            )

    def _clean(self) -> None:
        """Remove what a killed or failed save or removal left behind."""
        if not self.writes:
            return
        numbers = set(self._numbers())
        for name in self._names():
            match, path = _FILE.fullmatch(name), self.directory / name
            if _REST.fullmatch(name) or (match and int(match[1]) not in numbers):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def _without_pattern(folder: Path) -> Iterator[Path]:
    """A path of the folder that TensorFlow's readers do not take for a pattern: they match names as a shell does."""
    if not re.search(r"[][*?\\]", str(folder)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        link = Path(temporary) / "folder"
        link.symlink_to(folder.resolve(), target_is_directory=True)
        yield link


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
