"""Prediction: a trained model on images, with boxes and masks in their own pixels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from kmaskrcnn.config import Config
from kmaskrcnn.data.image_files import load_image
from kmaskrcnn.data.resize import pixel_dtype, prepare_image
from kmaskrcnn.inference.inputs import find_inputs
from kmaskrcnn.inference.tiling import predict_tiles
from kmaskrcnn.inference.tta import AugmentedDetector
from kmaskrcnn.inference.video import VideoReader, is_video
from kmaskrcnn.model import MaskRCNN
from kmaskrcnn.model_folder import load_model
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.prediction import Prediction


class Predictor:
    """A model ready for prediction, with its image size and class names.

    Args:
        model: the model with its weights.
        config: settings; how images are resized, tiles, test-time augmentation.
        labels: names and COCO ids of the classes.
    """

    def __init__(self, model: MaskRCNN, config: Config, labels: Labels):
        self.model, self.config, self.labels = model, config, labels
        # Two graphs for every size of image: that for one image has no loop over the batch, and is traced sooner.
        self._detect_one, self._detect_many = (self._graph(batch) for batch in (1, None))
        self._augmented = AugmentedDetector(model, config) if config.evaluation.augmented else None

    def _graph(self, batch: int | None) -> Callable[[Mapping[str, tf.Tensor]], dict[str, tf.Tensor]]:
        signature = {
            "images": tf.TensorSpec((batch, None, None, 3), pixel_dtype(self.config.data.resize_method)),
            "image_shapes": tf.TensorSpec((batch, 2), tf.int32),
        }
        # Without AutoGraph, since the model has no Python branches on tensors and rewriting it takes a second.
        return tf.function(
            lambda inputs: self.model(inputs, training=False), input_signature=[signature], autograph=False
        )

    @classmethod
    def from_directory(cls, path: str | os.PathLike, which: str = "best", **settings: Any) -> Predictor:
        """Open a model folder; arguments and errors as for `kmaskrcnn.model_folder.load_model`."""
        return cls(*load_model(path, which, **settings))

    def predict(self, image: str | os.PathLike | np.ndarray) -> Prediction:
        """Find the objects in one image, in tiles and with test-time augmentation if the settings say so.

        Args:
            image: a file, or (H, W, 3) uint8 RGB.

        Raises:
            OSError: the file cannot be read.
            ValueError: the array is not an RGB image.
        """
        pixels = image if isinstance(image, np.ndarray) else load_image(os.fspath(image))
        settings = self.config.evaluation
        if settings.tile_size and max(pixels.shape[:2]) > settings.tile_size:
            of_model = self.config.model
            return predict_tiles(
                self._predict_whole,
                pixels,
                settings.tile_size,
                settings.tile_overlap,
                of_model.nms_iou,
                of_model.class_agnostic_nms,
                of_model.max_detections,
            )
        return dataclasses.replace(self._predict_whole(pixels), image=pixels)

    def _predict_whole(self, pixels: np.ndarray) -> Prediction:
        if self._augmented:
            return self._prediction(self._augmented(pixels), np.ones(2, np.float32), pixels.shape[:2])
        network_image, shape, scales = prepare_image(pixels, self.config.data)
        batch = {
            "images": network_image[None],
            "image_shapes": shape[None],
            "scales": scales[None],
            "original_shapes": np.array([pixels.shape[:2]], np.int32),
        }
        return self.predict_batch(batch)[0]

    def predict_many(
        self, inputs: str | os.PathLike | np.ndarray | Iterable[str | os.PathLike | np.ndarray]
    ) -> Iterator[tuple[str, Prediction | OSError]]:
        """Find the objects in many images, one after the other.

        Args:
            inputs: one or several of: files, folders (searched recursively), globs, videos (all frames), arrays as for
                `predict`.

        Yields:
            For each image its path (path#number for a frame, the number for an array), and its prediction, or the error
            that kept it from being read.

        Raises:
            ConfigError: an input matches no image, or a video needs a package that is not installed.
        """
        if isinstance(inputs, (str, os.PathLike)) or (isinstance(inputs, np.ndarray) and inputs.ndim < 4):
            inputs = [inputs]
        for number, item in enumerate(inputs):
            if isinstance(item, np.ndarray):
                yield str(number), self.predict(item)
                continue
            for path, _ in find_inputs([os.fspath(item)]):
                try:
                    if is_video(path):
                        for frame, pixels in enumerate(VideoReader(path)):
                            yield f"{path}#{frame}", self.predict(pixels)
                    else:
                        yield path, self.predict(path)
                except OSError as error:
                    yield path, error

    def predict_batch(self, batch: Mapping[str, tf.Tensor | np.ndarray]) -> list[Prediction]:
        """Find the objects in a batch of `evaluation_dataset`, without tiles or test-time augmentation."""
        inputs = {name: tf.convert_to_tensor(batch[name]) for name in ("images", "image_shapes")}
        detect = self._detect_one if len(inputs["images"]) == 1 else self._detect_many
        found = {name: value.numpy() for name, value in detect(inputs).items()}
        scales, shapes = np.asarray(batch["scales"]), np.asarray(batch["original_shapes"])
        return [self._prediction({n: v[i] for n, v in found.items()}, scales[i], shapes[i]) for i in range(len(shapes))]

    def _prediction(self, found: dict[str, np.ndarray], scale: np.ndarray, shape: Sequence[int]) -> Prediction:
        count, (height, width) = int(found["num_detections"]), map(int, shape)
        limit = np.array([height, width] * 2, np.float32)
        boxes = np.clip(found["boxes"][:count] / np.tile(scale, 2), 0, limit)
        return Prediction(
            height,
            width,
            boxes.astype(np.float32),
            found["scores"][:count].astype(np.float32),
            found["classes"][:count],
            found["masks"][:count].astype(np.float32),
            self.labels,
            self.config.model.mask_paste,
            mask_scores=found["mask_scores"][:count].astype(np.float32) if "mask_scores" in found else None,
        )
