"""Where training runs: one device, the devices of one machine, or several processes; and who this process is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import struct
import subprocess
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from kmaskrcnn.config import ConfigError, TrainConfig
from kmaskrcnn.errors import TrainingError, WorkerLost

_EXAMPLE = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
# What TensorFlow raises on the living workers when another one is gone.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train together, each with the same number of devices.

    Attributes:
        strategy: under whose scope the model is made.
        workers: number of processes.
        worker: this one's index; 0 is the chief, which alone writes the model folder.
    """

    strategy: tf.distribute.Strategy
    workers: int = 1
    worker: int = 0

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the model folder."""
        return self.worker == 0

    @property
    def replicas(self) -> int:
        """Devices of all processes."""
        return self.strategy.num_replicas_in_sync

    def slots(self, batch_size: int, parts: int) -> list[range]:
        """Which places of a step's batch this process makes: a range for each part and, in it, each own device.

        Raises:
            ConfigError: the batch does not divide evenly.
        """
        size, rest = divmod(batch_size, self.replicas * parts)
        if rest or not size:
            raise ConfigError(
                f"batch_size={batch_size} does not divide evenly into {self.replicas} devices"
                + (f" x accumulate_steps={parts}" if parts > 1 else "")
            )
        own = self.replicas // self.workers
        replicas = range(self.worker * own, (self.worker + 1) * own)
        starts = [(part * self.replicas + replica) * size for part in range(parts) for replica in replicas]
        return [range(start, start + size) for start in starts]

    def describe(self) -> str:
        """What trains where, in a line; asks TensorFlow for its devices."""
        gpus = tf.config.list_physical_devices("GPU")
        own = self.replicas // self.workers
        if gpus:
            count = min(own, len(gpus))
            where = f"on {count} GPU{'s' * (count > 1)} ({_gpu_text()})"
        elif "TPU" in type(self.strategy).__name__:
            where = f"on {own} TPU cores"
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            parts = f" in {own} parts" if own > 1 else ""
            where = f"on the CPU{parts}, {cores} cores, no GPU found: to use one, pip install 'kmaskrcnn[gpu]'"
        return f"training {where}" + (f", {self.workers} workers of that kind" if self.workers > 1 else "")

    def gather(self, data: bytes) -> list[bytes]:
        """What each worker gave, in their order, on each of them. Every worker must call it."""
        if self.workers == 1:
            return [data]
        own = self.replicas // self.workers
        # As int32, which every kind of collective carries, behind the number of bytes.
        words = np.frombuffer(struct.pack("<q", len(data)) + data + bytes(-len(data) % 4), np.int32)

        @tf.function
        def collect(words: tf.Tensor) -> tf.Tensor:
            def run(words: tf.Tensor) -> tf.Tensor:
                replica = tf.distribute.get_replica_context()
                tells = tf.cast(replica.replica_id_in_sync_group % own == 0, tf.int32)
                return replica.all_gather(words[: tells * tf.shape(words)[0]], axis=0)

            return self.strategy.experimental_local_results(self.strategy.run(run, args=(words,)))[0]

        with self.watch():
            rest = collect(tf.constant(words)).numpy().tobytes()
        result = []
        while rest:
            length = struct.unpack("<q", rest[:8])[0]
            result.append(rest[8 : 8 + length])
            rest = rest[8 + length + -length % 4 :]
        return result

    def barrier(self) -> None:
        """Wait for all workers."""
        self.gather(b"")

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The chief does what is within before the others do."""
        if not self.is_chief:
            self.barrier()
        yield
        if self.is_chief:
            self.barrier()

    def check_equal(self, **values: str) -> None:
        """Raise TrainingError, on all workers, where one of them has another text under a name."""
        told = [json.loads(data) for data in self.gather(json.dumps(values).encode())]
        for worker, other in enumerate(told):
            for name, value in told[0].items():
                if other[name] != value:
                    raise TrainingError(
                        f"worker {worker} has {name} {other[name]} and worker 0 has {value}: start all with the same "
                        "settings, on the same data, with a model_dir that all of them see"
                    )

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """The chief speaks for all: the others print nothing within, but for errors."""
        if self.is_chief:
            yield
            return
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            yield

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Turn the errors of TensorFlow that tell of a dead worker into WorkerLost."""
        try:
            yield
        except _LOST as error:
            if self.workers == 1:
                raise
            raise WorkerLost(
                f"worker {self.worker} lost another worker ({str(error).splitlines()[0][:200]}); start all of them "
                "again to resume from the newest checkpoint"
            ) from None


def open_cluster(config: TrainConfig) -> Cluster:
    """Make the strategy that `strategy` names. Must come before any other use of TensorFlow.

    Raises:
        ConfigError: there are not the devices, or TF_CONFIG is missing or wrong.
    """
    if config.strategy == "one":
        return Cluster(tf.distribute.get_strategy())
    if config.strategy == "mirrored":
        return Cluster(tf.distribute.MirroredStrategy(_devices(config.num_devices)))
    if config.strategy == "tpu":
        return Cluster(_tpu_strategy())
    addresses, worker = read_tf_config(os.environ.get("TF_CONFIG", ""))
    if len(_devices(config.num_devices)) > 1 and not tf.config.list_physical_devices("GPU"):
        raise ConfigError(f"num_devices={config.num_devices}: a worker without GPUs has one device")
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise ConfigError(
            f"TF_CONFIG: worker {worker} cannot listen on {addresses[worker]} ({str(error).splitlines()[0]})"
        ) from None
    return Cluster(strategy, len(addresses), worker)


def _devices(count: int) -> list[str]:
    """The devices of this process by name: its GPUs, or logical parts of its CPU."""
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) < count and gpus:
        raise ConfigError(f"num_devices={count}: there are {len(gpus)} GPUs")
    if gpus:
        visible = gpus[: count or len(gpus)]
        tf.config.set_visible_devices(visible, "GPU")
        return [f"GPU:{i}" for i in range(len(visible))]
    count = count or 1
    cpu = tf.config.list_physical_devices("CPU")[0]
    if count > 1:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    return [f"CPU:{i}" for i in range(count)]


def _gpu_text() -> str:
    """Name and memory of the first GPU; the memory by NVIDIA's tool, for TensorFlow tells it only by taking it."""
    name = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0]).get("device_name", "")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        lines = []
    found = [line.rpartition(", ") for line in lines]
    memory = next((mib for other, _, mib in found if other == name and mib.isdigit()), "")
    return f"{name}, {int(memory) / 1024:.0f} GiB" if memory else name or "of unknown name"


