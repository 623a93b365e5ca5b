"""Keras callbacks in the training loop, and the loggers that are made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.training.step import AFTER_LOSSES


class _Model:
    """The model as callbacks see it: with the optimizer of the run and the wish to stop."""

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer):
        self._model, self.optimizer, self.stop_training = model, optimizer, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Callbacks:
    """Calls Keras callbacks as `fit` does, an epoch being a pass over the training images.

    Logs of a batch are its losses, `loss` and `gradient_norm`; those of an epoch their means, with the scores of the
    evaluations within it under their names and `val_` before them.

    Args:
        callbacks: of the chief; empty on the other workers.
        model, optimizer: of the run.
        steps_per_epoch, steps: of the run.
    """

    def __init__(
        self,
        callbacks: Sequence[keras.callbacks.Callback],
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        steps_per_epoch: int,
        steps: int,
    ):
        self.model = _Model(model, optimizer)
        self._steps_per_epoch = steps_per_epoch
        self._list = keras.callbacks.CallbackList(list(callbacks)) if callbacks else None
        if self._list:
            epochs = -(-steps // steps_per_epoch)
            self._list.set_params({"verbose": 0, "epochs": epochs, "steps": steps_per_epoch})
            self._list.set_model(self.model)
        self._rows: list[dict[str, float]] = []
        self._scores: dict[str, float] = {}
        self._epoch: int | None = None

    def begin(self) -> None:
        """Training begins."""
        if self._list:
            self._list.on_train_begin()

    def step(self, step: int, values: dict[str, float]) -> None:
        """A step was taken, `step` being those before it, and returned these values."""
        if not self._list:
            return
        epoch, batch = divmod(step, self._steps_per_epoch)
        if self._epoch != epoch:
            self._end_epoch()  # not before: an evaluation after its last step belongs to it
            self._epoch = epoch
            self._list.on_epoch_begin(epoch)
        self._list.on_train_batch_begin(batch)
        self._rows.append(values)
        self._list.on_train_batch_end(batch, _logs(values))

    def scored(self, scores: dict[str, float]) -> None:
        """An evaluation has ended."""
        if self._list:
            self._list.on_test_begin()
            self._scores = {f"val_{name}": value for name, value in scores.items()}
            self._list.on_test_end(dict(scores))

    def end(self) -> None:
        """Training has ended, maybe within an epoch."""
        if self._list:
            self._end_epoch()
            self._list.on_train_end()

    @property
    def wants_stop(self) -> bool:
        """Whether a callback set model.stop_training."""
        return bool(self.model.stop_training)

    def _end_epoch(self) -> None:
        if self._list and self._epoch is not None:
            means = {name: float(np.mean([row[name] for row in self._rows])) for name in self._rows[0]}
            self._list.on_epoch_end(self._epoch, _logs(means) | self._scores)
        self._rows, self._scores = [], {}


def _logs(values: dict[str, float]) -> dict[str, float]:
    return {name: v for name, v in values.items() if name in ("loss", "gradient_norm") or name not in AFTER_LOSSES}


def logger_callbacks(config: Config) -> list[keras.callbacks.Callback]:
    """The callbacks of the loggers that the setting `logger` names, by the libraries' own; TensorBoard needs none.

    Raises:
        ConfigError: a library is not installed.
    """
    found: list[keras.callbacks.Callback] = []
    settings = {name: value for group in dataclasses.asdict(config).values() for name, value in group.items()}
    try:
        if "wandb" in config.train.logger:
            import wandb
            from wandb.integration.keras import WandbMetricsLogger

            if wandb.run is None:
                wandb.init(config=settings)
            found.append(WandbMetricsLogger(log_freq=20))
        if "mlflow" in config.train.logger:
            import mlflow

            if mlflow.active_run() is None:
                mlflow.start_run()
            mlflow.log_params({name: str(value)[:250] for name, value in settings.items()})
            found.append(mlflow.keras.MlflowCallback(log_every_epoch=False, log_every_n_steps=20))
    except ImportError as error:
        name = (error.name or "").split(".")[0]
        raise ConfigError(f"logger={','.join(config.train.logger)}: pip install {name}") from None
    return found
