"""An exported model in a worker: encoded images in, the named outputs of the SavedModel out."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Sequence

import numpy as np
from PIL import Image

from kmaskrcnn.export import answers
from kmaskrcnn.quiet import quiet_tensorflow
from kmaskrcnn.results.labels import read_labels

Outputs = dict[str, np.ndarray]


class RefusedError(ValueError):
    """The model refuses a request as a whole."""


class SavedModelRunner:
    """A SavedModel's version."""

    def __init__(self, path: str, threads: int):
        quiet_tensorflow()  # a worker is a process of its own
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
        self._tf = tf
        self._model = tf.saved_model.load(path)
        self._run = self._model.signatures[answers.SIGNATURE]
        self._warm_up(os.path.join(path, "assets.extra", "tf_serving_warmup_requests"))

    def run(self, images: Sequence[bytes]) -> Outputs:
        """Outputs by name; raises RefusedError."""
        try:
            outputs = self._run(image_bytes=self._tf.constant(list(images), self._tf.string))
        except self._tf.errors.InvalidArgumentError as error:
            raise RefusedError(answers.refusal(error.message)) from None
        return {name: value.numpy() for name, value in outputs.items()}

    def _warm_up(self, path: str) -> None:
        from kmaskrcnn.export import serving_protos

        if os.path.exists(path):
            for record in self._tf.data.TFRecordDataset(path).as_numpy_iterator():
                self.run(serving_protos.images_of(serving_protos.PredictionLog.FromString(record).predict_log.request))


class LiteRTRunner:
    """A .tflite file."""

    def __init__(self, path: str, threads: int, max_pixels: int):
        from kmaskrcnn.export.litert_client import LiteRTClient

        self._client, self._max_pixels = LiteRTClient(path, threads), max_pixels

    def run(self, images: Sequence[bytes]) -> Outputs:
        """Outputs by name; an image that cannot be read has its `image_errors`."""
        found = [self._predict(image) for image in images]
        rows = max([len(one) for one in found if not isinstance(one, str)], default=0)
        side = next((one.mask_probabilities.shape[-1] for one in found if not isinstance(one, str) and len(one)), 28)
        count = len(images)
        outputs = {
            answers.NUMBER: np.zeros((count,), np.float32),
            answers.BOXES: np.zeros((count, rows, 4), np.float32),
            answers.SCORES: np.zeros((count, rows), np.float32),
            answers.CLASSES: np.zeros((count, rows), np.float32),
            answers.MASKS: np.zeros((count, rows, side, side), np.float32),
            answers.SIZES: np.zeros((count, 2), np.float32),
            answers.ERRORS: np.array([one.encode() if isinstance(one, str) else b"" for one in found], object),
        }
        if answers.MASK_SCORES in self._client.metadata.get("outputs", ()):
            outputs[answers.MASK_SCORES] = np.zeros((count, rows), np.float32)
        for i, one in enumerate(found):
            if isinstance(one, str):
                continue
            n = len(one)
            outputs[answers.NUMBER][i], outputs[answers.SIZES][i] = n, (one.height, one.width)
            outputs[answers.BOXES][i, :n] = one.boxes / np.array([one.height, one.width] * 2, np.float32)
            outputs[answers.SCORES][i, :n], outputs[answers.CLASSES][i, :n] = one.scores, one.classes
            outputs[answers.MASKS][i, :n] = one.mask_probabilities
            if one.mask_scores is not None:
                outputs[answers.MASK_SCORES][i, :n] = one.mask_scores
        return outputs

    def _predict(self, image: bytes):
        try:
            with Image.open(io.BytesIO(image)) as header:
                if header.width * header.height > self._max_pixels:
                    return "too large"
            return self._client.predict(image)
        except answers.ImageError as error:
            return str(error)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            return "not an image that can be decoded"


def open_model(path: str, threads: int, max_pixels: int) -> SavedModelRunner | LiteRTRunner:
    """The runner for a SavedModel's folder or a .tflite file."""
    return LiteRTRunner(path, threads, max_pixels) if path.endswith(".tflite") else SavedModelRunner(path, threads)


def class_names(path: str) -> list[str]:
    """The names of the classes of a model, in order; nothing of it is loaded."""
    if path.endswith(".tflite"):
        with zipfile.ZipFile(path) as archive:
            return list(json.loads(archive.read("metadata.json"))["class_names"])
    return list(read_labels(os.path.join(path, "assets.extra")).class_names)


def joined_run(runner: SavedModelRunner | LiteRTRunner, requests: Sequence[Sequence[bytes]]) -> list[Outputs]:
    """The outputs of several requests that are run as one batch."""
    outputs = runner.run([image for images in requests for image in images])
    ends = np.cumsum([len(images) for images in requests])
    parts = {name: np.split(values, ends[:-1]) for name, values in outputs.items()}
    return [{name: values[i] for name, values in parts.items()} for i in range(len(requests))]
