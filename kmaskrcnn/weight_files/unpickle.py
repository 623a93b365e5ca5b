"""Reading pickles of tensors without running any code that they name.

A pickle is a program: it can import any function and call it. Here every global that it names is looked up in a
table of inert stand-ins that only collect arguments; a name outside the table is refused before anything is called.
Arrays are made afterwards from what the stand-ins hold, with every size checked against the bytes present.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kmaskrcnn.errors import WeightsError

BFLOAT16 = "bfloat16"  # numpy has no such dtype: read as uint16 and widened to float32

STORAGE_DTYPES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_ARRAY_KINDS = "biuf"


def decode(data: bytes, dtype: str, byteorder: str = "<") -> np.ndarray:
    """Raw bytes -> (n,) array in native byte order; bfloat16 becomes float32."""
    if dtype == BFLOAT16:
        words = np.frombuffer(data, f"{byteorder}u2").astype(np.uint32)
        return (words << 16).view(np.float32)
    kind = np.dtype(dtype)
    return np.frombuffer(data, kind.newbyteorder(byteorder)).astype(kind)


class Storage:
    """A flat buffer named in a pickle; `values` is filled in by the file reader."""

    def __init__(self, dtype: str, key: str, count: int) -> None:
        self.dtype, self.key, self.count = dtype, key, count
        self.values: np.ndarray | None = None


class _StorageType(NamedTuple):
    dtype: str


class _Tensor:
    """A strided view of a Storage, checked when it is made into an array."""

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def to_array(self) -> np.ndarray:
        storage = self.storage
        size, stride = tuple(self.size), tuple(self.stride)
        if not isinstance(storage, Storage) or storage.values is None or len(size) != len(stride):
            raise ValueError("a tensor without storage")
        if not all(isinstance(v, int) and v >= 0 for v in (self.offset, *size, *stride)):
            raise ValueError("a tensor with an impossible shape")
        if 0 in size:
            return np.zeros(size, storage.values.dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # A zero stride repeats elements, so the bound on the last one alone would allow an array of any size.
        if last >= len(storage.values) or np.prod(size, dtype=object) > max(len(storage.values), 1) * 1024:
            raise ValueError("a tensor that reaches past its storage")
        item = storage.values.itemsize
        view = np.lib.stride_tricks.as_strided(
            storage.values[self.offset :], size, [step * item for step in stride], writeable=False
        )
        return np.ascontiguousarray(view).reshape(size)


class _NumpyDtype:
    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def to_dtype(self) -> np.dtype:
        dtype = np.dtype(str(self.name))
        if dtype.kind not in _ARRAY_KINDS:
            raise ValueError(f"an array of dtype {self.name}")
        return dtype.newbyteorder({"<": "<", ">": ">"}.get(self.order, "="))


class _NumpyArray:
    """What numpy's own reconstruction makes: an empty array whose state arrives later."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_array(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        return _from_bytes(data, dtype, shape, "F" if fortran else "C")


class _NumpyBuffer:
    """An array of pickle protocol 5: (buffer, dtype, shape, order)."""

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.arguments = (data, dtype, shape, order)

    def to_array(self) -> np.ndarray:
        return _from_bytes(*self.arguments)


class _NumpyScalar:
    def __init__(self, dtype: Any, data: Any) -> None:
        self.dtype, self.data = dtype, data

    def to_array(self) -> np.ndarray:
        return _from_bytes(self.data, self.dtype, (), "C")


def _from_bytes(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    # Python 2 wrote bytes as text, which encoding="latin1" hands on one character a byte.
    raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
    kind = dtype.to_dtype()
    return np.frombuffer(raw, kind).reshape(tuple(shape), order=order).astype(kind.newbyteorder("="), order="C")


class _Function:
    """A callable that a pickle can call but not look into or alter."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"an array in encoding {encoding}")
    return text.encode("latin1")


# Every entry is immutable: a pickle may also set attributes of what it finds.
_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Function(_Tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_Tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda data, *_: data),
    ("torch", "Size"): _Function(lambda sizes=(): tuple(sizes)),
    ("_codecs", "encode"): _Function(_encode),
    ("numpy", "dtype"): _Function(_NumpyDtype),
    # Protocol 2 writes an array without elements as a call of bytes without arguments.
    ("__builtin__", "bytes"): _Function(lambda: b""),
    # Only ever an argument of _reconstruct.
    ("numpy", "ndarray"): "numpy.ndarray",
}
_GLOBALS |= {("torch", name): _StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()}
for _package in ("numpy.core", "numpy._core"):
    _GLOBALS |= {
        (f"{_package}.multiarray", "_reconstruct"): _Function(_NumpyArray),
        (f"{_package}.multiarray", "scalar"): _Function(_NumpyScalar),
        (f"{_package}.numeric", "_frombuffer"): _Function(_NumpyBuffer),
    }


def _check_memo(stream: io.BufferedIOBase) -> None:
    """Refuse a pickle that numbers its memo wildly: the unpickler would allocate a table up to that number."""
    start = stream.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > count:
            raise ValueError(f"memo entry {argument} after {count} steps")
    stream.seek(start)


class TensorUnpickler(pickle.Unpickler):
    """An unpickler of tensors and plain containers that refuses every other global.

    Args:
        stream: the pickle, seekable.
        path: the file, for messages.

    Attributes:
        storages: every Storage named so far, by key.

    `load_checked` raises WeightsError for a global outside the table or for a damaged pickle.
    """

    def __init__(self, stream: io.BufferedIOBase, path: str) -> None:
        super().__init__(stream, encoding="latin1")
        self._stream = stream
        self._path = path
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise WeightsError(
                f"{self._path}: refused, its pickle names {module}.{name}; only files of tensors are read. "
                "Save the state_dict alone: torch.save(model.state_dict(), path)"
            ) from None

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage_type, key, _, count, *rest = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or any(r is not None for r in rest):
            raise ValueError(f"an object of kind {kind}")
        if not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise ValueError("a storage without a name or a length")
        storage = self.storages.setdefault(key, Storage(storage_type.dtype, key, count))
        if storage.dtype != storage_type.dtype:
            raise ValueError(f"storage {key} has two types")
        return storage

    def load_checked(self) -> Any:
        """The object, with stand-ins in the place of arrays."""
        try:
            _check_memo(self._stream)
            return self.load()
        except WeightsError:
            raise
        # A pickle of hostile or random bytes fails in any way; none of them is a bug of this program.
        except Exception as error:
            raise WeightsError(f"{self._path}: truncated or damaged pickle ({error})") from None


def resolve(value: Any, path: str) -> Any:
    """`value` with its stand-ins made into arrays, through dicts, lists and tuples; raises WeightsError."""
    if isinstance(value, dict):
        return {key: resolve(item, f"{path}: {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, path) for item in value]
    if isinstance(value, _Tensor | _NumpyArray | _NumpyBuffer | _NumpyScalar):
        try:
            return value.to_array()
        except Exception as error:
            raise WeightsError(f"{path}: damaged tensor ({error})") from None
    return value
