"""The type of a tensor in annotations."""

from __future__ import annotations

from typing import Any, TypeAlias

# Keras has no type in common for the tensors of its backends, and those of TensorFlow carry no types.
Tensor: TypeAlias = Any
