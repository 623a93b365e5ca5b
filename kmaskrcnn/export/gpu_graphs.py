"""The network in three graphs that a GPU takes whole: what lies between them, `kmaskrcnn.export.host` does.

LiteRT's GPU accelerator refuses a graph that has one tensor of unknown size, and has no kernel for top-k, NMS and table
look-ups. So the network is cut where those stand:

    pyramid  image -> P2..P5, and the RPN's objectness and deltas of P2..P6
    boxes    pooled RoIs -> class probabilities and box deltas
    masks    pooled RoIs -> mask probabilities of all classes

Every operation in them is a convolution or the like, of fixed size.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from tensorflow.lite.python import schema_py_generated as schema

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.export import flatbuffer, tflite
from kmaskrcnn.export.accelerator import AcceleratorError, check_accelerated
from kmaskrcnn.layers.roi_align import LEVELS as POOL_LEVELS
from kmaskrcnn.layers.rpn import LEVELS, STRIDES, num_proposals
from kmaskrcnn.layers.stacks import run_convs
from kmaskrcnn.model import SIZE_MULTIPLE, MaskRCNN
from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops.anchors import cell_anchors
from kmaskrcnn.results.labels import Labels

QUANTIZE = ("none", "float16")
GRAPHS = ("pyramid", "boxes", "masks")

# Of torchvision's models: boxes that thin are no matter.
_THINNEST = 0.01


class GpuFunctions:
    """The three graphs of a model.

    pyramid: `images` (1, H, W, 3) float32 RGB in 0..255 -> `P2`..`P5` (1, h, w, C), `objectness_P2`..`objectness_P6`
    (1, h, w, A) logits, `deltas_P2`..`deltas_P6` (1, h, w, 4 * A).
    boxes: `pooled` (R, S, S, C) -> `scores` (R, C + 1) probabilities, `deltas` (R, 4 * (C + 1)).
    masks: `pooled` (D, M, M, C) -> `masks` (D, 2M, 2M, C + 1) probabilities.

    Args:
        model: of dtype float32.
        height, width: of the input.
    """

    def __init__(self, model: MaskRCNN, height: int, width: int):
        self.model, config = model, model.config
        model.static_shapes = True  # padding is not cut off
        channels = config.fpn_channels

        def spec(name: str, count: int, *shape: int) -> tf.TensorSpec:
            return tf.TensorSpec((count, *shape), tf.float32, name=name)

        box, mask = config.box_pool_size, config.mask_pool_size
        signatures = {
            "pyramid": spec("images", 1, height, width, 3),
            "boxes": spec("pooled", num_proposals(config)[1], box, box, channels),
            "masks": spec("pooled", config.max_detections, mask, mask, channels),
        }
        self.functions = {
            name: tf.function(getattr(self, name), input_signature=[signatures[name]], autograph=False)
            for name in GRAPHS
        }

    def pyramid(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """The backbone, the FPN and the RPN's convolutions."""
        images, _ = self.model.preprocess(images, None)
        features, head = self.model.pyramid(images), self.model.rpn_head
        outputs = {f"P{level}": features[f"P{level}"] for level in POOL_LEVELS}
        for level, feature in features.items():
            for conv in head.convs:
                feature = conv(feature)
            outputs[f"objectness_{level}"], outputs[f"deltas_{level}"] = head.objectness(feature), head.deltas(feature)
        return outputs

    def boxes(self, pooled: tf.Tensor) -> dict[str, tf.Tensor]:
        """The box head."""
        logits, deltas = self.model.box_head(pooled)
        deltas = ops.reshape(deltas, (-1, 4 * deltas.shape[1]))
        if self.model.config.box_class_agnostic:  # the host reads those of each class; GPUs take products, not tiling
            deltas = ops.matmul(deltas, ops.tile(ops.eye(4), (1, logits.shape[-1])))
        return {"scores": ops.softmax(logits, axis=-1), "deltas": deltas}

    def masks(self, pooled: tf.Tensor) -> dict[str, tf.Tensor]:
        """The mask head as the paper draws it: MaskHead computes one class's mask by a product GPUs do not take."""
        head = self.model.mask_head
        pooled = run_convs(head.convs, head.norms, pooled, training=False)
        kernel, bias = ops.convert_to_tensor(head.logits_kernel), ops.convert_to_tensor(head.logits_bias)
        if head.class_agnostic:  # the host reads the one of each object's class
            kernel, bias = (ops.repeat(x, head.num_classes + 1, axis=0) for x in (kernel, bias))
        kernel = ops.transpose(kernel)[None, None]  # (C + 1, F) -> (1, 1, F, C + 1)
        return {"masks": ops.sigmoid(ops.conv(head.deconv(pooled), kernel, padding="same") + bias)}


