"""An exported model as Apache Beam's RunInference takes it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler

from kmaskrcnn.export.client import Client, ImageError, LiteRTClient
from kmaskrcnn.results.prediction import Prediction

NAMESPACE = "kmaskrcnn"

Outcome = Prediction | ImageError


class DetectorHandler(ModelHandler[bytes, Outcome, Client | LiteRTClient]):
    """Encoded images to predictions, with a SavedModel or a .tflite file that export.py wrote.

    Args:
        path: the numbered folder of a SavedModel, anywhere that TensorFlow can read, or a local .tflite file.
        batch_size: images that go through a SavedModel at once. Those of one batch are padded to one size, which moves
            scores a little; with 1 the results are those of predict.py.
        threads: of one worker process; 0: as many as there are cores.
    """

    def __init__(self, path: str, batch_size: int = 1, threads: int = 0):
        super().__init__(min_batch_size=batch_size, max_batch_size=batch_size)
        self._path, self._threads = path, threads

    def load_model(self) -> Client | LiteRTClient:
        """Open the model; once a worker process."""
        if self._path.endswith(".tflite"):
            return LiteRTClient(self._path, self._threads or 2)
        import tensorflow as tf

        from kmaskrcnn.export.saved_model import SavedModelClient

        if self._threads:
            # TensorFlow takes no other number once it runs, as where one process has several workers.
            with contextlib.suppress(RuntimeError):
                tf.config.threading.set_intra_op_parallelism_threads(self._threads)
                tf.config.threading.set_inter_op_parallelism_threads(self._threads)
        return SavedModelClient(self._path)

    def run_inference(
        self,
        batch: Sequence[bytes],
        model: Client | LiteRTClient,
        inference_args: Mapping[str, Any] | None = None,
    ) -> Iterable[Outcome]:
        """One outcome an image; what stops the model on one of them stops none of the others."""
        start = time.perf_counter()
        outcomes = _predict(batch, model)
        milliseconds = round((time.perf_counter() - start) * 1000 / len(batch))
        latency = Metrics.distribution(NAMESPACE, "milliseconds_an_image")
        for _ in batch:
            latency.update(milliseconds)
        return outcomes

    def get_num_bytes(self, batch: Sequence[bytes]) -> int:
        """Bytes of the encoded images."""
        return sum(map(len, batch))


def _predict(batch: Sequence[bytes], model: Client | LiteRTClient) -> list[Outcome]:
    try:
        if isinstance(model, Client):
            return model.predict_batch(batch)
        (image,) = batch
        return [model.predict(image)]
    except ImageError as error:
        return [error]
    except Exception as error:
        if len(batch) == 1:
            reason = " ".join(str(error).split())[:300]
            return [ImageError(f"the model failed: {type(error).__name__}: {reason}")]
        return [outcome for image in batch for outcome in _predict([image], model)]
