"""Reading weight files (.pth, .pt, .bin, .safetensors, .pkl, .npz) into numpy arrays, without their libraries."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from typing import Any, BinaryIO

import numpy as np

from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files.unpickle import BFLOAT16, Storage, TensorUnpickler, decode, resolve

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Keys under which training programs keep the weights beside an optimiser.
_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "module", "blobs")
_SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": BFLOAT16,
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every tensor of a weight file by its name, in the file's own layout; bfloat16 is widened to float32.

    The kind is told from the content: PyTorch zip and legacy files, pickled dicts of numpy arrays (Detectron2's
    model zoo), safetensors and .npz. No code in a pickle is run. Weights under "state_dict", "model" or the like are
    taken out, nested names are joined by ".", and the "module." of DataParallel is removed.

    Raises:
        WeightsError: no such file, an unknown kind, a truncated or damaged file, a pickle that names anything but
            tensors, or a file without tensors.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as stream:
            head = stream.read(16)
            stream.seek(0)
            content = _read(stream, head, path)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from None
    tensors = _flatten(_unwrap(content))
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _read(stream: BinaryIO, head: bytes, path: str) -> Any:
    if head.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(stream) as archive:
                return _read_zip(archive, path)
        except WeightsError:
            raise
        # zipfile fails on damaged headers in many ways, UnicodeDecodeError and struct.error among them.
        except Exception as error:
            raise WeightsError(f"{path}: truncated or damaged ({error})") from None
    if len(head) > 8 and head[8:9] == b"{":
        return _read_safetensors(stream, path)
    if head.startswith(b"\x80"):
        return _read_pickle(stream, path)
    raise WeightsError(f"{path}: not a PyTorch, safetensors, pickle or .npz file (or an empty or truncated one)")


def _unwrap(content: Any) -> Any:
    while isinstance(content, dict):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = inner[0]
    return content


def _flatten(content: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of nested dicts under dotted names; epochs, settings and names of other kinds are passed over."""
    if isinstance(content, np.ndarray):
        return {prefix: content}
    tensors = {}
    if isinstance(content, dict):
        for name, value in content.items():
            if isinstance(name, str):
                tensors |= _flatten(value, f"{prefix}.{name}" if prefix else name)
    return tensors


# PyTorch's zip format: NAME/data.pkl, and NAME/data/KEY with the bytes of each storage.


def _read_zip(archive: zipfile.ZipFile, path: str) -> Any:
    names = archive.namelist()
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if not pickles:
        return _read_npz(archive, path)
    root = pickles[0].removesuffix("data.pkl")
    with archive.open(pickles[0]) as stream:
        unpickler = TensorUnpickler(stream, path)
        content = unpickler.load_checked()
    big = f"{root}byteorder" in names and archive.read(f"{root}byteorder") == b"big"
    for storage in unpickler.storages.values():
        name = f"{root}data/{storage.key}"
        if name not in names:
            raise WeightsError(f"{path}: truncated or damaged (no {name})")
        if archive.getinfo(name).file_size != _byte_count(storage):
            raise WeightsError(f"{path}: damaged ({name} has not the {_byte_count(storage)} bytes of its tensors)")
        storage.values = decode(archive.read(name), storage.dtype, ">" if big else "<")
    return resolve(content, path)


def _read_npz(archive: zipfile.ZipFile, path: str) -> dict[str, np.ndarray]:
    tensors = {}
    for name in archive.namelist():
        if not name.endswith(".npy"):
            raise WeightsError(f"{path}: a zip file that is neither of PyTorch nor .npz (it holds {name})")
        try:
            with archive.open(name) as stream:
                tensors[name.removesuffix(".npy")] = np.lib.format.read_array(stream, allow_pickle=False)
        except ValueError as error:
            raise WeightsError(f"{path}: {name}: damaged array ({error})") from None
    return tensors


def _byte_count(storage: Storage) -> int:
    return storage.count * (2 if storage.dtype == BFLOAT16 else np.dtype(storage.dtype).itemsize)


# PyTorch's legacy format: pickles of a magic number, a version, the machine, the object and the keys, then the bytes.


def _read_pickle(stream: BinaryIO, path: str) -> Any:
    first = TensorUnpickler(stream, path).load_checked()
    if not (isinstance(first, int) and first == _LEGACY_MAGIC):
        return resolve(first, path)
    version = TensorUnpickler(stream, path).load_checked()
    if version != _LEGACY_PROTOCOL:
        raise WeightsError(f"{path}: PyTorch format version {version!r} is unknown")
    machine = TensorUnpickler(stream, path).load_checked()
    if not isinstance(machine, dict) or not machine.get("little_endian", True):
        raise WeightsError(f"{path}: written on a big-endian machine")
    unpickler = TensorUnpickler(stream, path)
    content = unpickler.load_checked()
    keys = TensorUnpickler(stream, path).load_checked()
    if not isinstance(keys, list) or set(keys) != set(unpickler.storages):
        raise WeightsError(f"{path}: damaged (its list of storages does not match its tensors)")
    for key in keys:
        storage = unpickler.storages[key]
        header = stream.read(8)
        data = stream.read(_byte_count(storage))
        if header != struct.pack("<q", storage.count) or len(data) != _byte_count(storage):
            raise WeightsError(f"{path}: truncated or damaged (storage {key} is incomplete)")
        storage.values = decode(data, storage.dtype)
    return resolve(content, path)


# safetensors: the length of a JSON header, {name: {dtype, shape, data_offsets}}, then the bytes.


def _read_safetensors(stream: BinaryIO, path: str) -> dict[str, np.ndarray]:
    size = os.fstat(stream.fileno()).st_size
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > size - 8:
        raise WeightsError(f"{path}: truncated or damaged (its header has {length} bytes, the file {size})")
    try:
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        data = stream.read()
        tensors = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if not 0 <= start <= end <= len(data):
                raise ValueError(f"tensor {name} ends at byte {end} of {len(data)}; the file is truncated or damaged")
            tensors[name] = decode(data[start:end], _SAFETENSORS_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from None


def write_tensors(path: str | os.PathLike, tensors: dict[str, np.ndarray]) -> None:
    """Write arrays as safetensors, which PyTorch's tools read as well.

    Raises:
        WeightsError: an array of a dtype that the format lacks.
    """
    names = {dtype: name for name, dtype in _SAFETENSORS_DTYPES.items()}
    header, offset = {}, 0
    for name, value in tensors.items():
        if value.dtype.name not in names:
            raise WeightsError(f"{name}: safetensors has no {value.dtype}")
        header[name] = {
            "dtype": names[value.dtype.name],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + value.nbytes],
        }
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            stream.write(np.ascontiguousarray(value).tobytes())
