"""Data: readers of many forms, the built-in shapes set, augmentation and the tf.data pipeline."""

import importlib
from typing import Any

# Loaded on first use, so that the parts without TensorFlow do not wait for it.
_PUBLIC = {
    "CocoDataset": "kmaskrcnn.data.sets.dataset",
    "DataError": "kmaskrcnn.errors",
    "evaluation_dataset": "kmaskrcnn.data.input.pipeline",
    "images_of_step": "kmaskrcnn.data.input.pipeline",
    "load_coco": "kmaskrcnn.data.readers.opening",
    "load_dataset": "kmaskrcnn.data.readers.opening",
    "load_image": "kmaskrcnn.data.image_files",
    "make_shapes": "kmaskrcnn.data.sets.shapes",
    "open_dataset": "kmaskrcnn.data.readers.opening",
    "open_raw": "kmaskrcnn.data.readers.opening",
    "prepare_image": "kmaskrcnn.data.resize",
    "steps_per_epoch": "kmaskrcnn.data.input.pipeline",
    "training_dataset": "kmaskrcnn.data.input.pipeline",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
