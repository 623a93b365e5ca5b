"""Reading pickles of tensors without running any code that they name.

A pickle is a program: it can import any function and call it. Here every global that it names is looked up in a
table of inert stand-ins that only collect arguments; a name outside the table is refused before anything is called.
Arrays are made afterwards from what the stand-ins hold, with every size checked against the bytes present.

It can also be small and make much: so its steps are counted, no stand-in copies what it is given, and only plain
values are hashed (a tuple of one tuple, a million deep, ends the process when it is a key).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from typing import IO, Any

from kmaskrcnn.errors import WeightsError, reason
from kmaskrcnn.weight_files.stand_ins import (
    STORAGE_DTYPES,
    EncodedBytes,
    NumpyArray,
    NumpyBuffer,
    NumpyDtype,
    NumpyScalar,
    Storage,
    StorageType,
    Tensor,
)

# A checkpoint of 1000 tensors with its optimizer takes some 100,000 steps. A step makes 250 bytes of Python objects at
# most, besides what it copies from the file.
_MOST_STEPS = 1_000_000
_LONGEST_KEY = 16


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
    ("_codecs", "encode"): _Function(EncodedBytes),
    ("numpy", "dtype"): _Function(NumpyDtype),
    # Protocol 2 writes an array without elements as a call of bytes without arguments.
    ("__builtin__", "bytes"): _Function(lambda: b""),
    # Only ever an argument of _reconstruct.
    ("numpy", "ndarray"): "numpy.ndarray",
}
_GLOBALS |= {("torch", name): StorageType(dtype) for name, dtype in STORAGE_DTYPES.items()}
for _package in ("numpy.core", "numpy._core"):
    _GLOBALS |= {
        (f"{_package}.multiarray", "_reconstruct"): _Function(NumpyArray),
        (f"{_package}.multiarray", "scalar"): _Function(NumpyScalar),
        (f"{_package}.numeric", "_frombuffer"): _Function(NumpyBuffer),
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
        if kind != "storage" or not isinstance(storage_type, StorageType) or any(r is not None for r in rest):
            raise ValueError("an object that is not a storage")
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
