"""Clients of exported models: TensorFlow Serving by REST and gRPC, and LiteRT. None needs TensorFlow or Keras.

client = RestClient("http://localhost:8501", "nuclei", read_labels("exported/1/assets.extra"))
prediction = client.predict("photo.jpg")
prediction.mask(0)          # (height, width) bool
prediction.to_coco(17)      # COCO results with RLE masks
"""

from __future__ import annotations

import base64
import io
import json
import os
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from kmaskrcnn.labels import Labels, read_labels
from kmaskrcnn.prediction import Prediction

__all__ = ["GrpcClient", "ImageError", "LiteRTClient", "RestClient", "ServingError", "read_labels"]

_SIGNATURE = "serving_default"
_NUMBER, _BOXES, _SCORES = "num_detections", "detection_boxes", "detection_scores"
_CLASSES, _MASKS = "detection_classes", "detection_masks"
_SIZES, _ERRORS = "image_sizes", "image_errors"
_OUTPUTS = (_NUMBER, _BOXES, _SCORES, _CLASSES, _MASKS, _SIZES, _ERRORS)

Picture = str | os.PathLike | bytes


class ServingError(RuntimeError):
    """The server cannot be reached, or refused the request."""


class ImageError(ValueError):
    """A picture that cannot be decoded, or is too large for the server."""


def to_predictions(
    outputs: Mapping[str, np.ndarray],
    sizes: Sequence[Sequence[int]],
    labels: Labels,
    mask_paste: str = "pixel_centers",
) -> list[Prediction | ImageError]:
    """The outputs of the exported model, one entry an image.

    Args:
        outputs: arrays by name, batch-major.
        sizes: height and width of each sent picture, upright.
        labels, mask_paste: of the model.

    Returns:
        For each picture its prediction, or what is wrong with it.
    """
    errors = outputs.get(_ERRORS, [b""] * len(sizes))
    results: list[Prediction | ImageError] = []
    for i, size in enumerate(sizes):
        error = errors[i].decode() if isinstance(errors[i], bytes) else str(errors[i])
        if error:
            results.append(ImageError(error))
            continue
        count = int(np.asarray(outputs[_NUMBER]).reshape(-1)[i])
        height, width = size
        boxes = np.asarray(outputs[_BOXES][i][:count], np.float32).reshape(count, 4)
        results.append(
            Prediction(
                height,
                width,
                boxes * np.array([height, width, height, width], np.float32),
                np.asarray(outputs[_SCORES][i][:count], np.float32),
                np.asarray(outputs[_CLASSES][i][:count]).astype(np.int32),
                np.asarray(outputs[_MASKS][i][:count], np.float32),
                labels,
                mask_paste,
            )
        )
    return results


