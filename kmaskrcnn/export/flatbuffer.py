"""What a .tflite holds, read from the flatbuffer itself: no runtime, and no delegate that hides operations."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

_NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


class AlignedBuilder(flatbuffers.Builder):
    """Aligns bytes to 16, as TFLite's schema wants it of weights (force_align), which the Python code ignores."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:
        return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)


def read(content: bytes) -> schema.ModelT:
    """The model as objects that can be changed."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    for constant in model.buffers:
        if constant.offset > 1:  # the quantizer leaves what a buffer holds behind the flatbuffer
            data = content[constant.offset : constant.offset + constant.size]
            constant.data, constant.offset, constant.size = np.frombuffer(data, np.uint8), 0, 0
    return model


def pack(model: schema.ModelT) -> bytes:
    """The .tflite of a model."""
    builder = AlignedBuilder(sum(len(b.data) for b in model.buffers if b.data is not None) + 65536)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def order_signatures(model: schema.ModelT, names: Sequence[str]) -> None:
    """Put signatures and their graphs in an order; there is one graph for each, and no control flow."""
    model.signatureDefs.sort(key=lambda signature: names.index(signature.signatureKey.decode()))
    model.subgraphs = [model.subgraphs[signature.subgraphIndex] for signature in model.signatureDefs]
    for index, signature in enumerate(model.signatureDefs):
        signature.subgraphIndex = index


def operation_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """The name of a builtin, for instance CONV_2D."""
    code = model.operatorCodes[operator.opcodeIndex]
    return _NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]


def add_relu(model: schema.ModelT, before: int, after: int) -> schema.OperatorT:
    """A RELU from one tensor of a graph to another; the caller puts it into the graph."""
    relu, operator = schema.BuiltinOperator.RELU, schema.OperatorT()
    codes = [code.builtinCode for code in model.operatorCodes]
    if relu not in codes:
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = relu
        code.version = 1
        model.operatorCodes.append(code)
        codes.append(relu)
    operator.opcodeIndex, operator.inputs, operator.outputs = codes.index(relu), [before], [after]
    return operator


def operations(content: bytes) -> collections.Counter[str]:
    """How often each operation occurs, over all signatures."""
    model = read(content)
    return collections.Counter(operation_name(model, op) for graph in model.subgraphs for op in graph.operators)


def unknown_sizes(content: bytes) -> list[str]:
    """The names of the tensors whose size the file does not say."""
    graphs = read(content).subgraphs
    return [
        tensor.name.decode()
        for graph in graphs
        for tensor in graph.tensors
        if tensor.shape is None or (tensor.shapeSignature is not None and (tensor.shapeSignature < 0).any())
    ]
