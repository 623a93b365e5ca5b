"""What is checked of the first batch that Keras' loops get, with its values at hand, before a graph is made of it.

A batch whose masks are 0/1 or whose boxes are normalized trains without an error, and the model learns nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kmaskrcnn.config import ModelConfig
from kmaskrcnn.ops.mask_targets import check_mask_values

# Boxes may pass the image's border by this share of its side, as rounded annotations do.
_OVERHANG = 0.02
_NEEDED = ("images", "boxes", "classes", "is_crowd", "masks", "mask_frames")


def check_dataset(x: Any, y: Any, config: ModelConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check the data that `fit` or `evaluate` was given by their first batch.

    Args:
        x, y: as for `fit`.
        config: of the model.
        options: the other keywords of `fit`.

    Returns:
        Keywords to add: steps_per_epoch (or steps) of endless data that know how long an epoch is, and x where looking
        at the first batch would have used it up.

    Raises:
        ValueError: a batch that the model cannot train on, or endless data of unknown epochs.
    """
    changes: dict[str, Any] = {}
    if "validation_data" in options and options["validation_data"] is not None:
        validation = options["validation_data"]
        if isinstance(validation, tuple):
            raise ValueError(_NOT_ONE_DICT.format("validation_data"))
        first, changes["validation_data"] = _first_batch(validation, options.get("batch_size") or 32)
        if first is not None:
            check_batch(first, config)
        if _is_endless(validation) and options.get("validation_steps") is None:
            changes["validation_steps"] = _steps(validation, "validation_steps")
    steps_name = "steps_per_epoch" if "epochs" in options else "steps"
    if _is_endless(x) and options.get(steps_name) is None:
        changes[steps_name] = _steps(x, steps_name)
    first, rest = _first_batch(x, options.get("batch_size") or 32)
    if first is not None:
        check_batch(first, config, y)
    if rest is not x:
        changes["x"] = rest
    return changes


def _is_endless(x: Any) -> bool:
    cardinality = getattr(x, "cardinality", None)
    return callable(cardinality) and int(cardinality()) == -1  # tf.data.INFINITE_CARDINALITY


def _steps(x: Any, name: str) -> int:
    steps = getattr(x, "steps_per_epoch", None)
    if steps is None:
        raise ValueError(f"the dataset is infinite, so an epoch would never end: give {name}=")
    return steps


def _first_batch(x: Any, batch_size: int) -> tuple[Any, Any]:
    """The first batch of what `fit` takes (None where it cannot be looked at), and the data with it still in them."""
    if isinstance(x, Mapping):
        return {name: value[:batch_size] for name, value in x.items()}, x
    if isinstance(x, keras.utils.PyDataset):
        return x[0], x
    if isinstance(x, Iterator):
        first = next(x, None)

        def from_the_first() -> Iterator[Any]:  # Keras takes generators and no other iterators
            if first is not None:
                yield first
            yield from x

        return first, from_the_first()
    if hasattr(x, "__iter__") and not hasattr(x, "shape"):
        return next(iter(x), None), x
    return x, x


_NOT_ONE_DICT = (
    "{}: MaskRCNN takes one dict per batch, with the images and the ground truth (" + ", ".join(_NEEDED) + "), "
    "and no separate targets"
)


def check_batch(batch: Any, config: ModelConfig, y: Any = None) -> None:
    """Check a training batch as the docstring of `MaskRCNN` describes it, its values too.

    Args:
        batch: the dict, or the tuple of one dict that Keras makes of it.
        config: of the model.
        y: what was given as targets, which there must not be.

    Raises:
        ValueError: the message is one line that names the key and what is expected of it.
    """
    if isinstance(batch, tuple | list):
        batch, y = (batch[0], y) if len(batch) == 1 else (batch, "targets")
    if y is not None or not isinstance(batch, Mapping):
        raise ValueError(_NOT_ONE_DICT.format(f"batch of {type(batch).__name__}"))
    missing = [name for name in _NEEDED if name not in batch]
    if missing:
        raise ValueError(f"the batch has no {missing[0]!r}: a training batch holds {', '.join(_NEEDED)}")
    arrays = {name: _first_replica(batch[name]) for name in (*_NEEDED, "image_shapes") if name in batch}
    arrays = {name: keras.ops.convert_to_numpy(value) for name, value in arrays.items()}
    images, boxes = arrays["images"], arrays["boxes"]
    _check_images(images)
    count, rows = len(images), boxes.shape[1] if boxes.ndim == 3 else 0
    _check_shape("boxes", boxes, (count, rows, 4), "yxyx pixels of N rows an image")
    _check_shape("classes", arrays["classes"], (count, rows), "a class for each box")
    _check_shape("is_crowd", arrays["is_crowd"], (count, rows), "a flag for each box")
    sizes = np.tile(images.shape[1:3], (count, 1))
    if "image_shapes" in arrays:
        _check_shape("image_shapes", arrays["image_shapes"], (count, 2), "height and width of each image")
        if (arrays["image_shapes"] > sizes).any() or (arrays["image_shapes"] < 1).any():
            raise ValueError(
                f"image_shapes: heights and widths must lie in 1..{images.shape[1]} and 1..{images.shape[2]}"
            )
        sizes = arrays["image_shapes"]
    valid = _check_classes(arrays["classes"], boxes, config.num_classes)
    _check_boxes("boxes", boxes, valid, sizes)
    masks, frames = arrays["masks"], arrays["mask_frames"]
    masked = masks.shape[1] if masks.ndim == 4 else rows
    _check_shape("masks", masks, (count, min(masked, rows), *masks.shape[-1:] * 2), "an m x m mask for each box")
    _check_shape("mask_frames", frames, (count, masked, 4), "the yxyx pixels that each mask covers")
    with_mask = valid[:, :masked] & ~arrays["is_crowd"][:, :masked].astype(bool)
    _check_boxes("mask_frames", frames, with_mask)
    if with_mask.any() and not masks[with_mask].any():
        raise ValueError("masks: no mask of the batch has a pixel, expected the coverage of each cell in 0..255")
    check_mask_values(masks[with_mask])


