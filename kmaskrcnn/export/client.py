"""Clients of exported models: TensorFlow Serving by REST and gRPC, and LiteRT. None needs TensorFlow or Keras.

client = RestClient("http://localhost:8501", "nuclei", read_labels("exported/1/assets.extra"))
prediction = client.predict("photo.jpg")
prediction.mask(0)          # (height, width) bool
prediction.to_coco(17)      # COCO results with RLE masks
"""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, Literal

import numpy as np

from ..results.labels import Labels, read_labels
from ..results.prediction import Prediction
from .answers import (
    COMPACT_MASKS,
    COMPACT_OUTPUTS,
    MASK_SCORES,
    OUTPUTS,
    SIGNATURE,
    SIZES,
    ImageError,
    ImageFile,
    ServerBusyError,
    ServingError,
    ServingTimeoutError,
    checked,
    read,
    to_predictions,
)
from .gpu_client import LiteRTGpuClient
from .http_post import Poster
from .litert_client import LiteRTClient, decode_image
from .retries import Deadline, retry

__all__ = [
    "AsyncClient",
    "Client",
    "GrpcClient",
    "ImageError",
    "LiteRTClient",
    "LiteRTGpuClient",
    "RestClient",
    "ServerBusyError",
    "ServingError",
    "ServingTimeoutError",
    "load_image",
    "read_labels",
]

# What a server takes unless it was exported otherwise.
_MAX_IMAGES, _MAX_BYTES = 16, 64 << 20


def load_image(image: ImageFile) -> np.ndarray:
    """An image file as models see it: (height, width, 3) uint8 RGB, upright by its EXIF orientation.

    Args:
        image: a path, or the bytes of a file in any format of Pillow's.

    Raises:
        ImageError: it cannot be decoded.
        OSError: the file cannot be read.
    """
    return decode_image(read(image))


class Client:
    """What the clients of SavedModels share; a client may be used by several threads.

    Attributes:
        labels: class names and COCO ids of the model.
        mask_paste: the model's setting of that name; an imported torchvision model has its own.
        timeout: seconds for one request, retries and waits included.
        retries: how often a request is sent again if the server was busy or not reachable.
        max_images: images per request; more are sent in several.
        max_bytes: bytes of the encoded images of a request; more are sent in several.
    """

    labels: Labels
    mask_paste: str = "pixel_centers"
    timeout: float = 60.0
    retries: int = 3
    max_images: int = _MAX_IMAGES
    max_bytes: int = _MAX_BYTES

    def _send(self, images: list[bytes], deadline: Deadline) -> Mapping[str, Any]:
        raise NotImplementedError

    def predict_batch(self, images: Sequence[ImageFile]) -> list[Prediction | ImageError]:
        """Send images, in one request if they fit.

        Args:
            images: paths of image files, or their bytes. The server reads JPEG, PNG, WebP, GIF and BMP.

        Returns:
            For each image its prediction in its own upright frame, or an ImageError that says why there is none.

        Raises:
            ServerBusyError: the server is overloaded or cannot be reached, also at the last attempt.
            ServingTimeoutError: there was no answer in time.
            ServingError: the server refused a request, or its answer is invalid.
            OSError: a file cannot be read.
        """
        return [result for request in self._requests(images) for result in self._predict(request)]

    def predict(self, image: ImageFile) -> Prediction:
        """Find the objects in one image; raises what `predict_batch` does, and ImageError."""
        (result,) = self.predict_batch([image])
        if isinstance(result, ImageError):
            raise result
        return result

    def _requests(self, images: Sequence[ImageFile]) -> Iterator[list[bytes]]:
        request: list[bytes] = []
        for image in images:
            encoded = read(image)
            if request and (len(request) == self.max_images or sum(map(len, request)) + len(encoded) > self.max_bytes):
                yield request
                request = []
            request.append(encoded)
        if request:
            yield request

    def _predict(self, images: list[bytes]) -> list[Prediction | ImageError]:
        deadline = Deadline(self.timeout)
        outputs = retry(lambda: self._send(images, deadline), deadline, self.retries)
        try:
            outputs = checked(outputs, len(images), self.labels)
        except ValueError as error:
            raise ServingError(f"an invalid answer: {error}") from None
        return to_predictions(outputs, outputs[SIZES].astype(np.int64).tolist(), self.labels, self.mask_paste)


class AsyncClient:
    """A client for asyncio: requests run in threads, with the errors and deadlines of the client.

    Args:
        client: a RestClient or GrpcClient.
        connections: most requests in progress at once; more wait.
    """

    def __init__(self, client: Client, connections: int = 16):
        self.client = client
        # Its own: asyncio's has a few threads more than there are cores.
        self._threads = futures.ThreadPoolExecutor(connections, "kmaskrcnn-client")

    async def predict_batch(self, images: Sequence[ImageFile]) -> list[Prediction | ImageError]:
        """As `Client.predict_batch`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.client.predict_batch, images)

    async def predict(self, image: ImageFile) -> Prediction:
        """As `Client.predict`."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.client.predict, image)


