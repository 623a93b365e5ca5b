"""Reading weight files (.pth, .pt, .bin, .safetensors, .pkl, .npz) into numpy arrays, without their libraries."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, Any, BinaryIO

import numpy as np

from kmaskrcnn.errors import WeightsError, reason
from kmaskrcnn.weight_files.budget import Budget
from kmaskrcnn.weight_files.stand_ins import ARRAY_KINDS, BFLOAT16, ByteOrder, StandIn, Storage, Tensor, decode
from kmaskrcnn.weight_files.unpickle import TensorUnpickler

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DEEPEST, _LONGEST_NAME, _LONGEST_HEADER, _MOST_DIMENSIONS = 64, 1000, 16 << 20, 32
# Keys under which training programs keep the weights beside an optimizer.
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

    The format is detected from the content: PyTorch zip and legacy files, pickled dicts of numpy arrays (Detectron2's
    model zoo), safetensors and .npz. No code in a pickle is run. Weights under "state_dict", "model" or the like are
    taken out, nested names are joined by ".", and the "module." of DataParallel is removed. What lies beside the
    weights, an optimizer's state for one, is not read. Memory is bounded by a small multiple of the file's size.

    Raises:
        WeightsError: no such file, an unknown kind, a truncated or damaged file, a pickle that names anything but
            tensors and settings, a file that declares more than it holds, or one without tensors.
    """
    budget = Budget(path)
    path = budget.path
    try:
        with open(path, "rb") as stream:
            head = stream.read(16)
            stream.seek(0)
            tensors = _read(stream, head, budget)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror or error}") from None
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _read(stream: BinaryIO, head: bytes, budget: Budget) -> dict[str, np.ndarray]:
    path = budget.path
    try:
        if head.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(stream) as archive:
                return _read_zip(archive, budget)
        if len(head) > 8 and head[8:9] == b"{":
            return _read_safetensors(stream, budget)
        if head.startswith(b"\x80"):
            return _read_pickle(stream, budget)
    except (WeightsError, OSError):
        raise
    # Damaged headers fail in many ways: UnicodeDecodeError, struct.error, RecursionError, OverflowError among them.
    except Exception as error:
        raise WeightsError(f"{path}: truncated or damaged ({reason(error)})") from None
    raise WeightsError(f"{path}: not a PyTorch, safetensors, pickle or .npz file (or an empty or truncated one)")


def _named_tensors(content: Any, path: str) -> dict[str, StandIn]:
    """The tensors of nested dicts by dotted names; epochs, settings and names of other kinds are passed over."""
    for _ in range(_DEEPEST):
        inner = [content[key] for key in _WRAPPERS if isinstance(content, dict) and isinstance(content.get(key), dict)]
        content = inner[0] if inner else content
    tensors: dict[str, StandIn] = {}
    seen: set[int] = set()

    def collect(value: Any, name: str, depth: int) -> None:
        if isinstance(value, StandIn):
            tensors[name] = value
        elif isinstance(value, dict):
            # A dict that lies within itself, or twice in each of many, has more names than any memory.
            if id(value) in seen or depth > _DEEPEST:
                raise WeightsError(f"{path}: refused, its dicts are nested too deep or in each other ({name})")
            seen.add(id(value))
            for key, item in value.items():
                if isinstance(key, str) and isinstance(item, dict | StandIn):
                    if len(name) + len(key) > _LONGEST_NAME or not key.isprintable():
                        raise WeightsError(f"{path}: damaged (a tensor's name is {reason(repr(key))})")
                    collect(item, f"{name}.{key}" if name else key, depth + 1)

    collect(content, "", 0)
    return tensors


def _to_arrays(named: Mapping[str, StandIn], budget: Budget) -> dict[str, np.ndarray]:
    made: dict[int, np.ndarray] = {}  # a tensor that has two names is one array
    for name, tensor in named.items():
        if id(tensor) not in made:
            try:
                made[id(tensor)] = tensor.to_array(budget)
            except WeightsError:
                raise
            except Exception as error:
                raise WeightsError(f"{budget.path}: {name}: damaged tensor ({reason(error)})") from None
    return {name: made[id(tensor)] for name, tensor in named.items()}


def _wanted_storages(named: Mapping[str, StandIn]) -> dict[str, Storage]:
    tensors = [tensor for tensor in named.values() if isinstance(tensor, Tensor)]
    return {tensor.storage.key: tensor.storage for tensor in tensors if isinstance(tensor.storage, Storage)}


def _read_storage(stream: IO[bytes], storage: Storage, budget: Budget, byteorder: ByteOrder = "<") -> None:
    budget.take(storage.byte_count, f"storage {storage.key}")
    data = stream.read(storage.byte_count)
    if len(data) != storage.byte_count:
        raise WeightsError(f"{budget.path}: truncated or damaged (storage {storage.key} is incomplete)")
    storage.values = decode(data, storage.dtype, byteorder)


# PyTorch's zip format: NAME/data.pkl, and NAME/data/KEY with the bytes of each storage.


