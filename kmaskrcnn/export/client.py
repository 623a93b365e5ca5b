"""Clients of exported models: TensorFlow Serving by REST and gRPC, and LiteRT. None needs TensorFlow or Keras.

client = RestClient("http://localhost:8501", "nuclei", read_labels("exported/1/assets.extra"))
prediction = client.predict("photo.jpg")
prediction.mask(0)          # (height, width) bool
prediction.to_coco(17)      # COCO results with RLE masks
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from kmaskrcnn.export.answers import OUTPUTS, SIGNATURE, SIZES, ImageError, Picture, ServingError, read, to_predictions
from kmaskrcnn.export.gpu_client import LiteRTGpuClient
from kmaskrcnn.export.litert_client import LiteRTClient
from kmaskrcnn.results.labels import Labels, read_labels
from kmaskrcnn.results.prediction import Prediction

__all__ = [
    "Client",
    "GrpcClient",
    "ImageError",
    "LiteRTClient",
    "LiteRTGpuClient",
    "RestClient",
    "ServingError",
    "read_labels",
]


class Client:
    """What the clients of SavedModels share.

    Attributes:
        labels: classes of the model.
        mask_paste: its setting of that name; an imported torchvision model has its own.
    """

    labels: Labels
    mask_paste: str = "pixel_centers"

    def _run(self, images: list[bytes]) -> Mapping[str, np.ndarray]:
        raise NotImplementedError

    def predict_batch(self, pictures: Sequence[Picture]) -> list[Prediction | ImageError]:
        """Send pictures in one request.

        Args:
            pictures: paths of image files, or their bytes. The server reads JPEG, PNG, WebP, GIF and BMP.

        Returns:
            For each picture its prediction in its own upright frame, or an ImageError that says why there is none.

        Raises:
            ServingError: the server cannot be reached or refused the request.
            OSError: a file cannot be read.
        """
        images = [read(picture) for picture in pictures]
        if not images:
            return []
        outputs = self._run(images)
        return to_predictions(outputs, np.asarray(outputs[SIZES], np.int64).tolist(), self.labels, self.mask_paste)

    def predict(self, picture: Picture) -> Prediction:
        """Find the objects of one picture; raises what `predict_batch` does, and ImageError."""
        (result,) = self.predict_batch([picture])
        if isinstance(result, ImageError):
            raise result
        return result


class RestClient(Client):
    """TensorFlow Serving's REST API.

    Args:
        url: of the server, such as http://localhost:8501.
        model: its name there.
        labels: classes of the model, from `assets.extra` of the exported folder (`read_labels`).
        version: a version of the model; None: the newest.
        timeout: seconds.
        layout: "row" sends a list of instances, "column" named inputs; the answers are the same.
    """

    def __init__(
        self,
        url: str,
        model: str,
        labels: Labels,
        version: int | None = None,
        timeout: float = 60.0,
        layout: Literal["row", "column"] = "row",
    ):
        chosen = "" if version is None else f"/versions/{version}"
        self.url = f"{url.rstrip('/')}/v1/models/{model}{chosen}:predict"
        self.labels, self.timeout, self.layout = labels, timeout, layout

    def _run(self, images: list[bytes]) -> Mapping[str, np.ndarray]:
        encoded = [{"b64": base64.b64encode(image).decode()} for image in images]
        body: dict[str, Any] = {"signature_name": SIGNATURE}
        body |= {"instances": encoded} if self.layout == "row" else {"inputs": {"image_bytes": encoded}}
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise ServingError(f"{self.url}: {error.code} {error.read().decode(errors='replace')[:500]}") from None
        except (OSError, ValueError) as error:
            raise ServingError(f"{self.url}: {error}") from None
        if self.layout == "column":
            return answer["outputs"]
        rows = answer["predictions"]
        return {name: [row[name] for row in rows] for name in rows[0]}


class GrpcClient(Client):
    """TensorFlow Serving's gRPC API; several times less to send and to parse than REST. Needs grpcio and protobuf.

    Args:
        target: host:port, such as localhost:8500.
        model: its name there.
        labels: classes of the model.
        timeout: seconds.
        credentials: of `grpc.ssl_channel_credentials`; None: an open channel.
    """

    def __init__(self, target: str, model: str, labels: Labels, timeout: float = 60.0, credentials: Any = None):
        import grpc

        from kmaskrcnn.export import serving_protos

        self._grpc, self._protos = grpc, serving_protos
        self.target, self.model, self.labels, self.timeout = target, model, labels, timeout
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options)
        self._predict = self._channel.unary_unary(
            serving_protos.PREDICT_METHOD,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=serving_protos.PredictResponse.FromString,
        )

    def _run(self, images: list[bytes]) -> Mapping[str, np.ndarray]:
        try:
            # Not the full-size masks that a server may have: they are large, and pasted here.
            request = self._protos.predict_request(images, self.model, OUTPUTS)
            response = self._predict(request, timeout=self.timeout)
        except self._grpc.RpcError as error:
            raise ServingError(f"{self.target}: {error.code().name}: {error.details()}") from None
        return self._protos.outputs_of(response)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
