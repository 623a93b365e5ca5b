"""Writing state dicts as PyTorch's zip files, without PyTorch: torch.load opens them, with weights_only too."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files.stand_ins import STORAGE_DTYPES

_STORAGES = {dtype: name for name, dtype in STORAGE_DTYPES.items()}


def write_pth(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors as `torch.save` writes a state dict (an OrderedDict of contiguous tensors).

    Raises:
        WeightsError: the file is there already, cannot be written, or a tensor's dtype is none of PyTorch's.
    """
    path = Path(path)
    if path.exists():
        raise WeightsError(f"{path}: already exists")
    part = path.with_name(f"{path.name}.part.{os.getpid()}")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(f"{path.stem}/data.pkl", _pickle(tensors))
            archive.writestr(f"{path.stem}/byteorder", b"little")
            for key, value in enumerate(tensors.values()):
                data = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
                archive.writestr(f"{path.stem}/data/{key}", data.tobytes())
            archive.writestr(f"{path.stem}/version", b"3\n")
        os.replace(part, path)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def _pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The program of protocol 2 that makes the dict; the calls are PyTorch's own, so only opcodes can name them."""
    steps = [pickle.PROTO, b"\x02", _global("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE]
    for key, (name, value) in enumerate(tensors.items()):
        if value.dtype.name not in _STORAGES:
            raise WeightsError(f"{name}: PyTorch has no {value.dtype}")
        strides = np.cumprod((1, *value.shape[:0:-1]))[::-1] if value.ndim else ()
        steps += [_text(name), _global("torch._utils", "_rebuild_tensor_v2"), pickle.MARK]
        storage = [_text("storage"), _global("torch", _STORAGES[value.dtype.name]), _text(str(key)), _text("cpu")]
        steps += [pickle.MARK, *storage, _number(value.size), pickle.TUPLE, pickle.BINPERSID, _number(0)]
        steps += [_numbers(value.shape), _numbers(strides), pickle.NEWFALSE]
        steps += [_global("collections", "OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE]  # of backward hooks
        steps += [pickle.TUPLE, pickle.REDUCE, pickle.SETITEM]
    return b"".join([*steps, pickle.STOP])


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    data = pickle.encode_long(int(value))
    return pickle.LONG1 + struct.pack("<B", len(data)) + data


def _numbers(values: tuple[int, ...] | np.ndarray) -> bytes:
    return pickle.MARK + b"".join(_number(value) for value in values) + pickle.TUPLE
