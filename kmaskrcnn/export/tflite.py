"""TFLite with builtin operations only: one static image in, detections out."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.lite.python import schema_py_generated as schema

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.export import flatbuffer
from kmaskrcnn.export.answers import MASK_SCORES, SIGNATURE
from kmaskrcnn.export.tflite_metadata import LABELS, SETTINGS, VALUE_LABELS, value_labels, with_metadata
from kmaskrcnn.model import SIZE_MULTIPLE, MaskRCNN
from kmaskrcnn.ops.roi_align import LOOKUP_SUM
from kmaskrcnn.outputs import Outputs, split_file
from kmaskrcnn.results.labels import Labels

QUANTIZE = ("none", "float16", "dynamic", "int8")


class ExportError(RuntimeError):
    """An export that cannot be made, or whose artifact is not what was asked for."""


# In which a mobile graph differs from training: no bfloat16, and RoIAlign without CropAndResize.
MOBILE_SETTINGS = {"dtype": "float32", "roi_align_implementation": "lookup"}


class MobileFunction:
    """The graph: an image -> detections with boxes in 0..1 of the input.

    Inputs: `images` (1, H, W, 3) uint8 RGB, the image top left; `image_shape` (1, 2) int32, height and width of the
    image in it. What lies beyond is padding: the network sees zeros there, and boxes end at the image.

    Args:
        model: built with MOBILE_SETTINGS.
        height, width: of the input.
    """

    def __init__(self, model: MaskRCNN, height: int, width: int):
        self.model, self.size = model, (height, width)
        model.static_shapes = True  # no shape may depend on the number of detections
        images = tf.TensorSpec((1, height, width, 3), tf.uint8, name="images")
        image_shape = tf.TensorSpec((1, 2), tf.int32, name="image_shape")
        self.serving_default = tf.function(self._detect, input_signature=[images, image_shape], autograph=False)

    def _detect(self, images: tf.Tensor, image_shape: tf.Tensor) -> dict[str, tf.Tensor]:
        found = self.model({"images": images, "image_shapes": image_shape}, training=False)
        boxes = found["boxes"] / tf.constant([*self.size, *self.size], tf.float32)
        return {
            "num_detections": tf.cast(found["num_detections"], tf.float32),
            "detection_boxes": tf.clip_by_value(boxes, 0.0, 1.0),
            "detection_scores": found["scores"],
            "detection_classes": tf.cast(found["classes"], tf.float32),
            "detection_masks": found["masks"],
            **({MASK_SCORES: found["mask_scores"]} if "mask_scores" in found else {}),
        }


def convert(
    model: MaskRCNN,
    sizes: Sequence[tuple[int, int]],
    quantize: str = "none",
    calibration_images: Iterable[np.ndarray] = (),
) -> bytes:
    """Convert to a TFLite flatbuffer with a signature for each size of the input; they share the weights.

    Args:
        model: built with MOBILE_SETTINGS.
        sizes: of the input, (height, width), multiples of 32. `signature_names` has the signatures.
        quantize: "none" float32; "float16" weights; "dynamic" int8 weights, activations quantized as they come;
            "int8" convolutions and fully connected layers in int8, detection arithmetic in float.
        calibration_images: (height, width, 3) uint8, some of each size, for int8: the ranges of the activations are
            taken from them.

    Raises:
        ConfigError: no size, one given twice or not a multiple of 32, or int8 without images of each.
        ExportError: the graph needs an operator that is not builtin.
    """
    if quantize not in QUANTIZE:
        raise ConfigError(f"quantize={quantize!r}: choose one of {', '.join(QUANTIZE)}")
    if not sizes or len(set(sizes)) < len(sizes):
        raise ConfigError(f"input sizes {list(sizes)}: give one or more, each once")
    for height, width in sizes:
        if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or min(height, width) <= 0:
            raise ConfigError(f"input size {height} x {width}: both must be multiples of {SIZE_MULTIPLE}")
    names = signature_names(sizes)
    images: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for image in map(np.asarray, calibration_images if quantize == "int8" else ()):
        name = next((n for n, size in names.items() if image.shape == (*size, 3)), None)
        if name is None:
            expected = " or ".join(f"({height}, {width}, 3)" for height, width in sizes)
            raise ConfigError(f"calibration image of shape {image.shape}: expected {expected}")
        images[name].append(image[None])
    if quantize == "int8" and not all(images.values()):
        raise ConfigError("quantize=int8 needs calibration images" + (" of each size" if len(sizes) > 1 else ""))
    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        for name, size in names.items():
            archive.add_endpoint(name, MobileFunction(model, *size).serving_default)
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(names))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        converter.allow_custom_ops = True  # RoIAlign's sum comes as one; any other is refused below
        try:
            content = converter.convert()
        except Exception as error:  # the converter has no exception of its own
            raise ExportError(f"conversion to TFLite builtins failed: {str(error).strip().splitlines()[0]}") from error
    content = _with_builtin_lookups(content, list(names))
    return (
        content
        if quantize == "none"
        else quantized(content, quantize, images, model.config.backbone, model.config.mask_point_rend)
    )


def signature_names(sizes: Sequence[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The signature of each size (height, width): serving_default for the first, which clients of one size call."""
    return {f"serving_{h}x{w}" if index else SIGNATURE: (h, w) for index, (h, w) in enumerate(sizes)}


