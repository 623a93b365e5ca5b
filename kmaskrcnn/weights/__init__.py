"""Weights of other programs: safe readers of their files, and importers that map their names to ours."""

from kmaskrcnn.backbones.imagenet import load_imagenet
from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files.reader import read_tensors, write_tensors

__all__ = ["WeightsError", "load_imagenet", "read_tensors", "write_tensors"]
