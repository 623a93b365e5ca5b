"""Clients of models that kmaskrcnn exports, without TensorFlow: the classes of `kmaskrcnn.export.client`."""

from .export.client import (
    AsyncClient,
    Client,
    GrpcClient,
    ImageError,
    LiteRTClient,
    LiteRTGpuClient,
    RestClient,
    ServerBusyError,
    ServingError,
    ServingTimeoutError,
    load_image,
    read_labels,
)
from .results.labels import Labels
from .results.prediction import Prediction

__all__ = [
    "AsyncClient",
    "Client",
    "GrpcClient",
    "ImageError",
    "Labels",
    "LiteRTClient",
    "LiteRTGpuClient",
    "Prediction",
    "RestClient",
    "ServerBusyError",
    "ServingError",
    "ServingTimeoutError",
    "load_image",
    "read_labels",
]