def _with_builtin_lookups(content: bytes, names: Sequence[str]) -> bytes:
    """Put EMBEDDING_LOOKUP_SPARSE where RoIAlign's sum is: the converter has no TensorFlow operation for that builtin.

    Signatures come in the order of their names, for runtimes that call the first one.

    Raises:
        ExportError: there are other operations that are not builtin.
    """
    model = flatbuffer.read(content)
    custom = {code.customCode.decode(): code for code in model.operatorCodes if code.customCode}
    lookup = custom.pop(LOOKUP_SUM, None)
    if custom:
        raise ExportError(f"not TFLite builtins: {', '.join(sorted(custom))}; build the model with MOBILE_SETTINGS")
    if lookup is None:
        return content
    lookup.customCode, lookup.version = None, 1
    lookup.builtinCode = lookup.deprecatedBuiltinCode = schema.BuiltinOperator.EMBEDDING_LOOKUP_SPARSE
    index = model.operatorCodes.index(lookup)
    for operator in (operator for graph in model.subgraphs for operator in graph.operators):
        if operator.opcodeIndex == index:
            operator.customOptions = None
            operator.builtinOptionsType = schema.BuiltinOptions.EmbeddingLookupSparseOptions
            operator.builtinOptions = schema.EmbeddingLookupSparseOptionsT()
            operator.builtinOptions.combiner = schema.CombinerType.SUM
    flatbuffer.order_signatures(model, names)
    return flatbuffer.pack(model)


# Operations with weights.
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "CONV_2D_TRANSPOSE")
# In int8 also what lies between convolutions, by scope in the graph: in float, residual and top-down sums would take
# every map out of int8 and back.
_INT8_OPERATIONS = {
    ".*": _CONVOLUTIONS,
    "/({backbone}|fpn)[_0-9]*/": (
        *("ADD", "PAD", "MAX_POOL_2D", "AVERAGE_POOL_2D"),
        *("PACK", "CONCATENATION", "RESHAPE", "STRIDED_SLICE"),
        *("HARD_SWISH", "GELU"),
    ),
    r"/{backbone}[_0-9]*/\w*_se_(pool|gate|scale)": ("MEAN", "MUL"),
}
_INT8_MASK_HEAD = {"/mask_head[_0-9]*/": ("RELU", "RESHAPE", "BATCH_MATMUL")}


