"""SavedModel for TensorFlow Serving: encoded images in, detections named as in the TF Object Detection API."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kmaskrcnn.config import Config, ConfigError, DataConfig
from kmaskrcnn.data.resize import pixel_dtype, resize
from kmaskrcnn.data.sizes import NATIVE_STEPS, long_sides
from kmaskrcnn.export import encoded_images, serving_protos
from kmaskrcnn.export.answers import MASK_SCORES, ServingError, refusal
from kmaskrcnn.export.client import Client
from kmaskrcnn.export.frozen import freeze, inference_of
from kmaskrcnn.export.retries import Deadline
from kmaskrcnn.model import MaskRCNN
from kmaskrcnn.ops.tensor import Tensor
from kmaskrcnn.results.labels import Labels, parse_labels, write_labels

# Encoded images with more pixels than this are refused before they are decoded.
MAX_PIXELS = 40_000_000
# Requests with more images, or more bytes of images, are refused: a server bounds them by nothing else.
MAX_IMAGES = 16
MAX_REQUEST_BYTES = 64 << 20
# Images of a request that are decoded at once: each may take ten bytes a pixel for that.
DECODED_AT_ONCE = 4
# The smallest canvas, which stands for images that are refused.
_NO_CANVAS = (32, 32)
# Steps of a compact mask's probabilities: none is one half, and 100 masks of noise fit in 100 kB of base64.
_COMPACT_LEVELS = 17
# With resize_mode=native nothing else bounds what the network is given.
MAX_NATIVE_SIDE = 2048


class ServingFunctions:
    """The signatures of an exported model.

    Both return, for each image of the batch: num_detections (B,), detection_boxes (B, D, 4) yxyx in 0..1 of the sent
    image, detection_scores (B, D), detection_classes (B, D) from 1, detection_masks (B, D, M, M) probabilities over
    each box, all float32 and by decreasing score, 0 in rows past num_detections; image_sizes (B, 2) float32, height and
    width of the sent image, upright; `serving_default` also image_errors (B,), "" or why the image was left out. Models
    with mask_scoring also have detection_mask_scores (B, D) float32. With full_size_masks there is
    detection_masks_reframed (B, D, H, W) uint8 as well, the masks at the size of the largest sent image, each in the
    top left of its own.

    A refused image takes no part in what follows: the others are padded, batched and answered as without it.

    Args:
        model: the model with its weights.
        config: how images are resized.
        max_pixels: encoded images that state more pixels are refused.
        full_size_masks: also paste the masks in the graph: D bytes for each pixel of the largest image of a batch.
        max_images: larger batches are an error.
        max_request_bytes: batches whose encoded images have more bytes together are an error.
        compact_masks: `serving_default` answers detection_masks_png_bytes (B,) in place of detection_masks: a gray PNG
            of the masks one below the other, (num_detections * M, M), 255 for 1; see `answers.unpack_masks`.
        constant_weights: the graphs hold the weights as constants (`freeze`), not as variables.
    """

    def __init__(
        self,
        model: MaskRCNN,
        config: DataConfig,
        max_pixels: int = MAX_PIXELS,
        full_size_masks: bool = False,
        max_images: int = MAX_IMAGES,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        compact_masks: bool = False,
        constant_weights: bool = False,
    ):
        # Evaluation sizes: those drawn in training would only widen the padding.
        self.config = dataclasses.replace(config, min_size_train=())
        self.network = freeze(model, pixel_dtype(config.resize_method)) if constant_weights else inference_of(model)
        self.max_pixels, self.full_size_masks, self.max_images = max_pixels, full_size_masks, max_images
        self.max_request_bytes, self.compact_masks = max_request_bytes, compact_masks
        image_bytes_spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
        images_spec = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")
        self.serving_default = tf.function(self._serving_default, input_signature=[image_bytes_spec], autograph=False)
        self.serving_tensor = tf.function(self._serving_tensor, input_signature=[images_spec], autograph=False)

    def _serving_default(self, image_bytes: Tensor) -> dict[str, Tensor]:
        def measure(encoded: Tensor) -> tuple[Tensor, ...]:
            header = encoded_images.read_header(encoded, self.max_pixels)
            large = self._too_large(self._scaled(header.size))
            problem = tf.where(large & (header.problem == ""), encoded_images.TOO_LARGE, header.problem)
            canvas = tf.cond(problem == "", lambda: self._canvas(header.size), lambda: tf.constant(_NO_CANVAS))
            return (*header._replace(problem=problem), canvas)

        def load(row: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            encoded, *header = row
            pixels, problem = encoded_images.decode(encoded, encoded_images.Header(*header))
            sent = tf.shape(pixels)[:2]
            shape = self._scaled(sent)
            shape = tf.where(problem == "", shape, tf.minimum(shape, _NO_CANVAS))
            return tf.ensure_shape(self._fit(pixels, shape, canvas), (None, None, 3)), shape, sent, problem

        pair, number = tf.TensorSpec((2,), tf.int32), tf.TensorSpec((), tf.int32)
        text = tf.TensorSpec((), tf.string)
        pixels = tf.TensorSpec((None, None, 3), pixel_dtype(self.config.resize_method))
        length = tf.reduce_sum(tf.cast(tf.strings.length(image_bytes), tf.int64))
        message = [f"a request may hold {self.max_request_bytes} bytes of images, this one holds:", length]
        long = tf.debugging.Assert(length <= self.max_request_bytes, message)
        with tf.control_dependencies([self._bounded(image_bytes), long]):
            # A map over nothing has no shape, so one element more goes through it, which is no image.
            more = tf.concat([image_bytes, [""]], axis=0)
        *headers, canvases = tf.map_fn(measure, more, fn_output_signature=(pair, number, number, text, pair))
        canvas = tf.reduce_max(canvases, axis=0)
        loaded = tf.map_fn(
            load,
            (more, *headers),
            fn_output_signature=(pixels, pair, pair, text),
            parallel_iterations=DECODED_AT_ONCE,
        )
        images, shapes, sent, problems = loaded
        good = problems == ""
        rows = tf.where(good)[:, 0]
        # Of those whose headers promised more than could be decoded nothing may be left, not even the padding.
        height, width = tf.unstack(tf.maximum(tf.reduce_max(tf.gather(canvases, rows), axis=0), _NO_CANVAS))
        images = tf.gather(images, rows)[:, :height, :width]
        found = self._detect(images, tf.gather(shapes, rows), tf.gather(sent, rows))
        count = tf.shape(rows)[0]
        source = tf.where(good, tf.cumsum(tf.cast(good, tf.int32)) - 1, count)[:-1]
        # A row of zeros behind the last is what refused images get.
        outputs = {n: tf.gather(tf.pad(x, [(0, 1)] + [(0, 0)] * (x.shape.rank - 1)), source) for n, x in found.items()}
        if self.compact_masks:
            masks = outputs.pop("detection_masks")
            outputs["detection_masks_png_bytes"] = _pack_masks(masks, outputs["num_detections"])
        return {**outputs, "image_errors": problems[:-1]}

    def _serving_tensor(self, images: Tensor) -> dict[str, Tensor]:
        count, size = tf.shape(images)[0], tf.shape(images)[1:3]
        shape = self._scaled(size)
        oversize = tf.debugging.Assert(~self._too_large(shape), ["images are too large for this model:", size])
        with tf.control_dependencies([oversize, self._bounded(images)]):
            canvas = self._canvas(size)
        shapes, sent = (tf.tile(x[None], (count, 1)) for x in (shape, size))
        return self._detect(self._fit(images, shape, canvas), shapes, sent)

    def _bounded(self, batch: Tensor) -> tf.Operation:
        count = tf.shape(batch)[0]
        message = [f"a request may hold {self.max_images} images, this one holds:", count]
        return tf.debugging.Assert(count <= self.max_images, message)

    def _scaled(self, size: Tensor) -> Tensor:
        """Height and width (2,) that an image of this size is resized to, as `sizes.network_size` has it."""
        config, sides = self.config, tf.cast(size, tf.float64)
        if config.resize_mode == "native":
            scale = tf.constant(config.native_scale, tf.float64)
        else:
            shortest, longest = tf.maximum(tf.reduce_min(sides), 1.0), tf.maximum(tf.reduce_max(sides), 1.0)
            scale = tf.minimum(config.min_size / shortest, config.max_size / longest)
            if config.resize_method == "torchvision":
                return tf.maximum(tf.cast(tf.floor(sides * scale), tf.int32), 1)
            if config.resize_method == "detectron2":
                # The short side is not computed but stays what it is set to.
                whole = config.min_size / shortest
                scaled = tf.where(sides <= shortest, tf.constant(config.min_size, tf.float64), whole * sides)
                scaled *= tf.minimum(config.max_size / tf.reduce_max(scaled), 1.0)
                return tf.maximum(tf.cast(scaled + 0.5, tf.int32), 1)
        return tf.maximum(tf.cast(tf.round(sides * scale), tf.int32), 1)

    def _too_large(self, shape: Tensor) -> Tensor:
        native = self.config.resize_mode == "native"
        return tf.reduce_any(shape > MAX_NATIVE_SIDE) if native else tf.constant(False)

    def _canvas(self, size: Tensor) -> Tensor:
        """The padded height and width (2,) of an image of this size, as `sizes.bucket_shape` has it."""
        shape = self._scaled(size)
        if self.config.resize_mode == "native":
            small, large, turn = NATIVE_STEPS
            step = tf.where(shape <= turn, small, large)
            return (shape + step - 1) // step * step
        short, *longs = long_sides(self.config)
        longest = tf.reduce_max(shape)
        long = tf.reduce_min(tf.where(tf.constant(longs) >= longest, longs, max(longs)))
        return tf.where(size[0] <= size[1], [short, long], [long, short])

    def _fit(self, pixels: Tensor, shape: Tensor, canvas: Tensor) -> Tensor:
        # Pillow's resizing is no operation of the graph; "antialias" is within a level of it.
        method = "torchvision" if self.config.resize_method == "torchvision" else "antialias"
        resized = resize(pixels, shape[0], shape[1], method)
        batch = [(0, 0)] * (pixels.shape.rank - 3)
        return tf.pad(resized, [*batch, (0, canvas[0] - shape[0]), (0, canvas[1] - shape[1]), (0, 0)])

    def _detect(self, images: Tensor, shapes: Tensor, sent: Tensor) -> dict[str, Tensor]:
        count = tf.shape(images)[0]
        # TensorFlow's convolutions on the CPU fail on an empty batch: it becomes one blank image, left out at the end.
        blank = tf.cast(count == 0, tf.int32)
        images = tf.pad(images, [(0, blank), (0, 0), (0, 0), (0, 0)])
        shapes, sent = (tf.pad(x, [(0, blank), (0, 0)], constant_values=1) for x in (shapes, sent))
        found = self.network(images, shapes)
        rows = tf.range(found["boxes"].shape[1])[None] < found["num_detections"][:, None]
        rows = tf.cast(rows, tf.float32)  # (B, D)
        limits = tf.cast(tf.concat([shapes, shapes], axis=1), tf.float32)[:, None]  # (B, 1, 4)
        boxes = tf.clip_by_value(found["boxes"] / limits, 0.0, 1.0)
        outputs = {
            "num_detections": tf.cast(found["num_detections"], tf.float32),
            "detection_boxes": boxes * rows[..., None],
            "detection_scores": found["scores"] * rows,
            "detection_classes": tf.cast(found["classes"], tf.float32) * rows,
            "detection_masks": tf.cast(found["masks"], tf.float32) * rows[:, :, None, None],
            "image_sizes": tf.cast(sent, tf.float32),
        }
        if "mask_scores" in found:
            outputs[MASK_SCORES] = found["mask_scores"] * rows
        if self.full_size_masks:
            masks, boxes = outputs["detection_masks"], outputs["detection_boxes"]
            outputs["detection_masks_reframed"] = _paste(masks, boxes, sent)
        return {name: value[:count] for name, value in outputs.items()}


def _pack_masks(masks: Tensor, counts: Tensor) -> Tensor:
    """Masks (B, D, M, M) in 0..1, of which each image has a count (B,) -> (B,) PNG files; without masks of one row."""
    cells = masks.shape[-1]
    # The rounding is to fewer steps than the file has, so that it packs.
    gray = tf.cast(tf.round(tf.round(masks * _COMPACT_LEVELS) * (255 / _COMPACT_LEVELS)), tf.uint8)

    def pack(arguments: tuple[Tensor, Tensor]) -> Tensor:
        stack, count = arguments
        rows = tf.reshape(stack, (-1, cells, 1))[: tf.maximum(tf.cast(count, tf.int32) * cells, 1)]
        return tf.io.encode_png(rows, compression=9)

    more = (tf.pad(gray, [(0, 1), (0, 0), (0, 0), (0, 0)]), tf.pad(counts, [(0, 1)]))
    return tf.map_fn(pack, more, fn_output_signature=tf.TensorSpec((), tf.string))[:-1]


def _paste(masks: Tensor, boxes: Tensor, sizes: Tensor) -> Tensor:
    """Masks (B, D, M, M) over boxes (B, D, 4) in 0..1 of images of sizes (B, 2) -> (B, D, max H, max W) uint8 of 0, 1.

    Samples at pixel centers, as `kmaskrcnn.results.mask_paste`.
    """
    height, width = tf.unstack(tf.reduce_max(sizes, axis=0))
    cells = masks.shape[-1]

    def weights(start: Tensor, stop: Tensor, count: Tensor) -> Tensor:
        """(count, M): how much of each cell a pixel's center takes."""
        position = (tf.range(count, dtype=tf.float32) + 0.5 - start) / tf.maximum(stop - start, 1e-6) * cells - 0.5
        return tf.maximum(1.0 - tf.abs(position[:, None] - tf.range(cells, dtype=tf.float32)), 0.0)

    def paste_one(arguments: tuple[Tensor, Tensor]) -> Tensor:
        mask, (y0, x0, y1, x1) = arguments[0], tf.unstack(arguments[1])
        rows, columns = weights(y0, y1, height), weights(x0, x1, width)
        return tf.cast(tf.matmul(rows @ mask, columns, transpose_b=True) >= 0.5, tf.uint8)

    pixels = tf.reshape(boxes * tf.cast(tf.tile(sizes, (1, 2)), tf.float32)[:, None], (-1, 4))  # (B * D, 4)
    flat = tf.reshape(masks, (-1, cells, cells))
    # One at a time: in float all masks of an image would be four times the memory.
    pasted = tf.map_fn(
        paste_one, (flat, pixels), fn_output_signature=tf.TensorSpec((None, None), tf.uint8), parallel_iterations=1
    )
    return tf.reshape(pasted, (*tf.unstack(tf.shape(boxes)[:2]), height, width))


