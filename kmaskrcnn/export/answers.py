"""What an exported model answers, as predictions, and what can be wrong with it. Needs neither TensorFlow nor Keras."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np

from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.prediction import Prediction

SIGNATURE = "serving_default"
NUMBER, BOXES, SCORES = "num_detections", "detection_boxes", "detection_scores"
CLASSES, MASKS = "detection_classes", "detection_masks"
SIZES, ERRORS = "image_sizes", "image_errors"
OUTPUTS = (NUMBER, BOXES, SCORES, CLASSES, MASKS, SIZES, ERRORS)

Picture = str | os.PathLike | bytes


class ServingError(RuntimeError):
    """The server cannot be reached, or refused the request."""


class ImageError(ValueError):
    """A picture that cannot be decoded, or is too large for the server."""


def to_predictions(
    outputs: Mapping[str, np.ndarray],
    sizes: Sequence[Sequence[int]],
    labels: Labels,
    mask_paste: str = "pixel_centers",
) -> list[Prediction | ImageError]:
    """The outputs of the exported model, one entry an image.

    Args:
        outputs: arrays by name, batch-major.
        sizes: height and width of each sent picture, upright.
        labels, mask_paste: of the model.

    Returns:
        For each picture its prediction, or what is wrong with it.
    """
    errors = outputs.get(ERRORS, [b""] * len(sizes))
    results: list[Prediction | ImageError] = []
    for i, size in enumerate(sizes):
        error = errors[i].decode() if isinstance(errors[i], bytes) else str(errors[i])
        if error:
            results.append(ImageError(error))
            continue
        count = int(np.asarray(outputs[NUMBER]).reshape(-1)[i])
        height, width = size
        boxes = np.asarray(outputs[BOXES][i][:count], np.float32).reshape(count, 4)
        results.append(
            Prediction(
                height,
                width,
                boxes * np.array([height, width, height, width], np.float32),
                np.asarray(outputs[SCORES][i][:count], np.float32),
                np.asarray(outputs[CLASSES][i][:count]).astype(np.int32),
                np.asarray(outputs[MASKS][i][:count], np.float32),
                labels,
                mask_paste,
            )
        )
    return results


def read(picture: Picture) -> bytes:
    """The bytes of a picture; raises OSError."""
    if isinstance(picture, bytes):
        return picture
    with open(picture, "rb") as file:
        return file.read()