def quantized(
    content: bytes,
    quantize: str,
    images: Mapping[str, Sequence[np.ndarray]] | None = None,
    backbone: str = "",
    points: bool = False,
) -> bytes:
    """Keep the weights of convolutions and fully connected layers in fewer bits; boxes, scores and RoIAlign stay float.

    Args:
        content: the .tflite in float32.
        quantize: as for `convert`.
        images: for int8, (1, height, width, 3) uint8 by signature.
        backbone: for int8, the name of the model's.
        points: for int8, whether the model has PointRend masks.

    The converter's own float16 and dynamic modes would round every table, the anchors too: by up to an eighth of a
    pixel and by more than a pixel at 320 pixels.
    """
    try:
        from litert_quantizer import calibrator, qtyping, quantizer
    except ImportError:
        raise ExportError(f"quantize={quantize} needs the quantizer: pip install litert-quantizer") from None
    quantizer = quantizer.Quantizer(content)
    names = qtyping.TFLOperationName
    if quantize == "float16":
        for name in _CONVOLUTIONS:
            quantizer.add_weight_only_config(".*", names[name], num_bits=16, algorithm_key="float_casting")
    elif quantize == "dynamic":
        # Depthwise kernels are few numbers, and rounding them costs as much accuracy as rounding all the rest.
        for name in _CONVOLUTIONS:
            if name != "DEPTHWISE_CONV_2D":
                quantizer.add_dynamic_config(".*", names[name], num_bits=8)
    else:
        # Between the layers of PointRend's head lie places in images and maps, which no rounding may move.
        for scope, operations_ in (_INT8_OPERATIONS | ({} if points else _INT8_MASK_HEAD)).items():
            for name in operations_:
                scope = scope.format(backbone=backbone)
                quantizer.add_static_config(scope, names[name], activation_num_bits=8, weight_num_bits=8)
        # Float: what reads large maps, and the RPN's outputs, whose objectness and offsets would share one scale.
        for name, output in _on_large_maps(content):
            quantizer.update_quantization_recipe(re.escape(output), names[name], algorithm_key="no_quantize")
        quantizer.update_quantization_recipe(r"/rpn_head[_0-9]*/(?!conv\d)", names.CONV_2D, algorithm_key="no_quantize")
        # And the sums of a ConvNeXt, whose channels differ in range, with the variances of its layer normalizations.
        quantizer.update_quantization_recipe(r"/convnext_tiny[_0-9]*/", names.ADD, algorithm_key="no_quantize")
    with _without_progress():
        ranges = None
        if quantize == "int8":
            # The other mode keeps every tensor of the graph: gigabytes for a ResNet-50.
            mode = calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED
            inputs = {
                name: [{"images": image, "image_shape": np.array([image.shape[1:3]], np.int32)} for image in own]
                for name, own in (images or {}).items()
            }
            ranges = quantizer.calibrate(inputs, num_threads=os.cpu_count() or 1, mode=mode)
        return bytes(quantizer.quantize(ranges).quantized_model)


@contextlib.contextmanager
def _without_progress() -> Iterator[None]:
    """The quantizer draws a bar for every tensor of every image."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def _interpreter(content: bytes) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    return Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )


def _on_large_maps(content: bytes) -> set[tuple[str, str]]:
    """The operations that read a map of at least half the input's size, by name and by the name of what they write.

    Their channels are few and differ in range by factors of a hundred, and what rounding them costs goes through all
    later layers: it is most of what int8 loses (docs/results/export.md).
    """
    model, in_int8 = flatbuffer.read(content), set(itertools.chain(*(_INT8_OPERATIONS | _INT8_MASK_HEAD).values()))
    found = set()
    for graph in model.subgraphs:
        shapes = [tuple(tensor.shape) for tensor in graph.tensors]
        _, height, width, _ = next(shapes[i] for i in graph.inputs if len(shapes[i]) == 4)
        for operator in graph.operators:
            maps = [shapes[i] for i in operator.inputs if len(shapes[i]) == 4 and shapes[i][0] == 1]
            large = any(2 * shape[1] >= height and 2 * shape[2] >= width for shape in maps)
            if large and (name := flatbuffer.operation_name(model, operator)) in in_int8:
                found.add((name, graph.tensors[operator.outputs[0]].name.decode()))
    return found


def operations(content: bytes) -> collections.Counter[str]:
    """How often each operation occurs, from the runtime's own list; custom and Flex operations are among them."""
    return collections.Counter(details["op_name"] for details in _interpreter(content)._get_ops_details())