def _tpu_strategy() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise ConfigError(f"strategy=tpu: no TPU was found ({str(error).splitlines()[0]})") from None
    return tf.distribute.TPUStrategy(resolver)


def read_tf_config(text: str) -> tuple[list[str], int]:
    """The addresses of the workers and this one's index, from the text of TF_CONFIG; a chief comes first.

    Raises:
        ConfigError: it is missing or wrong.
    """
    if not text.strip():
        raise ConfigError(
            f"strategy=multi_worker needs TF_CONFIG in the environment, such as {_EXAMPLE}; "
            "on one machine `kmaskrcnn train --num_local_workers=N` sets it"
        )
    try:
        tree = json.loads(text)
        groups, kind, index = tree["cluster"], tree["task"]["type"], int(tree["task"]["index"])
        groups = {name: list(addresses) for name, addresses in groups.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"TF_CONFIG is not of the form {_EXAMPLE} ({reason}): {text[:200]}") from None
    other = sorted(set(groups) - {"chief", "worker"})
    if other:
        raise ConfigError(f"TF_CONFIG: cluster has {', '.join(other)}; only worker and one chief take part")
    chiefs, workers = groups.get("chief", []), groups.get("worker", [])
    addresses = chiefs + workers
    wrong = [address for address in addresses if not re.fullmatch(r"[^\s:]+:\d+|\[[0-9a-fA-F:]+\]:\d+", str(address))]
    if wrong:
        raise ConfigError(f"TF_CONFIG: {wrong[0]!r} is not HOST:PORT")
    if len(chiefs) > 1:
        raise ConfigError(f"TF_CONFIG: {len(chiefs)} chiefs; at most one is allowed")
    twice = sorted({address for address in addresses if addresses.count(address) > 1})
    if twice:
        raise ConfigError(f"TF_CONFIG: {twice[0]} occurs twice")
    if kind not in ("chief", "worker") or not 0 <= index < len(groups.get(kind, [])):
        raise ConfigError(f"TF_CONFIG: task is {kind} {index}, which the cluster does not have: {json.dumps(groups)}")
    return addresses, index + (len(chiefs) if kind == "worker" else 0)
