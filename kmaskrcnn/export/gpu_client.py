"""Client of a .tflite for the GPU (format "tflite_gpu"): the LiteRT runtime, NumPy and Pillow.

client = LiteRTGpuClient("model_gpu.tflite")
prediction = client.predict("photo.jpg")
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ..results.prediction import Prediction
from . import host
from .litert_client import FileClient, letterbox


class LiteRTGpuClient(FileClient):
    """The three graphs of a .tflite for the GPU, and the host's steps between them. One call at a time, in any thread.

    Args:
        path: path of the file; labels and settings are read from it.
        accelerator: "gpu" needs LiteRT's accelerator and a driver; "cpu" runs the same graphs in XNNPACK.
        threads: CPU threads.
        float32: compute in float32 on the GPU too; False allows float16.

    Raises:
        ValueError: the file was not exported as tflite_gpu.
        RuntimeError: the accelerator is not available.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        accelerator: Literal["gpu", "cpu"] = "gpu",
        threads: int = 2,
        float32: bool = True,
    ):
        try:
            from ai_edge_litert import compiled_model as litert
        except ImportError:
            raise ImportError("LiteRTGpuClient needs the runtime: pip install 'ai-edge-litert>=2.3'") from None
        super().__init__(path)
        if "host" not in self.metadata:
            raise ValueError(f"{os.fspath(path)}: exported as tflite, use LiteRTClient")
        self.settings = self.metadata["host"]
        self.height, self.width = self.settings["height"], self.settings["width"]
        options = litert.Options(
            hardware_accelerators=getattr(litert.HardwareAccelerator, accelerator.upper()),
            cpu_options=litert.CpuOptions(num_threads=threads),
            gpu_options=litert.GpuOptions(enforce_f32=float32),
        )
        self._model = litert.CompiledModel.from_file(os.fspath(path), options=options)
        self._inputs, self._outputs, self._shapes = {}, {}, {}
        for graph, names in self._model.get_signature_list().items():
            (name,) = names["inputs"]
            details = self._model.get_output_tensor_details(graph)
            self._inputs[graph] = {name: self._model.create_input_buffer_by_name(graph, name)}
            self._outputs[graph] = {n: self._model.create_output_buffer_by_name(graph, n) for n in names["outputs"]}
            self._shapes[graph] = {n: tuple(details[n]["shape"]) for n in names["outputs"]}

    def run(self, graph: str, values: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs by name of one of the graphs, for its input in float32."""
        (buffer,) = self._inputs[graph].values()
        buffer.write(np.ascontiguousarray(values, np.float32))
        self._model.run_by_name(graph, self._inputs[graph], self._outputs[graph])
        return {
            name: np.asarray(buffer.read(int(np.prod(self._shapes[graph][name])), np.float32)).reshape(
                self._shapes[graph][name]
            )
            for name, buffer in self._outputs[graph].items()
        }

    def letterbox(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The input (1, height, width, 3) float32 with an image (H, W, 3) uint8 in it, and its height and width there.

        The padding is the number that normalization turns into 0.
        """
        canvas, scaled = letterbox(pixels, self.height, self.width, (0, 0, 0))
        images = canvas[None].astype(np.float32)
        images[:, scaled[0] :] = images[:, :, scaled[1] :] = self.metadata["pad_value"]
        return images, scaled

    def detect(self, images: np.ndarray, scaled: tuple[int, int]) -> Mapping[str, np.ndarray]:
        """Boxes, scores, classes and masks, as for `host.detect`, for an image that `letterbox` scaled."""
        with self._lock:
            return host.detect(self.run, images, scaled, self.settings)

    def interpret(self, found: Mapping[str, np.ndarray], size: Sequence[int], scaled: Sequence[int]) -> Prediction:
        """What `detect` found in an image of a size (height, width) that `letterbox` scaled, as a prediction."""
        height, width = int(size[0]), int(size[1])
        stretch = np.array([height / scaled[0], width / scaled[1]] * 2, np.float32)
        boxes = np.minimum(found["boxes"] * stretch, np.array([height, width] * 2, np.float32))
        rest = (found["scores"], found["classes"], found["masks"], self.labels, self.metadata["mask_paste"])
        return Prediction(height, width, boxes, *rest)
