"""Mask R-CNN for TensorFlow and Keras 3."""

import importlib
from typing import Any

__version__ = "0.1.0"

# Loaded on first use, so that `import kmaskrcnn` and the parts without Keras start at once.
_PUBLIC = {
    "Config": "kmaskrcnn.config",
    "ConfigError": "kmaskrcnn.config",
    "MaskRCNN": "kmaskrcnn.model",
    "ModelConfig": "kmaskrcnn.config",
    "Prediction": "kmaskrcnn.results.prediction",
    "Predictor": "kmaskrcnn.inference.predictor",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
