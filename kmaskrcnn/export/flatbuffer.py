"""What a .tflite holds, read from the flatbuffer itself: no runtime, and no delegate that hides operations."""

from __future__ import annotations

import collections

from ai_edge_litert import schema_py_generated as schema

_NAMES = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


def read(content: bytes) -> schema.ModelT:
    """The model as objects that can be changed."""
    return schema.ModelT.InitFromPackedBuf(bytearray(content), 0)


def operation_name(model: schema.ModelT, operator: schema.OperatorT) -> str:
    """The name of a builtin, for instance CONV_2D."""
    code = model.operatorCodes[operator.opcodeIndex]
    return _NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]


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
