"""One optimizer step: gradients, the guard against non-finite values, clipping, weight decay, moving averages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import keras
import tensorflow as tf

from kmaskrcnn.config import ConfigError, TrainConfig
from kmaskrcnn.model import MaskRCNN
from kmaskrcnn.training.sgd import SGD

NORM_WEIGHTS = ("gamma", "beta")
# What a step returns after the losses, in order. `overflowed` is a step that only the loss scale of mixed_float16
# spoilt, which then halves; `stop` and `clock` are what the workers said they want and have, the sum and the first
# one's.
AFTER_LOSSES = ("loss", "gradient_norm", "skipped", "overflowed", "stop", "clock")
# The loss scale of mixed_float16: where it starts, and the steps without an overflow after which it doubles.
_FIRST_SCALE, _STEPS_TO_DOUBLE = 2.0**15, 2000

Batch = Mapping[str, tf.Tensor]


def build_optimizer(config: TrainConfig, model: keras.Model) -> keras.optimizers.Optimizer:
    """SGD with momentum, whose weight decay `TrainStep` adds to the gradients, or AdamW with decoupled decay.

    Raises:
        ConfigError: adamw with a norm_weight_decay that is neither 0 nor weight_decay.
    """
    if config.optimizer == "sgd":
        optimizer = SGD(config.learning_rate, momentum=config.momentum)
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
    would depend on how the batch was split). Losses are divided by counts over all replicas, and what an image draws
    depends on its own seed, so a batch gives the same step however it is spread over replicas and parts; only the
    statistics of `bn` are of a replica's own images, and `sync_bn`'s of a part. A step with a non-finite loss or
    gradient on any replica leaves weights, statistics, optimizer and averages as they were, on every replica.

    Args:
        model: returns the losses by name on a batch, in training; `compute_loss` makes the total of them.
        optimizer: as `build_optimizer` makes it.
        config: optimizer, weight_decay, norm_weight_decay, clip_norm, ema_decay, accumulate_steps, dtype.

    Attributes:
        losses: the names of the losses.
        names: of what a step returns: the losses, then AFTER_LOSSES.
        averages: the moving averages of the trainable weights, in their order; empty where ema_decay is 0.
        loss_scale: the loss scale and the steps since it was set, (2,); none but with mixed_float16.
    """

    def __init__(self, model: MaskRCNN, optimizer: keras.optimizers.Optimizer, config: TrainConfig):
        self.model, self.optimizer, self.config = model, optimizer, config
        self.strategy = tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        self.losses = tuple(model.loss_names)
        self.names = (*self.losses, *AFTER_LOSSES)
        self.variables = model.trainable_variables
        # Each replica holds the sum over the replicas already, which Keras would add up once more.
        assert hasattr(optimizer, "_all_reduce_sum_gradients"), "Keras has changed how optimizers sum gradients"
        optimizer._all_reduce_sum_gradients = list
        self.averages = [tf.Variable(v.value, trainable=False) for v in (self.variables if config.ema_decay else ())]
        self.loss_scale = tf.Variable([_FIRST_SCALE, 0.0], trainable=False) if config.dtype == "mixed_float16" else None
        self._statistics = [
            variable.value
            for layer in model._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        # One trace for each image shape of the data, of which there is a short list.
        # Without AutoGraph, which rewrites all that is called and takes a third of the tracing for it.
        self._run, self._run_count, self._run_part, self._run_sum = (
            tf.function(f, autograph=False) for f in (self._whole, self._count, self._part, self._sum_of_parts)
        )
        if config.accumulate_steps > 1:
            shapes = [(len(self.losses),), *(v.shape for v in self.variables)]
            self._sums = [
                tf.Variable(
                    tf.zeros(shape),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,
                    aggregation=tf.VariableAggregation.SUM,
                )
                for shape in shapes
            ]

    def __call__(
        self, parts: Sequence[Batch], rate: float, step: int, stop: bool = False, clock: float = 0.0
    ) -> tf.Tensor:
        """Take a step; returns the values of `names`, float32, without waiting for them.

        Args:
            parts: the batch of this step, in accumulate_steps parts of equal size.
            rate: the learning rate.
            step: steps done before.
            stop, clock: what this worker tells the others.
        """
        rate, step = tf.constant(rate, tf.float32), tf.constant(step, tf.int64)
        control = tf.constant([float(stop), clock], tf.float32)
        if len(parts) == 1:
            return self._run(parts[0], rate, step, control)
        before = [tf.identity(v) for v in self._statistics]
        # The counts that losses are divided by are those of all parts, so they come first.
        counts = tf.add_n([self._run_count(part) for part in parts])
        self._assign(self._statistics, before)
        normalizers = tf.maximum(counts, 1.0) / self.replicas
        for part in parts:
            self._run_part(part, normalizers)
        return self._run_sum(before, rate, step, control)

    def _whole(self, batch: Batch, rate: tf.Tensor, step: tf.Tensor, control: tf.Tensor) -> tf.Tensor:
        before = [tf.identity(v) for v in self._statistics]

        def run(batch: Batch, control: tf.Tensor) -> tuple:
            return self._over_replicas(*self._local(batch), control)

        return self._finish(self.strategy.run(run, args=(batch, control)), before, rate, step)

    def _count(self, batch: Batch) -> tf.Tensor:
        """The counts that losses are divided by, over all replicas."""

        def run(batch: Batch) -> tf.Tensor:
            counts = self.model(batch, training=True, counts_only=True)
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, counts)

        return self._first(self.strategy.run(run, args=(batch,)))

    def _part(self, batch: Batch, normalizers: tf.Tensor) -> None:
        """Add the losses and gradients of a part to the sums of its replica."""

        def run(batch: Batch, normalizers: tf.Tensor) -> None:
            losses, gradients = self._local({**batch, "normalizers": normalizers})
            for total, value in zip(self._sums, [losses, *gradients], strict=True):
                total.assign_add(value)

        self.strategy.run(run, args=(batch, normalizers))

    def _sum_of_parts(self, before: list[tf.Tensor], rate: tf.Tensor, step: tf.Tensor, control: tf.Tensor) -> tf.Tensor:
        def run(control: tf.Tensor) -> tuple:
            losses, *gradients = [total.read_value() for total in self._sums]
            result = self._over_replicas(losses, gradients, control)
            for total in self._sums:
                total.assign(tf.zeros_like(total))
            return result

        return self._finish(self.strategy.run(run, args=(control,)), before, rate, step)

    def _local(self, batch: Batch) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """In a replica: its losses, and its gradients of the total divided by the number of replicas."""
        scale = None if self.loss_scale is None else self.loss_scale[0]
        with tf.GradientTape() as tape:
            losses = self.model(batch, training=True)
            total = self.model.compute_loss(y_pred=losses)
            if scale is not None:
                total = total * scale
        gradients = [tf.convert_to_tensor(g) for g in tape.gradient(total, self.variables)]
        if scale is not None:
            gradients = [g / scale for g in gradients]
        return tf.stack([losses[name] for name in self.losses]), gradients

    def _over_replicas(
        self, losses: tf.Tensor, gradients: list[tf.Tensor], control: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """In a replica: losses, total, norm, stop and clock, then gradients and statistics, all over all replicas."""
        replica = tf.distribute.get_replica_context()
        first = tf.cast(tf.equal(replica.replica_id_in_sync_group, 0), tf.float32)
        told = tf.concat([losses / self.replicas, control * tf.stack([1.0, first])], axis=0)
        statistics = [v / self.replicas for v in self._statistics]
        told, *reduced = replica.all_reduce(tf.distribute.ReduceOp.SUM, [told, *gradients, *statistics])
        gradients, statistics = reduced[: len(gradients)], reduced[len(gradients) :]
        losses, control = told[: len(self.losses)], told[len(self.losses) :]
        norm = tf.linalg.global_norm(gradients)
        values = tf.concat([losses, [tf.reduce_sum(losses), norm], control], axis=0)
        if self.config.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self.config.clip_norm, use_norm=norm)
        return values, gradients, statistics

    def _apply(self, gradients: list[tf.Tensor]) -> None:
        """With the L2 decay as published: through the momentum, which Keras' decoupled weight_decay is not."""
        if self.config.optimizer == "sgd":
            # In the branch that waits for all gradients: before, these would lie beside the activations.
            decays = [self._decay(v) * v.value for v in self.variables]
            gradients = [g + d for g, d in zip(gradients, decays, strict=True)]
        self.optimizer.apply(gradients, self.variables)

    def _finish(
        self,
        results: tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]],
        before: list[tf.Tensor],
        rate: tf.Tensor,
        step: tf.Tensor,
    ) -> tf.Tensor:
        """Outside of the replicas: apply what they computed if it is finite, and take the statistics back if not."""
        values, gradients, statistics = results
        values = self._first(values)
        statistics = [self._first(s) for s in statistics]
        values, control = values[: len(self.losses) + 2], values[len(self.losses) + 2 :]
        finite = tf.reduce_all(tf.math.is_finite(values))
        self.optimizer.learning_rate.assign(rate)

        def apply() -> bool:
            self.strategy.run(self._apply, args=(gradients,))
            self._update_averages(step)
            self._assign(self._statistics, statistics)
            return True

        def take_back() -> bool:
            self._assign(self._statistics, before)
            return False

        with self.strategy.scope():
            tf.cond(finite, apply, take_back)
        overflowed = self._adapt_scale(values, finite)
        skipped = tf.logical_not(tf.logical_or(finite, overflowed))
        return tf.concat([values, tf.cast([skipped, overflowed], tf.float32), control], axis=0)

    def _adapt_scale(self, values: tf.Tensor, finite: tf.Tensor) -> tf.Tensor:
        """Halve the loss scale after an overflow, double it after many steps without; returns whether one was there."""
        if self.loss_scale is None:
            return tf.constant(False)
        scale, steps = self.loss_scale[0], self.loss_scale[1] + 1.0
        losses_finite = tf.reduce_all(tf.math.is_finite(values[: len(self.losses) + 1]))
        overflowed = tf.logical_and(tf.logical_not(finite), tf.logical_and(losses_finite, scale > 1.0))
        doubles = steps >= _STEPS_TO_DOUBLE
        grown, steps = tf.where(doubles, 2.0 * scale, scale), tf.where(doubles, 0.0, steps)
        self.loss_scale.assign(tf.where(overflowed, [scale / 2.0, 0.0], [grown, steps]))
        return overflowed

    def _update_averages(self, step: tf.Tensor) -> None:
        done = tf.cast(step, tf.float32)
        # Young averages forget faster, or the random start would stay in them for thousands of steps.
        decay = tf.minimum(self.config.ema_decay, (1.0 + done) / (10.0 + done))

        def update(average: tf.Variable, variable: tf.Variable, decay: tf.Tensor) -> tf.Tensor:
            return average.assign_sub((1.0 - decay) * (average - variable))

        for average, variable in self._averaged():
            self.strategy.extended.update(average, update, args=(variable.value, decay), group=False)

    def _assign(self, variables: list[tf.Variable], values: list[tf.Tensor]) -> None:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def _first(self, value: tf.Tensor) -> tf.Tensor:
        """What is the same on each replica, from one of them."""
        return self.strategy.experimental_local_results(value)[0]

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