def open_output(path: str | os.PathLike) -> tuple[Outputs, str]:
    """Where a .tflite file and the two beside it go, and its name; raises OutputError where a file is in the way."""
    folder, name = split_file(path)
    outputs = Outputs(folder, "export")
    outputs.check([name, *(f"{Path(name).stem}.{file}" for file in (LABELS, SETTINGS))])
    return outputs, name


_OUTPUTS = {
    "num_detections": "(1,) float32",
    "detection_boxes": "(1, D, 4) float32, y0 x0 y1 x1 in 0..1 of the input",
    "detection_scores": "(1, D) float32, falling",
    "detection_classes": "(1, D) float32, from 1; line of labels.txt",
    "detection_masks": "(1, D, M, M) float32, probabilities over each box",
}
_MASK_SCORES = "(1, D) float32, score times the predicted IoU of the mask"
_IMAGE_SHAPE = "(1, 2) int32, height and width of the image inside the padding"
PADDING = "scale the image to fit, put it top left, fill the rest with pad_value"


def write(
    content: bytes,
    path: str | os.PathLike,
    config: Config,
    labels: Labels,
    sizes: Sequence[tuple[int, int]],
    quantize: str,
) -> None:
    """Write a .tflite of these sizes with its metadata inside, and labels.txt and metadata.json beside it."""
    outputs = _OUTPUTS | ({MASK_SCORES: _MASK_SCORES} if config.model.mask_scoring else {})
    settings = {
        "input": {"name": "images", "shape": [1, *sizes[0], 3], "dtype": "uint8", "channels": "RGB"},
        "signatures": {name: list(size) for name, size in signature_names(sizes).items()},
        "image_shape": _IMAGE_SHAPE,
        "outputs": outputs,
        "padding": PADDING,
        "pad_value": pad_value(config),
        "mask_paste": config.model.mask_paste,
        "quantize": quantize,
        **dataclasses.asdict(labels),
    }
    tensors = {"images": f"uint8 RGB; {PADDING}", "image_shape": _IMAGE_SHAPE, **outputs}
    write_with_metadata(content, Path(path), config, settings, labels, tensors)


def write_with_metadata(
    content: bytes,
    path: Path,
    config: Config,
    settings: dict[str, Any],
    labels: Labels,
    tensors: Mapping[str, str],
) -> None:
    """Write a .tflite with TFLite metadata, whose files are in a zip at its end, and two of them also beside it.

    Args:
        content: the .tflite.
        path: where to.
        config: of the model.
        settings: what a client needs, for metadata.json.
        labels: of the classes.
        tensors: descriptions of inputs and outputs by name.
    """
    outputs, file_name = open_output(path)
    beside = {
        LABELS: "\n".join(labels.class_names) + "\n",
        SETTINGS: json.dumps(settings, indent=2) + "\n",
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in {**beside, VALUE_LABELS: value_labels(labels)}.items():
            archive.writestr(name, text)
    outputs.write_bytes(file_name, with_metadata(content, config, labels, tensors) + packed.getvalue())
    for file, text in beside.items():
        outputs.write_text(f"{Path(file_name).stem}.{file}", text)


def pad_value(config: Config) -> list[int]:
    """The RGB that normalization turns into about 0, which is what padding is in training."""
    from kmaskrcnn import backbones

    mean = config.model.image_mean or backbones.pixel_statistics(config.model.backbone)[0]
    return [round(v) for v in mean]
