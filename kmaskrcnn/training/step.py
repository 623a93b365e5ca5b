"""One optimiser step: gradients, the guard against non-finite values, clipping, weight decay, moving averages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import keras
import tensorflow as tf

from kmaskrcnn.config import ConfigError, TrainConfig
from kmaskrcnn.model import LOSSES, MaskRCNN

NORM_WEIGHTS = ("gamma", "beta")
# What a step returns, in order.
VALUES = (*LOSSES, "loss", "gradient_norm", "skipped")
# Random draws of the model in one step, at most; each step begins its own stretch of the random stream.
_DRAWS_A_STEP = 16
# Distance of the seeds of two replicas, so that they draw different samples.
_REPLICA_STRIDE = 1_000_003


def build_optimizer(config: TrainConfig, model: keras.Model) -> keras.optimizers.Optimizer:
    """SGD with momentum, whose weight decay `TrainStep` adds to the gradients, or AdamW with decoupled decay.

    Raises:
        ConfigError: adamw with a norm_weight_decay that is neither 0 nor weight_decay.
    """
    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(config.learning_rate, momentum=config.momentum)
    else:
        optimizer = keras.optimizers.AdamW(config.learning_rate, weight_decay=config.weight_decay)
        if config.norm_weight_decay not in (0.0, config.weight_decay):
            raise ConfigError(f"norm_weight_decay={config.norm_weight_decay}: adamw takes 0 or weight_decay")
        if not config.norm_weight_decay:
            norms = [v for v in model.trainable_variables if v.name in NORM_WEIGHTS]
            optimizer.exclude_from_weight_decay(var_list=norms)
    optimizer.build(model.trainable_variables)
    return optimizer


class TrainStep:
    """One step on one batch, on every replica of the strategy in whose scope this is made.

    The order is local gradients, sum over the replicas, check, clip, L2, apply (clipping what a replica alone has
    would depend on how the batch was split). A step with a non-finite loss or gradient leaves weights, optimizer and
    averages as they were, on every replica. Random samples depend on the seed, the replica and the step alone, so
    that a run that goes on draws what it would have drawn.

    Args:
        model: returns the losses by name on a batch, in training; `compute_loss` makes the total of them.
        optimizer: as `build_optimizer` makes it.
        config: optimizer, weight_decay, norm_weight_decay, clip_norm, ema_decay, seed.

    Attributes:
        averages: the moving averages of the trainable weights, in their order; empty where ema_decay is 0.
    """

    def __init__(self, model: MaskRCNN, optimizer: keras.optimizers.Optimizer, config: TrainConfig):
        self.model, self.optimizer, self.config = model, optimizer, config
        self.strategy = tf.distribute.get_strategy()
        self.variables = model.trainable_variables
        self.averages = [
            tf.Variable(v.value, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for v in (self.variables if config.ema_decay else ())
        ]
        # One trace for each image shape of the data, of which there is a short list.
        self._run = tf.function(self._step)

    def __call__(self, batch: Mapping[str, tf.Tensor], rate: float, step: int) -> tf.Tensor:
        """Take a step; returns VALUES (7 floats and whether the step was skipped, 0 or 1) without waiting for them."""
        return self._run(batch, tf.constant(rate, tf.float32), tf.constant(step, tf.int64))

    def _step(self, batch: Mapping[str, tf.Tensor], rate: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        values, gradients = self.strategy.run(self._gradients, args=(batch, step))
        # Losses and norm are over all replicas, hence the same on each of them.
        values = self.strategy.experimental_local_results(values)[0]
        finite = tf.reduce_all(tf.math.is_finite(values))
        self.optimizer.learning_rate.assign(rate)

        def apply() -> bool:
            self.strategy.run(self._apply, args=(gradients, values[VALUES.index("gradient_norm")], step))
            return True

        tf.cond(finite, apply, lambda: False)
        return tf.concat([values, [1.0 - tf.cast(finite, tf.float32)]], axis=0)

    def _gradients(self, batch: Mapping[str, tf.Tensor], step: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """In a replica: (losses, total, gradient norm) and the gradients, all of them over all replicas."""
        replica = tf.distribute.get_replica_context()
        seed = self.config.seed + _REPLICA_STRIDE * tf.cast(replica.replica_id_in_sync_group, tf.int64)
        self.model.seed_generator.state.assign(tf.cast(tf.stack([seed, step * _DRAWS_A_STEP]), tf.uint32))
        with tf.GradientTape() as tape:
            losses = self.model(batch, training=True)
            total = self.model.compute_loss(y_pred=losses)
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(total, self.variables)]
        gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        losses = replica.all_reduce(tf.distribute.ReduceOp.MEAN, [losses[name] for name in LOSSES])
        return tf.stack([*losses, tf.add_n(losses), tf.linalg.global_norm(gradients)]), gradients

    def _apply(self, gradients: list[tf.Tensor], norm: tf.Tensor, step: tf.Tensor) -> None:
        config = self.config
        if config.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm, use_norm=norm)
        if config.optimizer == "sgd":
            # L2 as published: through the momentum, which Keras' own decoupled weight_decay is not.
            gradients = [g + self._decay(v) * v.value for g, v in zip(gradients, self.variables, strict=True)]
        # Keras adds the gradients of the replicas up once more; here each replica holds the sum already.
        replicas = self.strategy.num_replicas_in_sync
        self.optimizer.apply([g / replicas if replicas > 1 else g for g in gradients], self.variables)
        if config.ema_decay:
            done = tf.cast(step, tf.float32)
            # Young averages forget faster, or the random start would stay in them for thousands of steps.
            decay = tf.minimum(config.ema_decay, (1.0 + done) / (10.0 + done))
            for average, variable in zip(self.averages, self.variables, strict=True):
                average.assign_sub((1.0 - decay) * (average - variable.value))

    def _decay(self, variable: keras.Variable) -> float:
        return self.config.norm_weight_decay if variable.name in NORM_WEIGHTS else self.config.weight_decay

    def reset_averages(self) -> None:
        """Begin the moving averages at the weights as they are."""
        for average, variable in self._averaged():
            average.assign(variable.value)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the context the model has its moving averages for weights, where there are any."""
        own = [variable.numpy() for _, variable in self._averaged()]
        try:
            for average, variable in self._averaged():
                variable.assign(average)
            yield
        finally:
            for value, (_, variable) in zip(own, self._averaged(), strict=True):
                variable.assign(value)

    def _averaged(self) -> list[tuple[tf.Variable, keras.Variable]]:
        return list(zip(self.averages, self.variables, strict=True)) if self.averages else []
