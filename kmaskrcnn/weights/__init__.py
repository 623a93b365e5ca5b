"""Weights of other programs: safe readers of their files, and importers that map their names to ours."""

from kmaskrcnn.weights.errors import WeightsError
from kmaskrcnn.weights.imagenet import load_imagenet
from kmaskrcnn.weights.pth_reader import read_tensors, write_tensors

__all__ = ["WeightsError", "load_imagenet", "read_tensors", "write_tensors"]
