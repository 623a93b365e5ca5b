"""What an exported model answers, as predictions, and what can be wrong with it. Needs neither TensorFlow nor Keras."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..results.labels import Labels
from ..results.prediction import Prediction

SIGNATURE = "serving_default"
NUMBER, BOXES, SCORES = "num_detections", "detection_boxes", "detection_scores"
CLASSES, MASKS = "detection_classes", "detection_masks"
MASK_SCORES = "detection_mask_scores"  # of a model with mask_scoring alone
SIZES, ERRORS = "image_sizes", "image_errors"
COMPACT_MASKS = "detection_masks_png_bytes"
OUTPUTS = (NUMBER, BOXES, SCORES, CLASSES, MASKS, SIZES, ERRORS)
COMPACT_OUTPUTS = tuple(COMPACT_MASKS if name == MASKS else name for name in OUTPUTS)

# More pixels than any image that a server reads: what an answer states is held against it before memory is taken.
_MAX_SIDE, _MAX_PIXELS = 1 << 20, 1 << 31

ImageFile = str | os.PathLike | bytes


class ServingError(RuntimeError):
    """The server cannot be reached, refused the request, or gave an invalid answer."""


class ServingTimeoutError(ServingError):
    """There was no complete answer within the timeout."""


class ServerBusyError(ServingError):
    """The server is overloaded or cannot be reached; the same request may succeed later.

    Attributes:
        retry_after: seconds that the server asked to wait; None: it did not say.
    """

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


class ImageError(ValueError):
    """An image that cannot be decoded, or is too large for the server."""


def refusal(message: str) -> str:
    """What an Assert of the graph says in an error of TensorFlow's, which tells much else; or else its first line."""
    said = re.search(r"assertion failed: (.+)", message)
    if said is None:
        return message.split("\n")[0][:300]
    return " ".join(re.findall(r"\[([^\[\]]+)\]", said[1].partition("[[{{")[0]))


def unpack_masks(png: bytes, count: int) -> np.ndarray:
    """The masks of a compact answer, (count, M, M) float32 in 0..1; raises ValueError for anything else."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            width, height = image.size
            if image.mode != "L" or width > 1024 or height != max(count * width, 1):
                raise ValueError(f"a PNG of {width} x {height} for {count} masks")
            pixels = np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"masks that are not a PNG ({error})") from None
    return pixels[: count * width].reshape(count, width, width).astype(np.float32) / 255


def checked(outputs: Mapping[str, Any], count: int, labels: Labels) -> dict[str, Any]:
    """What a server answered for `count` images, as arrays of the right shapes; raises ValueError for anything else."""
    missing = [name for name in OUTPUTS if name not in outputs and name not in (ERRORS, MASKS)]
    if missing or not (MASKS in outputs or COMPACT_MASKS in outputs):
        raise ValueError(f"the answer has no {missing[0] if missing else MASKS}")

    def array(name: str, *shape: int | None) -> np.ndarray:
        try:
            found = np.asarray(outputs[name], np.float32)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name} is not an array of numbers") from None
        if found.size == 0 and 0 in shape:
            return np.zeros([1 if want is None else want for want in shape], np.float32)
        fits = found.ndim == len(shape) and all(w in (None, g) for w, g in zip(shape, found.shape, strict=True))
        if not fits:
            raise ValueError(f"{name} has shape {found.shape}")
        if not np.isfinite(found).all():
            raise ValueError(f"{name} is not finite")
        return found

    result: dict[str, Any] = {SCORES: array(SCORES, count, None)}
    rows = result[SCORES].shape[1]
    result |= {BOXES: array(BOXES, count, rows, 4), CLASSES: array(CLASSES, count, rows)}
    number = np.asarray(outputs[NUMBER], object).reshape(-1)
    outputs = {**outputs, NUMBER: number.tolist()}
    result |= {NUMBER: array(NUMBER, count), SIZES: array(SIZES, count, 2)}
    if MASK_SCORES in outputs:
        result[MASK_SCORES] = array(MASK_SCORES, count, rows)
    errors = outputs.get(ERRORS, [""] * count)
    if len(errors) != count:
        raise ValueError(f"{ERRORS} has {len(errors)} entries for {count} images")
    result[ERRORS] = [error.decode(errors="replace") if isinstance(error, bytes) else str(error) for error in errors]
    for i, (found, (height, width)) in enumerate(zip(result[NUMBER], result[SIZES], strict=True)):
        if result[ERRORS][i]:
            continue
        if found != int(found) or not 0 <= found <= rows:
            raise ValueError(f"{NUMBER} of {found:g} in {rows} rows")
        if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE and height * width <= _MAX_PIXELS):
            raise ValueError(f"an image of {height:g} x {width:g} pixels")
        classes = result[CLASSES][i, : int(found)]
        if ((classes < 1) | (classes > len(labels.class_names)) | (classes != np.round(classes))).any():
            raise ValueError(f"a class outside 1 to {len(labels.class_names)}: are these the labels of the model?")
    if MASKS in outputs:
        result[MASKS] = array(MASKS, count, rows, None, None)
        if result[MASKS].shape[2] != result[MASKS].shape[3]:
            raise ValueError(f"{MASKS} has shape {result[MASKS].shape}")
    else:
        packed = outputs[COMPACT_MASKS]
        if len(packed) != count:
            raise ValueError(f"{COMPACT_MASKS} has {len(packed)} entries for {count} images")
        counts = [0 if error else int(n) for n, error in zip(result[NUMBER], result[ERRORS], strict=True)]
        result[MASKS] = [unpack_masks(png, n) for png, n in zip(packed, counts, strict=True)]
    return result


def to_predictions(
    outputs: Mapping[str, np.ndarray],
    sizes: Sequence[Sequence[int]],
    labels: Labels,
    mask_paste: str = "pixel_centers",
) -> list[Prediction | ImageError]:
    """The outputs of the exported model, one entry an image.

    Args:
        outputs: arrays by name, batch-major.
        sizes: height and width of each sent image, upright.
        labels, mask_paste: of the model.

    Returns:
        For each image its prediction, or what is wrong with it.
    """
    errors = outputs.get(ERRORS, [b""] * len(sizes))
    results: list[Prediction | ImageError] = []
    for i, size in enumerate(sizes):
        error = errors[i].decode() if isinstance(errors[i], bytes) else str(errors[i])
        if error:
            results.append(ImageError(error))
            continue
        results.append(to_prediction(outputs, i, size, labels, mask_paste))
    return results


def to_prediction(
    outputs: Mapping[str, np.ndarray], index: int, size: Sequence[int], labels: Labels, mask_paste: str
) -> Prediction:
    """The entry at `index` of the outputs as of `to_predictions`, an image that the model has read."""
    count = int(np.asarray(outputs[NUMBER]).reshape(-1)[index])
    height, width = size
    boxes = np.asarray(outputs[BOXES][index][:count], np.float32).reshape(count, 4)
    return Prediction(
        height,
        width,
        boxes * np.array([height, width, height, width], np.float32),
        np.asarray(outputs[SCORES][index][:count], np.float32),
        np.asarray(outputs[CLASSES][index][:count]).astype(np.int32),
        np.asarray(outputs[MASKS][index][:count], np.float32),
        labels,
        mask_paste,
        mask_scores=np.asarray(outputs[MASK_SCORES][index][:count], np.float32) if MASK_SCORES in outputs else None,
    )


def read(image: ImageFile) -> bytes:
    """The bytes of an image; raises OSError."""
    if isinstance(image, bytes):
        return image
    with open(image, "rb") as file:
        return file.read()
