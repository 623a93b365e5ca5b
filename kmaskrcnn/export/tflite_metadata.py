"""TFLite metadata: what a .tflite takes and gives, in the flatbuffer that TensorFlow Lite's own readers show.

After the schema of TensorFlow Lite Support, metadata_schema.fbs, identifier M001
(https://ai.google.dev/edge/litert/models/metadata). Numbers of fields and of enumerations below are the schema's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

import kmaskrcnn
from kmaskrcnn.config import Config
from kmaskrcnn.export import flatbuffer
from kmaskrcnn.results.labels import Labels

NAME = "TFLITE_METADATA"
LABELS, VALUE_LABELS, SETTINGS = "labels.txt", "value_labels.txt", "metadata.json"
_DESCRIPTIONS, _VALUE_LABELS = 1, 3  # AssociatedFileType
_IMAGE, _BOUNDING_BOXES = 2, 3  # ContentProperties
_NORMALIZATION, _THRESHOLD = 1, 3  # ProcessUnitOptions
_RGB = 1  # ColorSpaceType
_BOUNDARIES = 1  # BoundingBoxType


@dataclasses.dataclass(frozen=True)
class _Byte:
    value: int


@dataclasses.dataclass(frozen=True)
class _Table:
    """A flatbuffer table: number of a field -> its value."""

    fields: Mapping[int, Any]


def value_labels(labels: Labels) -> str:
    """The names in a file whose line n, from 0, is class n; class 0 is none."""
    return "\n".join(["???", *labels.class_names]) + "\n"


def with_metadata(content: bytes, config: Config, labels: Labels, tensors: Mapping[str, str]) -> bytes:
    """A .tflite with its metadata; the files that they name are for the caller to append as a zip.

    Args:
        content: the .tflite.
        config: of the model.
        labels: of its classes.
        tensors: descriptions of its inputs and outputs, by their names in the signatures.
    """
    model = flatbuffer.read(content)
    graphs = [
        _graph(model.subgraphs[signature.subgraphIndex], signature, config, tensors)
        for signature in sorted(model.signatureDefs, key=lambda s: s.subgraphIndex)
    ]
    network = config.model
    text = (
        f"Mask R-CNN, {network.backbone} with FPN, {network.num_classes} classes, at most {network.max_detections} "
        "detections. Normalization is part of the graph: it takes RGB in 0..255."
    )
    if labels.class_names:
        text += f" Classes: {', '.join(labels.class_names[:5])}{', ...' if len(labels.class_names) > 5 else ''}."
    root = _Table(
        {
            0: f"Mask R-CNN {network.backbone}",
            1: text,
            2: f"kmaskrcnn {kmaskrcnn.__version__}",
            3: graphs,
            6: [_file(SETTINGS, "Settings that a client needs, as JSON.", _DESCRIPTIONS)],
            7: "1.0.0",
        }
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(_write(builder, root), b"M001")
    model.metadata = [entry for entry in model.metadata or [] if entry.name != NAME.encode()]
    entry, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = np.frombuffer(bytes(builder.Output()), np.uint8)
    entry.name, entry.buffer = NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata.append(entry)
    return flatbuffer.pack(model)


def _graph(graph: Any, signature: Any, config: Config, tensors: Mapping[str, str]) -> _Table:
    """SubGraphMetadata: the tensors in the order in which the graph has them."""

    def named(maps: Sequence[Any], indices: Sequence[int]) -> list[_Table]:
        names = {entry.tensorIndex: entry.name.decode() for entry in maps}
        return [_tensor(names[i], graph.tensors[i], config, tensors.get(names[i], "")) for i in indices]

    key = signature.signatureKey.decode()
    return _Table({0: key, 2: named(signature.inputs, graph.inputs), 3: named(signature.outputs, graph.outputs)})


def _tensor(name: str, tensor: Any, config: Config, text: str) -> _Table:
    """TensorMetadata."""
    fields: dict[int, Any] = {0: name, 1: text}
    if name == "images":
        height, width = (int(size) for size in tensor.shape[1:3])
        image = _Table({0: _Byte(_RGB), 1: _Table({0: width, 1: height})})
        fields[3] = _Table({0: _Byte(_IMAGE), 1: image})
        # Taken as they are: the graph subtracts the mean itself.
        fields[4] = [_Table({0: _Byte(_NORMALIZATION), 1: _Table({0: [0.0], 1: [1.0]})})]
    elif name == "detection_boxes":
        # Left, top, right, bottom are the numbers 1, 0, 3, 2 of a row, in 0..1.
        boxes = _Table({0: np.array([1, 0, 3, 2], np.uint32), 1: _Byte(_BOUNDARIES), 2: _Byte(0)})
        fields[3] = _Table({0: _Byte(_BOUNDING_BOXES), 1: boxes})
    elif name == "detection_classes":
        fields[6] = [_file(VALUE_LABELS, "Line n, from 0, is the name of class n.", _VALUE_LABELS)]
    elif name == "detection_scores":
        threshold = _Table({0: float(config.model.score_threshold)})
        fields[4] = [_Table({0: _Byte(_THRESHOLD), 1: threshold})]
    return _Table(fields)


def _file(name: str, text: str, kind: int) -> _Table:
    """AssociatedFile."""
    return _Table({0: name, 1: text, 2: _Byte(kind)})


def _write(builder: flatbuffers.Builder, value: Any) -> int:
    """Write a string, a vector or a table with what it holds; returns its offset."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        if isinstance(value[0], float):
            return builder.CreateNumpyVector(np.array(value, np.float32))
        items = [_write(builder, item) for item in value]
        builder.StartVector(4, len(items), 4)
        for offset in reversed(items):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    scalars = (_Byte, int, float)
    offsets = {n: _write(builder, v) for n, v in value.fields.items() if not isinstance(v, scalars)}
    builder.StartObject(max(value.fields) + 1)
    for number, field in value.fields.items():
        if isinstance(field, _Byte):
            builder.PrependUint8Slot(number, field.value, 0)
        elif isinstance(field, int):
            builder.PrependUint32Slot(number, field, 0)
        elif isinstance(field, float):
            builder.PrependFloat32Slot(number, field, 0.0)
        else:
            builder.PrependUOffsetTRelativeSlot(number, offsets[number], 0)
    return builder.EndObject()
