"""Reading pickles of tensors without running any code that they name.

A pickle is a program: it can import any function and call it. Here every global that it names is looked up in a
table of inert stand-ins that only collect arguments; a name outside the table is refused before anything is called.
Arrays are made afterwards from what the stand-ins hold, with every size checked against the bytes present.

It can also be small and make much: so its steps are counted, no stand-in copies what it is given, and only plain
values are hashed (a tuple of one tuple, a million deep, ends the process when it is a key).
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from kmaskrcnn.errors import WeightsError, reason
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
# A checkpoint of 1000 tensors with its optimizer takes some 100,000 steps. A step makes 250 bytes of Python objects at
# most, besides what it copies from the file.
_MOST_STEPS = 1_000_000
_MOST_DIMENSIONS = 32
_LONGEST_KEY = 16


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


class _Sealed:
    """What a pickle can make but not alter afterwards."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise ValueError(f"state for a {type(self).__name__}")


class Storage(_Sealed):
    """A flat buffer named in a pickle; `values` is filled in by the file reader."""

    __slots__ = ("count", "dtype", "key", "values")

    def __init__(self, dtype: str, key: str, count: int) -> None:
        self.dtype, self.key, self.count = dtype, key, count
        self.values: np.ndarray | None = None

    @property
    def byte_count(self) -> int:
        """Its size in the file."""
        return self.count * item_size(self.dtype)


class _StorageType(NamedTuple):
    dtype: str


class StandIn(_Sealed):
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


class _NumpyDtype(_Sealed):
    __slots__ = ("name", "order")

    def __init__(self, name: Any, *_: Any) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def to_dtype(self) -> np.dtype:
        # numpy also takes lists of fields for a name, and those can be of any size.
        if not isinstance(self.name, str) or len(self.name) > 16 or not isinstance(self.order, str):
            raise ValueError("an array of no plain dtype")
        dtype = np.dtype(self.name)
        if dtype.kind not in ARRAY_KINDS:
            raise ValueError(f"an array of dtype {self.name}")
        orders: dict[str, ByteOrder] = {"<": "<", ">": ">"}
        return dtype.newbyteorder(orders.get(self.order, "="))


class _NumpyArray(StandIn):
    """What numpy's own reconstruction makes: an empty array whose state arrives later."""

    __slots__ = ("state",)

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def to_array(self, budget: Budget) -> np.ndarray:
        _, shape, dtype, fortran, data = self.state
        return _from_bytes(budget, data, dtype, shape, "F" if fortran is True else "C")


class _NumpyBuffer(StandIn):
    """An array of pickle protocol 5: (buffer, dtype, shape, order)."""

    __slots__ = ("arguments",)

    def __init__(self, data: Any, dtype: Any, shape: Any, order: Any) -> None:
        self.arguments = (data, dtype, shape, order)

    def to_array(self, budget: Budget) -> np.ndarray:
        return _from_bytes(budget, *self.arguments)


class _NumpyScalar(StandIn):
    __slots__ = ("data", "dtype")

    def __init__(self, dtype: Any, data: Any) -> None:
        self.dtype, self.data = dtype, data

    def to_array(self, budget: Budget) -> np.ndarray:
        return _from_bytes(budget, self.data, self.dtype, (), "C")


class _Encoded(_Sealed):
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
        data = _Encoded(data)
    if isinstance(data, _Encoded):
        data = data.to_bytes()
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _NumpyDtype):
        raise ValueError("an array without bytes or dtype")
    budget.take(len(data), "an array")
    kind, shape = dtype.to_dtype(), _whole_numbers(shape)
    array = np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(kind.newbyteorder("="), order="C")