class RestClient(Client):
    """TensorFlow Serving's REST API.

    Args:
        url: base URL of the server, such as http://localhost:8501.
        model: name of the model on the server.
        labels: class names and COCO ids, from `assets.extra` of the exported folder (`read_labels`).
        version: a version of the model; None: the newest.
        timeout: as for `Client`.
        layout: "row" sends a list of instances, "column" named inputs; the answers are the same.
        retries: as for `Client`.
        max_images: as for `Client`.
        max_bytes: as for `Client`.
        max_answer_bytes: longer answers are refused.

    Raises:
        ValueError: not a URL.
    """

    def __init__(
        self,
        url: str,
        model: str,
        labels: Labels,
        version: int | None = None,
        timeout: float = 60.0,
        layout: Literal["row", "column"] = "row",
        retries: int = 3,
        max_images: int = _MAX_IMAGES,
        max_bytes: int = _MAX_BYTES,
        max_answer_bytes: int = 1 << 28,
    ):
        chosen = "" if version is None else f"/versions/{version}"
        self.url = f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}{chosen}:predict"
        self.labels, self.timeout, self.layout = labels, timeout, layout
        self.retries, self.max_images, self.max_bytes = retries, max_images, max_bytes
        self._poster = Poster(self.url, {"Content-Type": "application/json"}, max_answer_bytes)

    def _send(self, images: list[bytes], deadline: Deadline) -> Mapping[str, Any]:
        encoded = [{"b64": base64.b64encode(image).decode()} for image in images]
        body: dict[str, Any] = {"signature_name": SIGNATURE}
        body |= {"instances": encoded} if self.layout == "row" else {"inputs": {"image_bytes": encoded}}
        data = self._poster.post(json.dumps(body).encode(), deadline)
        try:
            return self._outputs(json.loads(data), len(images))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ServingError(f"{self.url}: an invalid answer ({reason})") from None

    def _outputs(self, answer: Any, count: int) -> Mapping[str, Any]:
        if self.layout == "column":
            outputs = dict(answer["outputs"])
        else:
            rows = answer["predictions"]
            if len(rows) != count:
                raise ValueError(f"{len(rows)} predictions for {count} images")
            outputs = {name: [row[name] for row in rows] for name in rows[0]}
        if COMPACT_MASKS in outputs:
            outputs[COMPACT_MASKS] = [base64.b64decode(value["b64"], validate=True) for value in outputs[COMPACT_MASKS]]
        return outputs

    def close(self) -> None:
        """Close the connections."""
        self._poster.close()


class GrpcClient(Client):
    """TensorFlow Serving's gRPC API; several times less to send and to parse than REST. Needs grpcio and protobuf.

    Args:
        target: host:port, such as localhost:8500.
        model: name of the model on the server.
        labels: class names and COCO ids of the model.
        timeout: as for `Client`.
        credentials: from `grpc.ssl_channel_credentials`; None: an insecure channel.
        retries: as for `Client`.
        max_images: as for `Client`.
        max_bytes: as for `Client`.
        compact_masks: whether the model was exported with compact masks.
        max_answer_bytes: longer answers are refused.
        mask_scores: whether to ask for mask scores too, which models with mask_scoring alone have.
    """

    def __init__(
        self,
        target: str,
        model: str,
        labels: Labels,
        timeout: float = 60.0,
        credentials: Any = None,
        retries: int = 3,
        max_images: int = _MAX_IMAGES,
        max_bytes: int = _MAX_BYTES,
        compact_masks: bool = False,
        max_answer_bytes: int = 1 << 28,
        mask_scores: bool = False,
    ):
        try:
            import grpc

            from . import serving_protos
        except ImportError:
            raise ImportError("GrpcClient needs packages: pip install grpcio protobuf") from None

        self._grpc, self._protos = grpc, serving_protos
        self.target, self.model, self.labels, self.timeout = target, model, labels, timeout
        self.retries, self.max_images, self.max_bytes = retries, max_images, max_bytes
        # Not the full-size masks that a server may have: they are large, and pasted here.
        self._names = (COMPACT_OUTPUTS if compact_masks else OUTPUTS) + ((MASK_SCORES,) if mask_scores else ())
        options = [("grpc.max_receive_message_length", max_answer_bytes), ("grpc.max_send_message_length", -1)]
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options)
        self._call = self._channel.unary_unary(
            serving_protos.PREDICT_METHOD,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=serving_protos.PredictResponse.FromString,
        )

    def _send(self, images: list[bytes], deadline: Deadline) -> Mapping[str, Any]:
        code = self._grpc.StatusCode
        try:
            request = self._protos.predict_request(images, self.model, self._names)
            return self._protos.outputs_of(self._call(request, timeout=deadline.left()))
        except self._grpc.RpcError as error:
            message = f"{self.target}: {error.code().name}: {error.details()}"
            if error.code() == code.DEADLINE_EXCEEDED:
                raise ServingTimeoutError(message) from None
            # A message that is too long is RESOURCE_EXHAUSTED too, and stays so.
            too_long = "larger than max" in (error.details() or "")
            if error.code() in (code.UNAVAILABLE, code.RESOURCE_EXHAUSTED) and not too_long:
                raise ServerBusyError(message) from None
            raise ServingError(message) from None
        except ValueError as error:
            raise ServingError(f"{self.target}: an invalid answer ({error})") from None

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