def _read_zip(archive: zipfile.ZipFile, budget: Budget) -> dict[str, np.ndarray]:
    path, entries = budget.path, {entry.filename: entry for entry in archive.infolist()}
    for name, entry in entries.items():
        # zipfile unpacks whole blocks of the other methods, whatever size is declared.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise WeightsError(f"{path}: {reason(name)} uses a compression that neither PyTorch nor numpy writes")
    pickles = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    if not pickles:
        return _read_npz(archive, budget)
    root = pickles[0].removesuffix("data.pkl")
    budget.take(entries[pickles[0]].file_size, pickles[0])
    with archive.open(pickles[0]) as stream:
        unpickler = TensorUnpickler(stream, path)
        named = _named_tensors(unpickler.load_checked(), path)
    byteorder: ByteOrder = "<"
    with contextlib.suppress(KeyError), archive.open(f"{root}byteorder") as stream:
        byteorder = ">" if stream.read(16) == b"big" else "<"
    for storage in _wanted_storages(named).values():
        name = f"{root}data/{storage.key}"
        if name not in entries:
            raise WeightsError(f"{path}: truncated or damaged (no {reason(name)})")
        if entries[name].file_size != storage.byte_count:
            raise WeightsError(f"{path}: damaged ({name} does not have the {storage.byte_count} bytes of its tensors)")
        with archive.open(name) as stream:
            _read_storage(stream, storage, budget, byteorder)
    return _to_arrays(named, budget)


def _read_npz(archive: zipfile.ZipFile, budget: Budget) -> dict[str, np.ndarray]:
    tensors = {}
    for entry in archive.infolist():
        name = entry.filename
        if not name.endswith(".npy") or len(name) > _LONGEST_NAME or not name.isprintable():
            raise WeightsError(
                f"{budget.path}: a zip file that is neither of PyTorch nor .npz (it holds {reason(name)})"
            )
        try:
            with archive.open(entry) as stream:
                tensors[name.removesuffix(".npy")] = _read_npy(stream, entry.file_size, budget, name)
        except WeightsError:
            raise
        except Exception as error:
            raise WeightsError(f"{budget.path}: {name}: damaged array ({reason(error)})") from None
    return tensors


def _read_npy(stream: IO[bytes], size: int, budget: Budget, name: str) -> np.ndarray:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"format {version[0]}.{version[1]}")
    if dtype.kind not in ARRAY_KINDS:
        raise ValueError(f"dtype {dtype}")
    byte_count = math.prod(shape) * dtype.itemsize
    if byte_count != size - stream.tell():
        raise ValueError(f"{size} bytes cannot hold shape {shape} of {dtype}")
    budget.take(byte_count, name)
    array = np.frombuffer(stream.read(byte_count), dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), order="C", copy=False)


# PyTorch's legacy format: pickles of a magic number, a version, the machine, the object and the keys, then the bytes.


def _read_pickle(stream: BinaryIO, budget: Budget) -> dict[str, np.ndarray]:
    path = budget.path
    first = TensorUnpickler(stream, path).load_checked()
    if not (isinstance(first, int) and first == _LEGACY_MAGIC):
        return _to_arrays(_named_tensors(first, path), budget)
    version = TensorUnpickler(stream, path).load_checked()
    if version != _LEGACY_PROTOCOL:
        raise WeightsError(f"{path}: not a PyTorch file of format version {_LEGACY_PROTOCOL}")
    machine = TensorUnpickler(stream, path).load_checked()
    if not isinstance(machine, dict) or not machine.get("little_endian", True):
        raise WeightsError(f"{path}: written on a big-endian machine")
    unpickler = TensorUnpickler(stream, path)
    named = _named_tensors(unpickler.load_checked(), path)
    keys = TensorUnpickler(stream, path).load_checked()
    known = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not known or set(keys) != set(unpickler.storages):
        raise WeightsError(f"{path}: damaged (its list of storages does not match its tensors)")
    wanted = _wanted_storages(named)
    for key in keys:
        storage = unpickler.storages[key]
        if stream.read(8) != struct.pack("<q", storage.count):
            raise WeightsError(f"{path}: truncated or damaged (storage {key} is incomplete)")
        if key in wanted:
            _read_storage(stream, storage, budget)
        else:
            stream.seek(storage.byte_count, os.SEEK_CUR)
    return _to_arrays(named, budget)


# safetensors: the length of a JSON header, {name: {dtype, shape, data_offsets}}, then the bytes.


def _read_safetensors(stream: BinaryIO, budget: Budget) -> dict[str, np.ndarray]:
    path, size = budget.path, budget.size
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > size - 8:
        raise WeightsError(f"{path}: truncated or damaged (its header has {length} bytes, the file {size})")
    if length > _LONGEST_HEADER:
        raise WeightsError(f"{path}: refused, its header has {length} bytes")
    try:
        header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors, start_of_data = {}, 8 + length
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            dtype = _SAFETENSORS_DTYPES[entry["dtype"]]
            if not 0 <= start <= end <= size - start_of_data:
                raise ValueError(f"tensor {name} ends at byte {end} of {size - start_of_data}")
            if len(name) > _LONGEST_NAME or not name.isprintable() or len(entry["shape"]) > _MOST_DIMENSIONS:
                raise ValueError(f"a tensor's name or shape: {name!r}")
            budget.take(end - start, name)
            stream.seek(start_of_data + start)
            tensors[name] = decode(stream.read(end - start), dtype).reshape(entry["shape"])
        return tensors
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({reason(error)})") from None


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
