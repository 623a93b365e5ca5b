"""Mask R-CNN for TensorFlow and Keras 3."""

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from kmaskrcnn.collector import importing

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
        with importing():
            globals()[name] = value = getattr(importlib.import_module(_PUBLIC[name]), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Imports the model once Keras has been, so that `keras.models.load_model` knows the classes of a .keras file."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            # Not where a module of this package is what imports Keras: the model may need the unfinished one.
            ours = [m for n, m in sys.modules.items() if n.startswith(f"{__name__}.")]
            if not any(getattr(m.__spec__, "_initializing", False) for m in ours):
                importlib.import_module(_PUBLIC["MaskRCNN"])

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if sys.modules.get("keras") is not None:
    importlib.import_module(_PUBLIC["MaskRCNN"])
else:
    sys.meta_path.insert(0, _AfterKeras())
