"""Runs `TrainStep` on a small detector-shaped model, on one device and on two; a program, for the devices of a process
must be made before TensorFlow's first operation. Prints a JSON object that test_replicas.py reads."""

import functools
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from kmaskrcnn.config import Config
from kmaskrcnn.keras_interface import over_replicas
from kmaskrcnn.model import LOSSES
from kmaskrcnn.training.step import TrainStep, build_optimizer

SLOTS = 4


class Small(keras.Model):
    """Two convolutions with batch normalization and losses that count objects as Mask R-CNN's do."""

    def __init__(self, norm, dtype):
        super().__init__(dtype=dtype, autocast=False)
        self.loss_names = LOSSES
        self.conv = keras.layers.Conv2D(4, 3, use_bias=norm == "none", dtype=dtype)
        self.norm = None
        if norm != "none":
            self.norm = keras.layers.BatchNormalization(synchronized=norm == "sync_bn", momentum=0.9, dtype=dtype)
        self.head = keras.layers.Dense(5, dtype=dtype)
        self.build(None)

    def build(self, _):
        self.conv.build((None, 8, 8, 3))
        if self.norm:
            self.norm.build((None, 6, 6, 4))
        self.head.build((None, 4))
        self.built = True

    def call(self, batch, training=False, counts_only=False):
        x = keras.ops.cast(batch["images"], self.compute_dtype)
        x = self.norm(self.conv(x), training=training) if self.norm else self.conv(x)
        x = keras.ops.mean(keras.ops.relu(x), axis=(1, 2))
        counts = tf.stack([tf.reduce_sum(batch["objects"])] * 3)
        if counts_only:
            return counts
        normalizers = batch["normalizers"] if "normalizers" in batch else over_replicas(counts)
        y = tf.cast(self.head(x), tf.float32) - 1.0
        total = tf.reduce_sum(tf.square(y) * batch["objects"][:, None], axis=0) / normalizers[0]
        return {name: total[i] for i, name in enumerate(LOSSES)}

    def compute_loss(self, y_pred):
        return sum(y_pred.values()) / tf.distribute.get_strategy().num_replicas_in_sync


def batch_of(step, spoilt=False):
    rng = np.random.default_rng(step)
    images = rng.normal(size=(SLOTS, 8, 8, 3)).astype(np.float32)
    if spoilt:
        images[-1, 0, 0, 0] = np.inf  # in the last slot alone, which the second replica has
    # The second replica has no object, or few.
    objects = np.array([[3, 1, 0, 0], [2, 5, 1, 0]][step % 2], np.float32)
    return {"images": images, "objects": objects}


@functools.cache  # the collectives of two strategies over the same devices would be taken for each other
def strategy(devices):
    names = [f"CPU:{i}" for i in range(devices)]
    return tf.distribute.MirroredStrategy(names) if devices > 1 else tf.distribute.get_strategy()


class Run:
    """A model on one device or two."""

    def __init__(self, devices, norm="sync_bn", dtype="float32", parts=1, **settings):
        base = {"clip_norm": 0.5, "weight_decay": 0.01, "norm_weight_decay": 0.02, "ema_decay": 0.9}
        config = Config().replace(dtype=dtype, accumulate_steps=parts, **(base | settings)).train
        self.strategy = strategy(devices)
        self.parts, self.devices = parts, devices
        with self.strategy.scope():
            keras.utils.set_random_seed(1)
            self.model = Small(norm, dtype)
            self.step = TrainStep(self.model, build_optimizer(config, self.model), config)
        self.step.reset_averages()

    def take(self, number, **options):
        """One step; returns its values by name."""
        batch, size = batch_of(number, **options), SLOTS // self.parts // self.devices

        def part(p):
            def value(context):
                first = (p * self.devices + context.replica_id_in_sync_group) * size
                return {name: tf.constant(v[first : first + size]) for name, v in batch.items()}

            return self.strategy.experimental_distribute_values_from_function(value)

        values = self.step([part(p) for p in range(self.parts)], 0.1, number, stop=number == 1, clock=3.0)
        return dict(zip(self.step.names, map(float, values.numpy()), strict=True))

    def arrays(self):
        """Weights, optimizer state and averages, of each replica."""
        variables = [v.value for v in (*self.model.weights, *self.step.optimizer.variables[2:])]
        variables += self.step.averages
        return [r.numpy() for v in variables for r in self.strategy.experimental_local_results(v)]


def difference(a, b):
    """Largest difference of weights, optimizer states and averages, and of losses and norms, relative to their size."""
    of = {id(run): [v.numpy() for v in (*run.model.weights, *run.step.averages)] for run in (a, b)}
    return max(float(np.abs(x - y).max() / (np.abs(x).max() + 1e-6)) for x, y in zip(of[id(a)], of[id(b)], strict=True))


def compare(other, **settings):
    """Four steps on one device and otherwise."""
    one, two = Run(1, **settings), Run(**(settings | other))
    pairs = [(one.take(i), two.take(i)) for i in range(4)]
    values = max(abs(a[n] - b[n]) / (abs(a[n]) + 1e-6) for a, b in pairs for n in (*LOSSES, "loss", "gradient_norm"))
    return {"weights": difference(one, two), "values": values, "stop": [b["stop"] for _, b in pairs],
            "clock": pairs[0][1]["clock"], "norm": pairs[0][0]["gradient_norm"]}  # fmt: skip


def spoil(dtype, norm="bn"):
    """A good step, one with an infinite pixel on the second replica, and a good one."""
    run = Run(2, norm=norm, dtype=dtype)
    run.take(0)
    before = run.arrays()
    values = run.take(1, spoilt=True)
    after = run.arrays()
    return {
        "skipped": values["skipped"],
        "unchanged": all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)),
        "replicas_equal": all(np.array_equal(a, b) for a, b in zip(after[::2], after[1::2], strict=True)),
        "skipped_after": run.take(2)["skipped"],
    }


def overflow():
    """A loss scale that only float16 gradients cannot hold: halved until they can, with no step taken before."""
    run = Run(2, dtype="mixed_float16")
    run.step.loss_scale.assign([2.0**26, 0.0])
    before = [w.numpy() for w in run.model.weights]
    rows = []
    for _ in range(24):
        values = run.take(0)
        scale = float(run.step.loss_scale.numpy()[0])
        same = all(np.array_equal(a, w.numpy()) for a, w in zip(before, run.model.weights, strict=True))
        rows.append({"overflowed": values["overflowed"], "skipped": values["skipped"], "scale": scale, "same": same})
        if not values["overflowed"]:
            break
    run.step.loss_scale.assign([8.0, 1999.0])
    run.take(1)
    return {"rows": rows, "doubled": float(run.step.loss_scale.numpy()[0])}


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    report = {
        "two": compare({"devices": 2}),
        "parts": compare({"devices": 1, "parts": 2}, norm="none"),
        "both": compare({"devices": 2, "parts": 2}, norm="none", optimizer="adamw", norm_weight_decay=0.0),
        "spoilt": spoil("float32"),
        "spoilt_float16": spoil("mixed_float16"),
        "overflow": overflow(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
