"""Weights of other programs: safe readers of their files, and importers that map their names to ours."""

from kmaskrcnn.weight_files.errors import WeightsError
from kmaskrcnn.weight_files.reader import read_tensors, write_tensors
from kmaskrcnn.weights.imagenet import load_imagenet

__all__ = ["WeightsError", "load_imagenet", "read_tensors", "write_tensors"]
