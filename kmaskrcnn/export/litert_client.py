"""Client of exported .tflite files: needs the LiteRT runtime, and neither TensorFlow nor Keras.

client = LiteRTClient("exported/model.tflite")
prediction = client.predict("photo.jpg")
"""

from __future__ import annotations

import abc
import io
import json
import math
import os
import threading
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..results.labels import Labels
from ..results.prediction import Prediction
from ..results.rgb import to_rgb
from .answers import BOXES, SIGNATURE, ImageError, ImageFile, read, to_prediction

_ORIENTATION = 0x0112  # in EXIF


class FileClient(abc.ABC):
    """What the clients of .tflite files share.

    Attributes:
        metadata: what the exporter wrote into the file.
        labels: classes of the model.
        height, width: of the input.
    """

    height: int
    width: int

    def __init__(self, path: str | os.PathLike):
        self.metadata = read_metadata(path)
        self.labels = Labels(tuple(self.metadata["class_names"]), tuple(self.metadata["category_ids"]))
        self._lock = threading.Lock()  # the runtime keeps the tensors of one call

    @abc.abstractmethod
    def letterbox(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The input with an image (H, W, 3) uint8 in it, and its height and width there."""

    @abc.abstractmethod
    def detect(self, images: np.ndarray, scaled: tuple[int, int]) -> Mapping[str, np.ndarray]:
        """What is found in an input of `letterbox`, in its frame."""

    @abc.abstractmethod
    def interpret(self, found: Mapping[str, np.ndarray], size: Sequence[int], scaled: Sequence[int]) -> Prediction:
        """What `detect` found, as a prediction for an image of a size (height, width)."""

    def predict(self, image: ImageFile | np.ndarray) -> Prediction:
        """Find the objects of one image.

        Args:
            image: a path, the bytes of a file in any format of Pillow's, or (H, W, 3) uint8 RGB.

        Raises:
            ImageError: it cannot be decoded.
            OSError: the file cannot be read.
        """
        pixels = image if isinstance(image, np.ndarray) else decode_image(read(image))
        images, scaled = self.letterbox(pixels)
        return self.interpret(self.detect(images, scaled), pixels.shape[:2], scaled)


class LiteRTClient(FileClient):
    """A .tflite file of ours in the LiteRT runtime (`pip install ai-edge-litert`).

    A file may take images in several sizes: each goes to the one whose aspect ratio is nearest to its own. One client
    may be called from several threads; its calls then run one after the other, each on `threads` cores.

    Attributes:
        height, width: of the first size.
        sizes: all sizes, (height, width).

    Args:
        path: path of the file; labels and the sizes of the input are read from it.
        threads: threads of the runtime.

    Raises:
        ValueError: the file has no kmaskrcnn metadata, or no input `image_shape`: export it again.
    """

    def __init__(self, path: str | os.PathLike, threads: int = 2):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise ImportError("LiteRTClient needs the runtime: pip install ai-edge-litert") from None
        super().__init__(path)
        if "host" in self.metadata:
            raise ValueError(f"{os.fspath(path)}: exported as tflite_gpu, use LiteRTGpuClient")
        _, self.height, self.width, _ = self.metadata["input"]["shape"]
        names = self.metadata.get("signatures", {SIGNATURE: (self.height, self.width)})
        self.sizes = [(height, width) for height, width in names.values()]
        self._interpreter = Interpreter(model_path=os.fspath(path), num_threads=threads)
        # Memory of a size is taken when it is first run.
        self._signatures = {tuple(size): self._interpreter.get_signature_runner(name) for name, size in names.items()}
        if any("image_shape" not in signature.get_input_details() for signature in self._signatures.values()):
            raise ValueError(
                f"{os.fspath(path)}: it cannot tell padding from image (no input image_shape): export the model again"
            )

    def size_for(self, size: Sequence[int]) -> tuple[int, int]:
        """The size (height, width) of the input for an image of a size: that of the nearest aspect ratio."""
        ratio = size[0] / size[1]
        return min(self.sizes, key=lambda own: abs(math.log(own[0] / own[1] / ratio)))

    def letterbox(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """`letterbox` to the size of the input for these pixels."""
        return letterbox(pixels, *self.size_for(pixels.shape[:2]), self.metadata["pad_value"])

    def run(self, images: np.ndarray, image_shape: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """The raw outputs by name.

        Args:
            images: (height, width, 3) or (1, height, width, 3) uint8, of one of `sizes`.
            image_shape: height and width of the image inside the padding, as `letterbox` returns them; default: those
                of the input.

        Raises:
            ValueError: images of another size.
        """
        height, width, _ = images.shape[-3:]
        if (height, width) not in self._signatures:
            raise ValueError(f"images of {height} x {width}: the file takes {self.sizes}")
        shape = np.array([image_shape or (height, width)], np.int32)
        with self._lock:
            return self._signatures[height, width](images=images.reshape(1, height, width, 3), image_shape=shape)

    def detect(self, images: np.ndarray, scaled: tuple[int, int]) -> Mapping[str, np.ndarray]:
        """The raw outputs by name for an image that `letterbox` scaled."""
        return self.run(images, scaled)

    def interpret(self, found: Mapping[str, np.ndarray], size: Sequence[int], scaled: Sequence[int]) -> Prediction:
        """The raw outputs for an image of a size (height, width) that `letterbox` scaled, as a prediction."""
        height, width = self.size_for(size)
        # Boxes are in 0..1 of the input; they end at the image, but for the last digit of the arithmetic here.
        stretch = np.array([height / scaled[0], width / scaled[1]] * 2, np.float32)
        outputs = {**found, BOXES: np.minimum(found[BOXES] * stretch, 1.0)}
        paste = self.metadata.get("mask_paste", "pixel_centers")
        return to_prediction(outputs, 0, (int(size[0]), int(size[1])), self.labels, paste)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata.json inside a .tflite of ours; raises ValueError where there is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("metadata.json"))
    except (zipfile.BadZipFile, KeyError):
        raise ValueError(f"{os.fspath(path)}: not a model exported by kmaskrcnn, it holds no metadata.json") from None


def letterbox(
    pixels: np.ndarray, height: int, width: int, pad_value: Sequence[int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Scale an image (H, W, 3) uint8 to fit, put it in the top left corner, pad the rest.

    Returns:
        The input (height, width, 3) uint8, and the height and width of the image in it.
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


def decode_image(data: bytes) -> np.ndarray:
    """An encoded image as upright RGB (H, W, 3) uint8; raises ImageError."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = to_rgb(image)
            orientation = image.getexif().get(_ORIENTATION, 1)  # Pillow has turned a TIFF already
        if orientation == 1:
            return pixels
        turned = Image.fromarray(pixels)
        turned.getexif()[_ORIENTATION] = orientation
        return np.asarray(ImageOps.exif_transpose(turned))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"not an image that can be decoded ({error})") from None