def export_saved_model(
    model: MaskRCNN,
    config: Config,
    labels: Labels,
    directory: str | os.PathLike,
    warmup_images: Sequence[bytes] = (),
    max_pixels: int = MAX_PIXELS,
    full_size_masks: bool = False,
    max_images: int = MAX_IMAGES,
    max_request_bytes: int = MAX_REQUEST_BYTES,
    compact_masks: bool = False,
    constant_weights: bool = False,
) -> Path:
    """Write a SavedModel into the next numbered folder of `directory`, which TensorFlow Serving watches.

    Args:
        model: the model, as `load_model` returns it.
        config: its settings.
        labels: its class names and COCO ids.
        directory: the model's base path.
        warmup_images: encoded images that Serving runs before it serves the version; default: a gray one of each shape
            that the network gets.
        max_pixels: as for `ServingFunctions`, as are the following.
        full_size_masks: whether to paste the masks in the graph.
        max_images: most images per request.
        max_request_bytes: most bytes of the encoded images of a request.
        compact_masks: whether to return the masks as a PNG.
        constant_weights: whether the weights become constants of the graph.

    Returns:
        The folder of the version. Besides the graph it holds assets.extra/labels.json, config.json and
        tf_serving_warmup_requests.

    Raises:
        ConfigError: full_size_masks for a model whose mask_paste is not pixel_centers, or max_request_bytes too low for
            any image.
    """
    if full_size_masks and config.model.mask_paste != "pixel_centers":
        raise ConfigError(
            f"full-size masks are pasted with pixel_centers alone, not mask_paste={config.model.mask_paste}"
        )
    # A larger one would be refused, and so would the version be by its server.
    warmup = [image for image in warmup_images if len(image) <= max_request_bytes]
    warmup = warmup or [image for image in gray_images(config.data) if len(image) <= max_request_bytes]
    if not warmup:
        raise ConfigError(f"max_request_bytes={max_request_bytes}: no image of the size that the model takes fits")
    directory = Path(directory).expanduser()
    directory.mkdir(parents=True, exist_ok=True)
    functions = ServingFunctions(
        model,
        config.data,
        max_pixels,
        full_size_masks,
        max_images,
        max_request_bytes,
        compact_masks,
        constant_weights,
    )
    archive = keras.export.ExportArchive()
    # Not tracked by hand: the archive finds the variables in the graphs, and would write them twice.
    archive.add_endpoint("serving_default", functions.serving_default)
    archive.add_endpoint("serving_tensor", functions.serving_tensor)
    # Serving must not find a version that is half written.
    with tempfile.TemporaryDirectory(prefix="part-", dir=directory, ignore_cleanup_errors=True) as folder:
        whole = Path(folder) / "model"
        archive.write_out(str(whole), verbose=False)
        extra = whole / "assets.extra"
        extra.mkdir(exist_ok=True)
        (extra / "config.json").write_text(config.to_json())
        write_labels(extra, labels)
        write_warmup(extra / "tf_serving_warmup_requests", warmup, directory.name)
        version = max((int(p.name) for p in directory.iterdir() if p.name.isdecimal()), default=0) + 1
        os.replace(whole, directory / str(version))
    return directory / str(version)


