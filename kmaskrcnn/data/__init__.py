"""Data: readers of many forms, the built-in shapes set, augmentation and the tf.data pipeline."""

import importlib
from typing import Any

# Loaded on first use, so that the parts without TensorFlow do not wait for it.
_PUBLIC = {
    "CocoDataset": "kmaskrcnn.data.coco",
    "DataError": "kmaskrcnn.data.records",
    "evaluation_dataset": "kmaskrcnn.data.pipeline",
    "images_of_step": "kmaskrcnn.data.pipeline",
    "load_coco": "kmaskrcnn.data.coco",
    "load_dataset": "kmaskrcnn.data.coco",
    "load_image": "kmaskrcnn.data.image_files",
    "make_shapes": "kmaskrcnn.data.shapes",
    "open_dataset": "kmaskrcnn.data.opening",
    "open_raw": "kmaskrcnn.data.opening",
    "prepare_image": "kmaskrcnn.data.pipeline",
    "steps_per_epoch": "kmaskrcnn.data.pipeline",
    "training_dataset": "kmaskrcnn.data.pipeline",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
