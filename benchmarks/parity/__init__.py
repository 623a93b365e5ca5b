"""Comparison with torchvision, which runs in an environment of its own."""

import importlib.util

# A wheel of torchvision for GPUs needs stand-ins for its libraries on a machine without them.
if importlib.util.find_spec("torchvision_cpu"):
    import torchvision_cpu  # noqa: F401