def convert(model: MaskRCNN, height: int, width: int, quantize: str = "none") -> tuple[bytes, str]:
    """Convert to one TFLite flatbuffer with the signatures pyramid, boxes and masks.

    Args:
        model: of dtype float32.
        height, width: of the input, multiples of 32.
        quantize: "none" float32; "float16" weights.

    Returns:
        The flatbuffer, and by what it was found to be fully accelerated, as for `check_accelerated`.

    Raises:
        ConfigError: a size that is no multiple of 32, another quantization, a cascade, mask_scoring, mask_point_rend,
            soft_nms_sigma, class_agnostic_nms, or a roi_sampling_ratio of 0.
        ExportError: a graph is not fully accelerated; the message says by what that was found.
    """
    if quantize not in QUANTIZE:
        raise ConfigError(f"quantize={quantize!r}: choose one of {', '.join(QUANTIZE)} for the GPU")
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or min(height, width) <= 0:
        raise ConfigError(f"input size {height} x {width}: both must be multiples of {SIZE_MULTIPLE}")
    if model.config.cascade_ious:
        raise ConfigError("cascade_ious: the host's steps have one box head; export a cascade as .tflite for the CPU")
    if model.config.mask_scoring:
        raise ConfigError(
            "mask_scoring=True: the graphs have no MaskIoU head; give mask_scoring=False at export to leave it out, or "
            "export as .tflite for the CPU"
        )
    if model.config.mask_point_rend:
        raise ConfigError(
            "mask_point_rend=True: the graphs have a mask head alone, whose masks no points refine; export as "
            ".tflite for the CPU"
        )
    if model.config.soft_nms_sigma:
        raise ConfigError("soft_nms_sigma: the host's steps have NMS with a threshold alone, give 0 at export")
    if model.config.class_agnostic_nms:
        raise ConfigError(
            "class_agnostic_nms=True: the host's steps have NMS of each class alone; give class_agnostic_nms=False at "
            "export, or export as .tflite for the CPU"
        )
    if model.config.box_min_size > _THINNEST:
        raise ConfigError(
            f"box_min_size={model.config.box_min_size:g}: the host's steps keep small boxes; give box_min_size=0 at "
            "export, or export as .tflite for the CPU"
        )
    if not model.config.roi_sampling_ratio:
        raise ConfigError(
            "roi_sampling_ratio=0: the host's RoIAlign takes as many samples in each RoI, give 2 at export"
        )
    functions = GpuFunctions(model, height, width).functions
    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        for name, function in functions.items():
            archive.add_endpoint(name, function)
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(GRAPHS))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            content = converter.convert()
        except Exception as error:  # the converter has no exception of its own
            first = str(error).strip().splitlines()[0]
            raise tflite.ExportError(f"conversion to TFLite builtins failed: {first}") from error
    content = without_fused_activations(content, "TRANSPOSE_CONV")
    if quantize == "float16":
        content = tflite.quantized(content, "float16")
    try:
        return content, check_accelerated(content)
    except AcceleratorError as error:
        raise tflite.ExportError(str(error)) from None


