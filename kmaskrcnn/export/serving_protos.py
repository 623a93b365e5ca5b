"""The few messages of TensorFlow Serving's PredictionService that are needed here, without TensorFlow.

Built from field numbers alone (tensorflow_serving/apis: predict.proto, model.proto, prediction_log.proto; tensorflow/
core/framework: tensor.proto, tensor_shape.proto), in a pool of their own, so that they do not meet TensorFlow's where
both are loaded. Fields that are not listed are kept as unknown ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

PREDICT_METHOD = "/tensorflow.serving.PredictionService/Predict"
DT_FLOAT, DT_UINT8, DT_STRING = 1, 4, 7

_PACKAGE = "kmaskrcnn.serving"  # names do not travel, numbers do
_INT32, _INT64, _BOOL = "TYPE_INT32", "TYPE_INT64", "TYPE_BOOL"
_STRING, _BYTES, _FLOAT = "TYPE_STRING", "TYPE_BYTES", "TYPE_FLOAT"

# message -> {field: (number, type or message, repeated)}
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Dim": {"size": (1, _INT64, False)},
    "TensorShape": {"dim": (2, "Dim", True)},
    "Tensor": {
        "dtype": (1, _INT32, False),
        "tensor_shape": (2, "TensorShape", False),
        "tensor_content": (4, _BYTES, False),
        "float_val": (5, _FLOAT, True),
        "string_val": (8, _BYTES, True),
    },
    "Int64Value": {"value": (1, _INT64, False)},
    "ModelSpec": {
        "name": (1, _STRING, False),
        "version": (2, "Int64Value", False),
        "signature_name": (3, _STRING, False),
    },
    # A map field is a list of pairs on the wire.
    "NamedTensor": {"key": (1, _STRING, False), "value": (2, "Tensor", False)},
    "PredictRequest": {
        "model_spec": (1, "ModelSpec", False),
        "inputs": (2, "NamedTensor", True),
        "output_filter": (3, _STRING, True),
    },
    "PredictResponse": {"outputs": (1, "NamedTensor", True), "model_spec": (2, "ModelSpec", False)},
    "PredictLog": {"request": (1, "PredictRequest", False)},
    "PredictionLog": {"predict_log": (6, "PredictLog", False)},
}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="kmaskrcnn_serving.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, repeated) in fields.items():
            label = "LABEL_REPEATED" if repeated else "LABEL_OPTIONAL"
            entry = message.field.add(name=field, number=number, label=label)
            if kind in _MESSAGES:
                entry.type, entry.type_name = entry.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                entry.type = descriptor_pb2.FieldDescriptorProto.Type.Value(kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


_CLASSES = _build()
PredictRequest, PredictResponse = _CLASSES["PredictRequest"], _CLASSES["PredictResponse"]
PredictionLog = _CLASSES["PredictionLog"]


def predict_request(
    images: list[bytes], model_name: str, outputs: Sequence[str] = (), signature: str = "serving_default"
) -> Message:
    """A PredictRequest with encoded images for the input `image_bytes`; without `outputs` it asks for all."""
    request = _CLASSES["PredictRequest"]()
    request.model_spec.name, request.model_spec.signature_name = model_name, signature
    request.output_filter.extend(outputs)
    item = request.inputs.add(key="image_bytes")
    item.value.dtype = DT_STRING
    item.value.tensor_shape.dim.add(size=len(images))
    item.value.string_val.extend(images)
    return request


def prediction_log(request: Message) -> Message:
    """A PredictionLog with a request, as warm-up files hold."""
    log = _CLASSES["PredictionLog"]()
    log.predict_log.request.CopyFrom(request)
    return log


def images_of(request: Message) -> list[bytes]:
    """The encoded images of a PredictRequest; raises ValueError where its one input is anything else."""
    if [item.key for item in request.inputs] != ["image_bytes"]:
        raise ValueError("the request must have the one input image_bytes")
    tensor = request.inputs[0].value
    images = list(tensor.string_val)
    if tensor.dtype != DT_STRING or [dim.size for dim in tensor.tensor_shape.dim] not in ([], [len(images)]):
        raise ValueError("image_bytes must be strings of shape (N,)")
    return images


def predict_response(outputs: Mapping[str, np.ndarray], model_name: str, version: int) -> Message:
    """A PredictResponse with float32, uint8 and text tensors by name."""
    response = PredictResponse()
    response.model_spec.name, response.model_spec.version.value = model_name, version
    response.model_spec.signature_name = "serving_default"
    for name, values in outputs.items():
        tensor = response.outputs.add(key=name).value
        for size in values.shape:
            tensor.tensor_shape.dim.add(size=size)
        if values.dtype == object:
            tensor.dtype = DT_STRING
            tensor.string_val.extend(values.reshape(-1).tolist())
        else:
            tensor.dtype = {"float32": DT_FLOAT, "uint8": DT_UINT8}[values.dtype.name]
            tensor.tensor_content = np.ascontiguousarray(values).tobytes()
    return response


def outputs_of(response: Message) -> dict[str, np.ndarray]:
    """The tensors of a PredictResponse by name; raises ValueError on one that is neither float32 nor string."""
    return {item.key: _array(item.value) for item in response.outputs}


def _array(tensor: Message) -> np.ndarray:
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.dtype == DT_STRING:
        return np.array(list(tensor.string_val), object).reshape(shape)
    if tensor.dtype != DT_FLOAT:
        raise ValueError(f"tensor of type {tensor.dtype}, expected float32 or string")
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, "<f4").reshape(shape)
    values = np.asarray(tensor.float_val, np.float32)
    count = int(np.prod(shape))
    # TensorFlow leaves out values at the end that repeat the last one.
    if 0 < len(values) < count:
        values = np.pad(values, (0, count - len(values)), mode="edge")
    return values.reshape(shape) if len(values) else np.zeros(shape, np.float32)
