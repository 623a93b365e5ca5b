"""Weight files made to harm: small ones that declare or make much, and damaged ones. Each must end in one line."""

from __future__ import annotations

import io
import json
import os
import pathlib
import pickle
import random
import struct
import zipfile
from collections.abc import Iterator

import numpy as np

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
Files = Iterator[tuple[str, bytes]]
_KEY = b"X\x01\x00\x00\x00a"  # the text "a"
_BYTES = b"C\x08" + bytes(8)


def write_all(folder: pathlib.Path, seed: int = 0) -> list[pathlib.Path]:
    """Write every hostile file into the folder and return their paths."""
    paths = []
    for name, data in (*_pickles(), *_torch_zips(), *_npz(), *_safetensors(), *_damaged(random.Random(seed))):
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    return paths + _hdf5(folder)


class _Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _long(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def _as_legacy(body: bytes) -> bytes:
    heads = [pickle.dumps(v, protocol=2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(heads) + body


def shared_lists(depth: int = 3000) -> bytes:
    """A list that holds the one before twice, and so on: 2^depth elements."""
    steps = b"0](h\x00h\x00eq\x00" * depth
    return b"\x80\x02}" + _KEY + b"]q\x00" + steps + b"s."


def _pickles() -> Files:
    two = b"\x80\x02"
    nested = b")" + b"\x85" * 1_000_000  # ((((...),),),)
    doubled = b")" + b"2\x86" * 200  # (t, t) of (t, t) of ...
    array = b"cnumpy.core.multiarray\n_reconstruct\n)R"
    dtype = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R"

    ordered, float_storage = _global("collections", "OrderedDict"), _global("torch", "FloatStorage")

    def state(shape: bytes, kind: bytes = dtype, data: bytes = _BYTES) -> bytes:
        return two + b"}" + _KEY + array + b"(K\x01" + shape + kind + b"\x89" + data + b"tbs."

    bodies = {
        "shared_lists": shared_lists(),
        "shared_dicts": two + b"}q\x00" + (b"}(" + _KEY + b"h\x00X\x01\x00\x00\x00bh\x00uq\x00") * 64 + b".",
        "dict_in_itself": two + b"}q\x00" + _KEY + b"h\x00s.",
        "model_in_itself": two + b"}q\x00X\x05\x00\x00\x00modelh\x00s.",
        "deep_lists": two + b"}" + _KEY + b"]" * 400_000 + b"a" * 399_999 + b"s.",
        "deep_dicts": two + b"".join(b"}" + _KEY for _ in range(100_000)) + b"K\x01" + b"s" * 100_000 + b".",
        "deep_key": two + b"}" + nested + b"K\x01s.",
        "doubled_key": two + b"}" + doubled + b"K\x01s.",
        "doubled_key_of_items": two + b"}(" + doubled + b"K\x01u.",
        "doubled_key_of_dict": two + b"(" + doubled + b"K\x01d.",
        "doubled_key_of_ordered_dict": two + ordered + b"](]" + doubled + b"aK\x01ae\x85R.",
        "doubled_in_set": b"\x80\x04\x8f(" + doubled + b"\x90.",
        "doubled_frozenset": b"\x80\x04(" + doubled + b"\x91.",
        "doubled_kind": two + b"(" + doubled + b"K\x01K\x02K\x03K\x04tQ.",
        "doubled_version": pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + two + doubled + b".",
        "huge_key": two + b"}" + _long(1 << 8_000_000) + b"q\x00K\x01s" + b"h\x00K\x01s" * 100_000 + b".",
        "huge_memo_number": two + b"}r" + struct.pack("<I", 2**31 - 1) + b".",
        "huge_frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"}.",
        "huge_bytes": b"\x80\x04\x8e" + struct.pack("<Q", 6 << 30) + b".",
        "huge_text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
        "huge_bytearray": b"\x80\x05\x96" + struct.pack("<Q", 6 << 30) + b".",
        "many_sets": b"\x80\x04}" + _KEY + b"(" + b"\x8f" * 3_000_000 + b"ls.",
        "many_copies": two + b"}" + _KEY + b"]q\x00" + b"2" * 3_000_000 + b".",
        "many_encoded": two + b"X" + struct.pack("<I", 500_000) + b"x" * 500_000 + b"q\x010}" + _KEY + b"("
        + (_global("_codecs", "encode") + b"q\x020" + b"h\x02h\x01\x85R" * 100_000) + b"ls.",
        "bytes_of_a_number": state(b"J\x00\x00\x00\x7f\x85", data=b"J\x00\x00\x00\x7f"),
        "huge_shape": state(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
        "negative_shape": state(b"J\xff\xff\xff\xff\x85"),
        "shape_of_digits": state(_long(1 << 1_000_000) + b"\x85"),
        "shape_of_many": state(b"(" + b"K\x01" * 100_000 + b"t"),
        "shape_is_doubled": state(doubled),
        "dtype_is_doubled": state(b"K\x02\x85", b"cnumpy\ndtype\n" + doubled + b"\x85R"),
        "dtype_of_objects": state(b"K\x02\x85", b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R"),
        "dtype_of_many_fields": state(b"K\x02\x85", b"cnumpy\ndtype\nX\x0c\x00\x00\x00999999999xf4\x85R"),
        "no_state": two + b"}" + _KEY + array + b"s.",
        "array_is_a_list": two + b"}" + _KEY + array + b"]bs.",
        "changed_storage_type": two + float_storage + b"}X\x05\x00\x00\x00dtypeX\x01\x00\x00\x00Os b.",
        "changed_function": two + _global("torch", "Size") + b"}X\x05\x00\x00\x00_callK\x01sb.",
        "changed_settings_class": two + _global("argparse", "Namespace") + b"}X\x01\x00\x00\x00xK\x01sb.",
        "name_of_many_letters": two + b"}X" + struct.pack("<I", 5_000_000) + b"y" * 5_000_000 + b"]s.",
        "unknown_of_many_letters": two + b"c" + b"m" * 1_000_000 + b"\nname\n.",
        "no_end": two + b"}q\x00" + b"(" * 1000,
        "extension": two + b"\x82\x01.",
        "out_of_band": b"\x80\x05\x97.",
        "text_number_of_digits": b"\x80\x02I" + b"9" * 500_000 + b"\n.",
        "only_settings": pickle.dumps({"epoch": 3, "lr": [0.1] * 10}),
    }  # fmt: skip
    for number in range(3):
        calls = (_Call(os.system, "true"), _Call(eval, "1"), _Call(open, os.devnull))
        bodies[f"call_{number}"] = pickle.dumps({"model": calls[number]}, protocol=2)
    many = b"".join(b"X\x05\x00\x00\x00%05d" % i + array + b"(K\x01h\x03\x85h\x02\x89h\x01tbs" for i in range(20_000))
    shared = (
        b"B" + struct.pack("<I", 400_000) + bytes(400_000) + b"q\x010" + dtype + b"q\x020" + b"J\xa0\x86\x01\x00q\x030}"
    )
    bodies["many_arrays_of_one_buffer"] = two + shared + many + b"."
    for name, body in bodies.items():
        yield f"{name}.pkl", body
        if name.startswith(("shared", "doubled_key", "huge", "call", "deep_key", "many_sets")):
            yield f"{name}_legacy.pth", _as_legacy(body)
            yield f"{name}_zip.pth", _zip({"archive/data.pkl": body})


def _zip(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return stream.getvalue()


def torch_pickle(sizes: dict[str, tuple], count: int, storage: str = "FloatStorage", key: str = "0") -> bytes:
    """The data.pkl of tensors {name: (offset, size, stride)} of one storage of `count` elements."""

    def number(value: int) -> bytes:
        return _long(value)

    def numbers(values: tuple) -> bytes:
        return b"(" + b"".join(number(v) for v in values) + b"t"

    place = b"(X\x07\x00\x00\x00storage" + _global("torch", storage) + b"X" + struct.pack("<I", len(key)) + key.encode()
    place += b"X\x03\x00\x00\x00cpu" + number(count) + b"tQ"
    body = b"\x80\x02}"
    for name, (offset, size, stride) in sizes.items():
        body += b"X" + struct.pack("<I", len(name)) + name.encode() + _global("torch._utils", "_rebuild_tensor_v2")
        body += b"(" + place + number(offset) + numbers(size) + numbers(stride) + b"\x89}tRs"
    return body + b"."


def stride_zero(length: int = 5_000_000_000) -> bytes:
    """A tensor of so many elements, all of them the one of its storage."""
    return _zip({"a/data.pkl": torch_pickle({"w": (0, (length,), (0,))}, 1), "a/data/0": bytes(4)})


def deflated_storage(count: int = 1 << 24) -> bytes:
    """A storage of zeros that is a thousand times as large as the file."""
    entries = {"a/data.pkl": torch_pickle({"w": (0, (count,), (1,))}, count), "a/data/0": bytes(4 * count)}
    return _zip(entries, zipfile.ZIP_DEFLATED)


def _torch_zips() -> Files:
    yield "stride_zero.pth", stride_zero()
    yield (
        "stride_zero_thousand.pth",
        _zip({"a/data.pkl": torch_pickle({"w": (0, (1000, 1000), (0, 1))}, 1000), "a/data/0": bytes(4000)}),
    )
    yield "deflated_storage.pth", deflated_storage()
    views = {f"w{i}": (0, (1000, 100), (1, 1)) for i in range(3000)}
    yield "overlapping_views.pth", _zip({"a/data.pkl": torch_pickle(views, 2000), "a/data/0": bytes(8000)})
    cases = {
        "huge_storage": ({"w": (0, (2,), (1,))}, 1 << 61),
        "digits_of_storage": ({"w": (0, (2,), (1,))}, 1 << 400),
        "negative_storage": ({"w": (0, (2,), (1,))}, -1),
        "past_storage": ({"w": (0, (3,), (1,))}, 2),
        "past_offset": ({"w": (1 << 61, (1,), (1,))}, 2),
        "negative_offset": ({"w": (-1, (1,), (1,))}, 2),
        "negative_stride": ({"w": (1, (2,), (-1,))}, 2),
        "huge_stride": ({"w": (0, (2,), (1 << 61,))}, 2),
        "digits_of_shape": ({"w": (0, (1 << 4000,), (0,))}, 2),
        "empty_and_huge": ({"w": (0, (0, 1 << 61, 1 << 61), (0, 0, 0))}, 2),
        "many_dimensions": ({"w": (0, (1,) * 70, (1,) * 70)}, 2),
        "strides_of_others": ({"w": (0, (1, 1), (1,))}, 2),
    }
    for name, (sizes, count) in cases.items():
        yield f"{name}.pth", _zip({"a/data.pkl": torch_pickle(sizes, count), "a/data/0": bytes(8)})
    good = torch_pickle({"w": (0, (2,), (1,))}, 2)
    yield "no_storage.pth", _zip({"a/data.pkl": good})
    yield "key_of_a_path.pth", _zip({"a/data.pkl": torch_pickle({"w": (0, (2,), (1,))}, 2, key="../../x")})
    for method, name in ((zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma")):
        yield f"{name}.pth", _zip({"a/data.pkl": good, "a/data/0": bytes(20_000_000)}, method)
    yield "deflated_pickle.pth", _zip({"a/data.pkl": b"\x80\x02" + b"]0" * 10_000_000 + b"."}, zipfile.ZIP_DEFLATED)
    yield "many_entries.pth", _zip({f"a/{i}": b"" for i in range(50_000)})
    encrypted = bytearray(_zip({"a/data.pkl": good, "a/data/0": bytes(8)}))
    encrypted[6] |= 1
    yield "encrypted.pth", bytes(encrypted)


def _npy(shape: str, descr: str = "'<f4'", data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H", len(header)) if version == b"\x01\x00" else struct.pack("<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


def _npz() -> Files:
    yield "declares_6_gb.npz", _zip({"w.npy": _npy("(1600000000,)", data=bytes(16))})
    yield "deflated.npz", _zip({"w.npy": _npy("(15000000,)", data=bytes(60_000_000))}, zipfile.ZIP_DEFLATED)
    cases = {
        "negative": "(-1,)", "two_negatives": "(-1, -4)", "digits": f"({'9' * 400},)", "fractions": "(1.5,)",
        "deep": "(" * 3000 + ")" * 3000, "names": "(a,)", "call": "(__import__('os').getpid(),)", "bools": "(True,)",
        "empty_and_huge": f"(0, {1 << 62}, {1 << 62})", "many": "(" + "1," * 4000 + ")",
    }  # fmt: skip
    for name, shape in cases.items():
        yield f"shape_{name}.npz", _zip({"w.npy": _npy(shape, data=bytes(16))})
    for name, descr in {"object": "'|O'", "fields": "[('a', '<f4')]", "text": "'<U99999999'", "void": "'V4'"}.items():
        yield f"dtype_{name}.npz", _zip({"w.npy": _npy("(4,)", descr, bytes(16))})
    yield "long_header.npz", _zip({"w.npy": _npy("(" + " " * 5_000_000 + "4,)", data=bytes(16), version=b"\x02\x00")})
    yield "version_9.npz", _zip({"w.npy": _npy("(4,)", data=bytes(16), version=b"\x09\x00")})
    yield "name_of_lines.npz", _zip({"a\nb.npy": _npy("(4,)", data=bytes(16))})
    yield "name_of_many_letters.npz", _zip({"a" * 60_000 + ".npy": _npy("(4,)", data=bytes(16))})
    yield "other.npz", _zip({"readme.txt": b"hello"})
    yield "empty.npz", _zip({})


def _safetensors() -> Files:
    def file(header: object, data: bytes = bytes(16), length: int | None = None) -> tuple[bytes]:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    def one(**changes: object) -> dict:
        return {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}

    data = bytes(1_000_000)
    same = {f"w{i}": {"dtype": "F32", "shape": [250_000], "data_offsets": [0, 1_000_000]} for i in range(3000)}
    cases = {
        "header_past_end": file(one(), length=1 << 40),
        "huge_header": file(b'{"w":[' + b"[]," * 6_000_000 + b"[]]}"),
        "same_bytes": file(same, data),
        "past_end": file(one(data_offsets=[0, 1 << 40])),
        "turned_around": file(one(data_offsets=[16, 0])),
        "negative": file(one(data_offsets=[-16, 0])),
        "fractions": file(one(data_offsets=[0.0, 16.0])),
        "digits": file(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,' + b"9" * 400 + b"]}}"),
        "many_digits": file(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,' + b"9" * 100_000 + b"]}}"),
        "other_shape": file(one(shape=[5])),
        "huge_shape": file(one(shape=[1 << 62, 1 << 62])),
        "empty_and_huge": file(one(shape=[0, 1 << 70], data_offsets=[0, 0])),
        "negative_shape": file(one(shape=[-1])),
        "shape_of_many": file(one(shape=[1] * 100_000)),
        "shape_of_text": file(one(shape="4")),
        "unknown_dtype": file(one(dtype="F128")),
        "dtype_of_list": file(one(dtype=[])),
        "deep": file(b'{"w":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
        "list": file(b'{"w":1'[:1] + b"}", b""),
        "number": file({"w": 3}),
        "names_of_lines": file({"a\nb\x00": one()["w"]}),
        "surrogate": file(b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        "no_text": file(b"{\xff\xfe}"),
        "nan": file(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'),
        "truncated": file(one(), bytes(3)),
    }
    for name, content in cases.items():
        yield f"{name}.safetensors", content


def _hdf5(folder: pathlib.Path) -> list[pathlib.Path]:
    import h5py

    paths = []

    def add(name: str) -> h5py.File:
        paths.append(folder / f"{name}.h5")
        return h5py.File(paths[-1], "w")

    with add("declares_6_gb") as file:
        file.create_dataset("conv1/kernel:0", (1_600_000_000,), "float32")
    with add("compressed") as file:
        file.create_dataset("conv1/kernel:0", data=np.zeros(10_000_000, "float32"), compression="gzip", shuffle=True)
    with add("in_itself") as file:
        file["a"] = file["/"]
    with add("fan") as file:
        group = file.create_group("g")
        for i in range(60):
            group[f"{i}"] = group
    with add("deep") as file:
        group = file
        for _ in range(1500):
            group = group.create_group("a")
    with add("another_file") as file:
        file.create_dataset("conv1/kernel:0", (4,), "uint8", external=[("/etc/hostname", 0, 4)])
    with add("virtual") as file:
        layout = h5py.VirtualLayout((4,), "float32")
        layout[:] = h5py.VirtualSource(str(folder / "compressed.h5"), "conv1/kernel:0", (10_000_000,))[:4]
        file.create_virtual_dataset("conv1/kernel:0", layout)
    with add("links") as file:
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.ExternalLink("/etc/passwd", "/")
    with add("text") as file:
        file["conv1/kernel:0"] = ["a" * 100]
    with add("no_numbers") as file:
        file.create_dataset("conv1/kernel:0", (2,), np.dtype([("a", "f4")]))
    rng, data = random.Random(1), (folder / "compressed.h5").read_bytes()
    for i in range(12):
        broken = bytearray(data[: rng.randrange(100, len(data))] if i % 2 else data)
        for _ in range(8):
            broken[rng.randrange(min(len(broken), 3000))] = rng.randrange(256)
        paths.append(folder / f"damaged_{i}.h5")
        paths[-1].write_bytes(broken)
    return paths


def _damaged(rng: random.Random) -> Files:
    for source in ("tiny.pth", "tiny_legacy.pth", "tiny.safetensors", "tiny.pkl", "tiny_protocol5.pkl"):
        data = (GOLDEN / source).read_bytes()
        for i in range(8):
            broken = bytearray(data)
            for position in rng.sample(range(len(data)), 1 + i):
                broken[position] = rng.randrange(256)
            yield f"damaged_{i}_{source}", bytes(broken)
        for share in (0.2, 0.6, 0.99):
            yield f"cut_{share}_{source}", data[: int(share * len(data))]
