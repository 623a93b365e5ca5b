"""Stand-ins for the arrays of a pickle: they hold what it says and become arrays once that is checked; their dtypes."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from kmaskrcnn.weight_files.budget import Budget

ByteOrder: TypeAlias = Literal["<", ">", "="]

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
ARRAY_KINDS = "biuf"
_MOST_DIMENSIONS = 32


def item_size(dtype: str) -> int:
    """Bytes of an element in the file."""
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


def decode(data: Any, dtype: str, byteorder: ByteOrder = "<") -> np.ndarray:
    """Raw bytes (a buffer) -> (n,) array in native byte order; bfloat16 becomes float32."""
    if dtype == BFLOAT16:
        words = np.frombuffer(data, f"{byteorder}u2").astype(np.uint32)
        return (words << 16).view(np.float32)
    kind = np.dtype(dtype)
    return np.frombuffer(data, kind.newbyteorder(byteorder)).astype(kind, copy=False)


class Sealed:
    """What a pickle can make but not alter afterwards."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"state for a {type(self).__name__}")


class Storage(Sealed):
    """A flat buffer named in a pickle; `values` is filled in by the file reader."""

    __slots__ = ("count", "dtype", "key", "values")

    def __init__(self, dtype: str, key: str, count: int) -> None:
        self.dtype, self.key, self.count = dtype, key, count
        self.values: np.ndarray | None = None

    @property
    def byte_count(self) -> int:
        """Its size in the file."""
        return self.count * item_size(self.dtype)


class StorageType(NamedTuple):
    """What torch.FloatStorage and its like stand for."""

    dtype: str


class StandIn(Sealed):
    """What is in place of an array until `to_array(budget)`."""

    __slots__ = ()

    def to_array(self, budget: Budget) -> np.ndarray:
        raise NotImplementedError


class Tensor(StandIn):
    """A strided view of a Storage, checked when it is made into an array."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def to_array(self, budget: Budget) -> np.ndarray:
        storage = self.storage
        size, stride = _whole_numbers(self.size), _whole_numbers(self.stride)
        (offset,) = _whole_numbers((self.offset,))
        if not isinstance(storage, Storage) or storage.values is None or len(size) != len(stride):
            raise ValueError("a tensor without storage")
        budget.take(math.prod(size) * storage.values.itemsize, "a tensor")
        if 0 in size:
            return np.zeros(size, storage.values.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(storage.values):
            raise ValueError("a tensor that extends beyond its storage")
        item = storage.values.itemsize
        view = np.lib.stride_tricks.as_strided(
            storage.values[offset:], size, [step * item for step in stride], writeable=False
        )
        return np.ascontiguousarray(view).reshape(size)


def _whole_numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or len(values) > _MOST_DIMENSIONS:
        raise ValueError("a tensor with an impossible shape")
    if not all(isinstance(v, int) and 0 <= v < 1 << 62 for v in values):
        raise ValueError("a tensor with an impossible shape")
    return tuple(values)


class NumpyDtype(Sealed):
    """numpy's dtype: a name, whose byte order arrives later."""

    __slots__ = ("name", "order")

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def to_dtype(self) -> np.dtype:
        # numpy also takes lists of fields for a name, and those can be of any size.
        if not isinstance(self.name, str) or len(self.name) > 16 or not isinstance(self.order, str):
            raise ValueError("an array whose dtype is not plain")
        dtype = np.dtype(self.name)
        if dtype.kind not in ARRAY_KINDS:
            raise ValueError(f"an array of dtype {self.name}")
        orders: dict[str, ByteOrder] = {"<": "<", ">": ">"}
        return dtype.newbyteorder(orders.get(self.order, "="))


class NumpyArray(StandIn):
    """What numpy's own reconstruction makes: an empty array whose state arrives later."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_array(self, budget: Budget) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        return _from_bytes(budget, data, dtype, shape, "F" if fortran is True else "C")


class NumpyBuffer(StandIn):
    """An array of pickle protocol 5: (buffer, dtype, shape, order)."""

    __slots__ = ("arguments",)

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.arguments = (data, dtype, shape, order)

    def to_array(self, budget: Budget) -> np.ndarray:
        return _from_bytes(budget, *self.arguments)


class NumpyScalar(StandIn):
    """numpy's scalar: a dtype and its bytes."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: Any, data: Any) -> None:
        self.dtype, self.data = dtype, data

    def to_array(self, budget: Budget) -> np.ndarray:
        return _from_bytes(budget, self.data, self.dtype, (), "C")


class EncodedBytes(Sealed):
    """Bytes that Python 2 wrote as text."""

    __slots__ = ("encoding", "text")

    def __init__(self, text: Any, encoding: Any = "latin1") -> None:
        self.text, self.encoding = text, encoding

    def to_bytes(self) -> bytes:
        if self.encoding not in ("latin1", "latin-1") or not isinstance(self.text, str):
            raise ValueError("an array in another encoding than latin1")
        return self.text.encode("latin1")


def _from_bytes(budget: Budget, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(data, str):  # of Python 2, which encoding="latin1" hands on one character a byte
        data = EncodedBytes(data)
    if isinstance(data, EncodedBytes):
        data = data.to_bytes()
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, NumpyDtype):
        raise ValueError("an array without bytes or dtype")
    budget.take(len(data), "an array")
    kind, shape = dtype.to_dtype(), _whole_numbers(shape)
    array = np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(kind.newbyteorder("="), order="C")