class _Function:
    """A callable that a pickle can call but not look into or alter."""

    __slots__ = ("_call",)
    _call: Callable

    def __init__(self, call: Callable) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class _Passed:
    """An object of settings beside the weights, such as the arguments of the program: taken and forgotten."""

    __slots__ = ()

    def __new__(cls, *_: Any) -> _Passed:
        return object.__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Dict(dict):
    """In place of dict's subclasses; PyTorch sets an attribute of an OrderedDict, which is ignored."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


# Every entry is immutable: a pickle may also set attributes of what it finds.
_GLOBALS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _Function(Tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(Tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda data, *_: data),
    ("torch", "Size"): _Function(lambda sizes=(): sizes),
    ("_codecs", "encode"): _Function(_Encoded),
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
# What training programs save beside their weights: settings, counters of schedules, paths, devices, times.
_SETTINGS = {
    "argparse": "Namespace",
    "types": "SimpleNamespace",
    "pathlib": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "pathlib._local": "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath",
    "datetime": "datetime date time timedelta timezone",
    "torch": "device float32 float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool",
    "builtins": "int float str bool list dict set frozenset complex slice range",
    "__builtin__": "int float str bool list dict set frozenset complex slice xrange",
    "yacs.config": "CfgNode",
    "fvcore.common.config": "CfgNode",
    "detectron2.config.config": "CfgNode",
}
_GLOBALS |= {(module, name): _Passed for module, names in _SETTINGS.items() for name in names.split()}
_DICTS = {("collections", name) for name in ("OrderedDict", "Counter", "defaultdict")}


def _check_keys(keys: Iterable[Any]) -> None:
    for key in keys:
        parts = key if type(key) is tuple and len(key) <= _LONGEST_KEY else (key,)
        for part in parts:
            if isinstance(part, int):
                if part.bit_length() > 64:
                    raise ValueError("a key of too many digits")
            elif part is not None and not isinstance(part, str | bytes | float):
                raise ValueError(f"a {type(part).__name__} as a key")


# Python's own Unpickler in Python: the one in C can neither be stopped between two steps nor asked what it hashes.
_Unpickler: Any = pickle._Unpickler


class TensorUnpickler(_Unpickler):
    """An unpickler of tensors and plain containers that refuses every other global.

    Args:
        stream: the pickle.
        path: the file, for messages.

    Attributes:
        storages: every Storage named so far, by key.

    `load_checked` raises WeightsError for a global outside the table or for a damaged pickle.
    """

    def __init__(self, stream: IO[bytes], path: str) -> None:
        super().__init__(stream, encoding="latin1")
        self._path = path
        self._steps = 0
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _DICTS:
            return _Function(self._make_dict)
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise WeightsError(
                f"{self._path}: refused, its pickle names {reason(f'{module}.{name}')}; only files of tensors are "
                "read. Save the state_dict alone: torch.save(model.state_dict(), path)"
            ) from None

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage_type, key, _, count, *rest = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or any(r is not None for r in rest):
            raise ValueError("an object that is no storage")
        if not isinstance(key, str) or not isinstance(count, int) or not 0 <= count < 1 << 62:
            raise ValueError("a storage without a name or a length")
        storage = self.storages.setdefault(key, Storage(storage_type.dtype, key, count))
        if storage.dtype != storage_type.dtype:
            raise ValueError(f"storage {key} has two types")
        return storage

    def load_checked(self) -> Any:
        """The object, with stand-ins in place of arrays."""
        try:
            return self.load()
        except WeightsError:
            raise
        # A pickle of hostile or random bytes fails in any way; none of them is a bug of this program.
        except Exception as error:
            raise WeightsError(f"{self._path}: truncated or damaged pickle ({reason(error)})") from None

    def _count(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise ValueError(f"more than {_MOST_STEPS} steps")

    def _make_dict(self, items: Any = (), *_: Any) -> _Dict:
        pairs = list(items.items()) if isinstance(items, dict) else items
        if not isinstance(pairs, list):  # the factory of a defaultdict
            return _Dict()
        self._count(len(pairs))
        _check_keys(key for key, _ in pairs)
        return _Dict(pairs)

    def _check_marked(self, every: int) -> None:
        """Check what the next step, which takes all since the mark, will hash: each of them, or every second."""
        _check_keys(self.stack[::every])

    def _setitem(self) -> None:
        _check_keys(self.stack[-2:-1])
        _Unpickler.load_setitem(self)


def _counted(load: Callable[[Any], None], every: int = 0) -> Callable[[TensorUnpickler], None]:
    def step(unpickler: TensorUnpickler) -> None:
        unpickler._count()
        if every:
            unpickler._check_marked(every)
        load(unpickler)

    return step


_HASHING = {pickle.SETITEMS[0]: 2, pickle.DICT[0]: 2, pickle.ADDITEMS[0]: 1, pickle.FROZENSET[0]: 1}
_STEPS = {
    **_Unpickler.dispatch,
    pickle.SETITEM[0]: TensorUnpickler._setitem,
    # As bytes: a bytearray is filled with zeros before anybody sees that the file is shorter.
    pickle.BYTEARRAY8[0]: _Unpickler.load_binbytes8,
}
TensorUnpickler.dispatch = {code: _counted(load, _HASHING.get(code, 0)) for code, load in _STEPS.items()}