def _first_replica(value: Any) -> Any:
    """What the first replica gets of a value that tf.distribute has spread."""
    return value.values[0] if type(value).__name__ == "PerReplica" else value


def _check_shape(name: str, value: np.ndarray, shape: tuple[int, ...], meaning: str) -> None:
    if value.shape != shape:
        raise ValueError(f"{name}: shape {value.shape}, expected {shape}, {meaning}")


def _check_images(images: np.ndarray) -> None:
    if images.ndim != 4 or images.shape[3] != 3:
        hint = "repeat gray images to 3 channels" if images.shape[-1:] == (1,) else "RGB, channels last"
        raise ValueError(f"images: shape {images.shape}, expected (B, H, W, 3): {hint}")
    low, high = float(images.min()), float(images.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("images: values must be finite, RGB in 0..255")
    if low < 0 or high > 255:
        raise ValueError(
            f"images: values in {low:g}..{high:g}, expected RGB in 0..255: normalization (image_mean, image_std) "
            "is part of the model"
        )
    if 0 < high <= 1:
        raise ValueError(f"images: values in {low:g}..{high:g}, expected RGB in 0..255: multiply by 255")


def _check_classes(classes: np.ndarray, boxes: np.ndarray, num_classes: int) -> np.ndarray:
    """Which rows hold an object (B, N)."""
    low, high = (classes.min(), classes.max()) if classes.size else (0, 0)
    if (classes != np.round(classes)).any() or classes.dtype == bool:
        raise ValueError("classes: expected whole numbers in 1..num_classes, 0 in padded rows")
    if low < 0 or high > num_classes:
        raise ValueError(
            f"classes: values in {low}..{high}, expected 1..{num_classes} (num_classes={num_classes}), 0 in padded rows"
        )
    has_box = (boxes[..., 2:] > boxes[..., :2]).all(axis=-1)
    if (has_box & (classes == 0)).any():
        raise ValueError(
            f"classes: 0 in a row that has a box; classes count from 1, expected 1..{num_classes}, 0 in padded rows "
            "(whose boxes are 0)"
        )
    return classes > 0


def _check_boxes(name: str, boxes: np.ndarray, valid: np.ndarray, sizes: np.ndarray | None = None) -> None:
    own = boxes[valid].astype(np.float64)
    if not own.size:
        return
    if not np.isfinite(own).all():
        raise ValueError(f"{name}: values must be finite, yxyx in pixels of the images")
    if (own[:, 2:] < own[:, :2]).any():
        bad = own[(own[:, 2:] < own[:, :2]).any(axis=1)][0]
        raise ValueError(f"{name}: {bad.round(2).tolist()} ends before it begins, expected (y1, x1, y2, x2) in pixels")
    if own.min() >= 0 and own.max() <= 1.0 + 1e-3:
        raise ValueError(
            f"{name}: values in {own.min():.3g}..{own.max():.3g}, expected yxyx in pixels of the images, not in 0..1"
        )
    if sizes is None:
        return
    limit = np.repeat(np.tile(sizes, 2)[:, None].astype(np.float64), boxes.shape[1], axis=1)[valid]
    slack = 1 + _OVERHANG * limit
    outside = ((own > limit + slack) | (own < -slack)).any(axis=1)
    if outside.any():
        bad, size = own[outside][0], limit[outside][0, :2].astype(int)
        raise ValueError(
            f"{name}: {bad.round(2).tolist()} passes the image of {size[0]} x {size[1]} (height x width), expected "
            "(y1, x1, y2, x2) in pixels of the images"
        )