class SavedModelClient(Client):
    """An exported model in this process.

    Args:
        path: the folder of a version, local or remote.
    """

    def __init__(self, path: str | os.PathLike):
        self._model = tf.saved_model.load(os.fspath(path))
        extra = os.path.join(os.fspath(path), "assets.extra")
        with tf.io.gfile.GFile(os.path.join(extra, "labels.json")) as file:
            self.labels = parse_labels(file.read())
        with tf.io.gfile.GFile(os.path.join(extra, "config.json")) as file:
            self.mask_paste = Config.from_json(file.read()).model.mask_paste

    def _send(self, images: list[bytes], deadline: Deadline) -> Mapping[str, np.ndarray]:
        try:
            outputs = self._model.signatures["serving_default"](image_bytes=tf.constant(images, tf.string))
        except tf.errors.InvalidArgumentError as error:
            raise ServingError(refusal(error.message)) from None
        return {name: value.numpy() for name, value in outputs.items()}


def gray_images(config: DataConfig) -> list[bytes]:
    """JPEG images, landscape and portrait, of the largest size that images are brought to."""
    sides = (config.min_size, config.max_size) if config.resize_mode != "native" else (512, 512)
    return [tf.io.encode_jpeg(tf.fill((*size, 3), tf.constant(128, tf.uint8))).numpy() for size in {sides, sides[::-1]}]


def write_warmup(path: Path, images: Sequence[bytes], model_name: str) -> None:
    """Write the requests that TensorFlow Serving replays: a TFRecord file of its PredictionLog messages."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in images:
            request = serving_protos.predict_request([image], model_name)
            writer.write(serving_protos.prediction_log(request).SerializeToString())