def _read(picture: Picture) -> bytes:
    if isinstance(picture, bytes):
        return picture
    with open(picture, "rb") as file:
        return file.read()


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
        images = [_read(picture) for picture in pictures]
        if not images:
            return []
        outputs = self._run(images)
        return to_predictions(outputs, np.asarray(outputs[_SIZES], np.int64).tolist(), self.labels, self.mask_paste)

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
        body: dict[str, Any] = {"signature_name": _SIGNATURE}
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
            request = self._protos.predict_request(images, self.model, _OUTPUTS)
            response = self._predict(request, timeout=self.timeout)
        except self._grpc.RpcError as error:
            raise ServingError(f"{self.target}: {error.code().name}: {error.details()}") from None
        return self._protos.outputs_of(response)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class LiteRTClient:
    """A .tflite file of ours in the LiteRT runtime (`pip install ai-edge-litert`).

    One client may be called from several threads; its calls then run one after the other, each on `threads` cores.

    Args:
        path: of the file; labels and the size of the input are read from inside it.
        threads: of the runtime.

    Raises:
        ValueError: the file holds no metadata of ours, or was exported before images had a shape of their own.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 2):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise ImportError("LiteRTClient needs the runtime: pip install ai-edge-litert") from None
        try:
            with zipfile.ZipFile(path) as archive:
                self.metadata = json.loads(archive.read("metadata.json"))
        except (zipfile.BadZipFile, KeyError):
            raise ValueError(f"{os.fspath(path)}: no model exported by kmaskrcnn, it holds no metadata.json") from None
        self.labels = Labels(tuple(self.metadata["class_names"]), tuple(self.metadata["category_ids"]))
        self._lock = threading.Lock()  # an interpreter keeps the tensors of one call
        self._interpreter = Interpreter(model_path=os.fspath(path), num_threads=threads)
        self._signature = self._interpreter.get_signature_runner(_SIGNATURE)
        if "image_shape" not in self._signature.get_input_details():
            raise ValueError(
                f"{os.fspath(path)}: it takes padding for image (no input image_shape): export the model again"
            )
        _, self.height, self.width, _ = self.metadata["input"]["shape"]

    def letterbox(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """`letterbox` to the size of the input."""
        return letterbox(pixels, self.height, self.width, self.metadata["pad_value"])

    def run(self, images: np.ndarray, image_shape: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """The raw outputs by name.

        Args:
            images: (height, width, 3) or (1, height, width, 3) uint8.
            image_shape: height and width of the image inside the padding, as `letterbox` returns them; default: all of
                the input is image.
        """
        images = images.reshape(1, self.height, self.width, 3)
        shape = np.array([image_shape or (self.height, self.width)], np.int32)
        with self._lock:
            return self._signature(images=images, image_shape=shape)

    def predict(self, picture: Picture | np.ndarray) -> Prediction:
        """Find the objects of one picture.

        Args:
            picture: a path, the bytes of a file in any format of Pillow's, or (H, W, 3) uint8 RGB.

        Raises:
            ImageError: it cannot be decoded.
            OSError: the file cannot be read.
        """
        pixels = picture if isinstance(picture, np.ndarray) else decode_picture(_read(picture))
        canvas, scaled = self.letterbox(pixels)
        return self.interpret(self.run(canvas, scaled), pixels.shape[:2], scaled)

    def interpret(self, outputs: Mapping[str, np.ndarray], size: Sequence[int], scaled: Sequence[int]) -> Prediction:
        """The raw outputs for a picture of a size (height, width) that `letterbox` scaled, as a prediction."""
        # Boxes are in 0..1 of the input; they end at the image, but for the last digit of the arithmetic here.
        stretch = np.array([self.height / scaled[0], self.width / scaled[1]] * 2, np.float32)
        outputs = {**outputs, _BOXES: np.minimum(outputs[_BOXES] * stretch, 1.0)}
        (prediction,) = to_predictions(
            outputs, [(int(size[0]), int(size[1]))], self.labels, self.metadata.get("mask_paste", "pixel_centers")
        )
        return prediction


def letterbox(
    pixels: np.ndarray, height: int, width: int, pad_value: Sequence[int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Scale a picture (H, W, 3) uint8 to fit, put it top left, fill the rest.

    Returns:
        The input (height, width, 3) uint8, and the height and width of the picture in it.
    """
    scale = min(height / pixels.shape[0], width / pixels.shape[1])
    scaled = (max(round(pixels.shape[0] * scale), 1), max(round(pixels.shape[1] * scale), 1))
    image = Image.fromarray(pixels)
    if scaled != pixels.shape[:2]:
        image = image.resize(scaled[::-1], Image.Resampling.BILINEAR)
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = np.asarray(pad_value, np.uint8)
    canvas[: scaled[0], : scaled[1]] = np.asarray(image)
    return canvas, scaled


def decode_picture(data: bytes) -> np.ndarray:
    """An encoded picture as upright RGB (H, W, 3) uint8; raises ImageError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"not an image that can be decoded ({error})") from None