def without_fused_activations(content: bytes, name: str) -> bytes:
    """The .tflite with a RELU behind each operation of a name into which the converter put one.

    The accelerator takes TRANSPOSE_CONV up to version 3, which has a bias; version 4 has the activation too.
    """
    model = flatbuffer.read(content)
    fused = schema.ActivationFunctionType
    for graph in model.subgraphs:
        operators = []
        for operator in graph.operators:
            operators.append(operator)
            if flatbuffer.operation_name(model, operator) != name:
                continue
            if operator.builtinOptions.fusedActivationFunction == fused.NONE:
                continue
            if operator.builtinOptions.fusedActivationFunction != fused.RELU:
                raise tflite.ExportError(f"{name} with a fused activation that is not ReLU: not for a GPU")
            operator.builtinOptions.fusedActivationFunction = fused.NONE
            before = copy.copy(graph.tensors[operator.outputs[0]])
            before.name = before.name + b"/before_relu"
            graph.tensors.append(before)
            operators.append(flatbuffer.add_relu(model, len(graph.tensors) - 1, operator.outputs[0]))
            operator.outputs = [len(graph.tensors) - 1]
        graph.operators = operators
    for code in model.operatorCodes:
        if code.builtinCode == getattr(schema.BuiltinOperator, name):
            code.version = min(code.version, 3)
    return flatbuffer.pack(model)


def host_settings(model: MaskRCNN, height: int, width: int) -> dict[str, Any]:
    """What the host's part needs to know, as JSON has it; `kmaskrcnn.export.host.Settings` reads it."""
    config = model.config
    levels = []
    padded = {"P2": (height // 4, width // 4)}
    for above, level in itertools.pairwise(LEVELS):
        rows, columns = padded[above]
        padded[level] = (-(-rows // 2), -(-columns // 2))
    for name, stride, size in zip(LEVELS, STRIDES, config.anchor_sizes, strict=True):
        rows, columns = padded[name]
        strides = [height // rows, width // columns] if config.fit_anchor_strides else [stride, stride]
        anchors = cell_anchors(size, config.anchor_aspect_ratios, config.round_anchors)
        levels.append({"name": name, "height": rows, "width": columns, "strides": strides, "anchors": anchors.tolist()})
    pre_nms, post_nms = num_proposals(config)
    return {
        "height": height,
        "width": width,
        "channels": config.fpn_channels,
        "num_classes": config.num_classes,
        "levels": levels,
        "rpn_pre_nms_top_k": pre_nms,
        "rpn_post_nms_top_k": post_nms,
        "rpn_nms_iou": config.rpn_nms_iou,
        "rpn_min_size": config.rpn_min_size,
        "box_pool_size": config.box_pool_size,
        "mask_pool_size": config.mask_pool_size,
        "roi_sampling_ratio": config.roi_sampling_ratio,
        "roi_aligned": config.roi_aligned,
        "box_coding_weights": list(box_ops.BOX_HEAD_CODING_WEIGHTS),
        "score_threshold": config.score_threshold,
        "nms_iou": config.nms_iou,
        "max_detections": config.max_detections,
        "mask_paste": config.mask_paste,
    }


def write(
    content: bytes,
    path: str | os.PathLike,
    model: MaskRCNN,
    config: Config,
    labels: Labels,
    height: int,
    width: int,
    quantize: str,
) -> None:
    """Write the .tflite with its metadata inside, and labels and metadata beside it."""
    metadata = {
        "graphs": {
            "pyramid": "images (1, H, W, 3) float32 RGB in 0..255 -> P2..P5, objectness_P2..P6, deltas_P2..P6",
            "boxes": "pooled (R, S, S, C) -> scores (R, classes + 1), deltas (R, 4 * (classes + 1))",
            "masks": "pooled (D, M, M, C) -> masks (D, 2M, 2M, classes + 1)",
        },
        "input": {"name": "images", "shape": [1, height, width, 3], "dtype": "float32", "channels": "RGB"},
        "padding": tflite.PADDING,
        "pad_value": [float(value) for value in model._mean],
        "mask_paste": config.model.mask_paste,
        "quantize": quantize,
        "host": host_settings(model, height, width),
        **dataclasses.asdict(labels),
    }
    tensors = {"images": f"float32 RGB in 0..255; {tflite.PADDING}"}
    tflite.write_with_metadata(content, Path(path), config, metadata, labels, tensors)
