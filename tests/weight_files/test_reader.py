"""The weight-file reader against files written by PyTorch, safetensors and numpy, and against hostile ones."""

import argparse
import collections
import contextlib
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from kmaskrcnn.weights import WeightsError, read_tensors, write_tensors
from kmaskrcnn.weights.convert import detect_format
from kmaskrcnn.weights.matterport import read_matterport
from tests.weight_files import hostile

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
BASE = np.arange(24, dtype="float32") / 8 - 1
EXPECTED = {
    "float32": BASE,
    "float16": BASE.astype("float16"),
    "bfloat16": BASE,  # the values need few enough bits
    "float64": BASE.astype("float64"),
    "int64": np.arange(-3, 3),
    "uint8": np.arange(5, dtype="uint8"),
    "bool": np.array([True, False, True]),
    "scalar": np.float32(7.5),
    "empty": np.zeros((0, 3), "float32"),
    "transposed": BASE.reshape(4, 6).T,
    "channels_last": BASE.reshape(1, 2, 3, 4),
    "shared_all": BASE,
    "shared_part": BASE[5:20:3],
    "expanded": np.repeat(BASE[2], 4),
    "parameter": BASE,
}


@pytest.mark.parametrize("name", ["tiny.pth", "tiny_legacy.pth", "tiny.safetensors", "tiny.pkl", "tiny_protocol5.pkl"])
def test_reads_what_the_original_libraries_wrote(name):
    tensors = read_tensors(GOLDEN / name)
    expected = {key: value for key, value in EXPECTED.items() if not (key == "bfloat16" and name.endswith("pkl"))}
    assert set(tensors) == set(expected)
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype, key
        np.testing.assert_array_equal(tensors[key], value, strict=True, err_msg=key)


def test_npz_and_own_safetensors_round_trip(tmp_path):
    arrays = {"a.weight": BASE.reshape(2, 3, 4), "b": np.arange(3)}
    np.savez(tmp_path / "w.npz", **arrays)
    write_tensors(tmp_path / "w.safetensors", arrays)
    for file in ("w.npz", "w.safetensors"):
        for key, value in read_tensors(tmp_path / file).items():
            np.testing.assert_array_equal(value, arrays[key], strict=True)


def test_data_parallel_prefix_is_removed(tmp_path):
    write_tensors(tmp_path / "w.safetensors", {"module.a": BASE, "module.b": BASE})
    assert set(read_tensors(tmp_path / "w.safetensors")) == {"a", "b"}


class _Reduce:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _torch_zip(path: pathlib.Path, data: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize("form", ["zip", "pickle", "legacy"])
@pytest.mark.parametrize("call", ["os.system", "builtins.exec", "builtins.eval"])
def test_hostile_pickle_runs_nothing(tmp_path, form, call):
    marker = tmp_path / "ran"
    payload = {
        "os.system": _Reduce(os.system, f"touch {marker}"),
        "builtins.exec": _Reduce(exec, f"open({str(marker)!r}, 'w')"),
        "builtins.eval": _Reduce(eval, f"open({str(marker)!r}, 'w')"),
    }[call]
    data = pickle.dumps({"state_dict": payload}, protocol=2)
    path = tmp_path / "hostile.pth"
    if form == "zip":
        _torch_zip(path, data)
    elif form == "pickle":
        path.write_bytes(data)
    else:
        head = [pickle.dumps(v, protocol=2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        path.write_bytes(b"".join(head) + data)
    with pytest.raises(WeightsError, match=r"hostile\.pth: refused, its pickle names \w+\.\w+"):
        read_tensors(path)
    assert not marker.exists()
    # The payload does work where it is trusted, so the check above could have failed.
    pickle.loads(data)
    assert marker.exists()


def test_pickle_cannot_alter_the_reader(tmp_path):
    # GLOBAL torch FloatStorage, EMPTY_DICT {dtype: "int8"}, BUILD: tries to set an attribute of the table's entry.
    path = tmp_path / "alter.pkl"
    path.write_bytes(b"\x80\x02ctorch\nFloatStorage\n}X\x05\x00\x00\x00dtypeX\x04\x00\x00\x00int8sb.")
    with pytest.raises(WeightsError, match="damaged"):
        read_tensors(path)
    np.testing.assert_array_equal(read_tensors(GOLDEN / "tiny.pth")["float32"], BASE)


@pytest.mark.parametrize("name", ["tiny.pth", "tiny_legacy.pth", "tiny.safetensors", "tiny.pkl"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.995])
def test_truncated_file_is_one_clear_error(tmp_path, name, share):
    data = (GOLDEN / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize("name", ["tiny.pth", "tiny_legacy.pth", "tiny.safetensors", "tiny.pkl"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path, name):
    data = bytearray((GOLDEN / name).read_bytes())
    random = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(data)
        for position in random.integers(0, len(data), 3):
            broken[position] = random.integers(256)
        (tmp_path / name).write_bytes(broken)
        with contextlib.suppress(WeightsError):
            read_tensors(tmp_path / name)


def test_tensor_past_its_storage_is_refused(tmp_path):
    with zipfile.ZipFile(GOLDEN / "tiny.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("data.pkl"))
    # The shape (6, 4) of the transposed tensor becomes (200, 4).
    assert entries[name].count(b"K\x06K\x04\x86") == 1
    entries[name] = entries[name].replace(b"K\x06K\x04\x86", b"K\xc8K\x04\x86")
    with zipfile.ZipFile(tmp_path / "past.pth", "w") as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    with pytest.raises(WeightsError, match=r"transposed: damaged tensor .*beyond its storage"):
        read_tensors(tmp_path / "past.pth")


def test_object_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(WeightsError, match=r"objects\.npz: a\.npy"):
        read_tensors(tmp_path / "objects.npz")
    stream = io.BytesIO()
    pickle.dump({"a": np.array([1, "x"], dtype=object)}, stream)
    (tmp_path / "objects.pkl").write_bytes(stream.getvalue())
    with pytest.raises(WeightsError, match=r"objects\.pkl: a: damaged tensor"):
        read_tensors(tmp_path / "objects.pkl")


def test_files_of_other_kinds(tmp_path):
    with pytest.raises(WeightsError, match="No such file"):
        read_tensors(tmp_path / "absent.pth")
    (tmp_path / "page.pth").write_text("<html>404 Not Found</html>")
    with pytest.raises(WeightsError, match="not a PyTorch"):
        read_tensors(tmp_path / "page.pth")
    (tmp_path / "empty.pkl").write_bytes(pickle.dumps({"epoch": 3}))
    with pytest.raises(WeightsError, match="no tensors"):
        read_tensors(tmp_path / "empty.pkl")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(WeightsError, match=r"holds readme\.txt"):
        read_tensors(tmp_path / "other.zip")


# Small files that make much: each of these took minutes or gigabytes before it was bounded.


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lists.pkl", lambda: hostile.shared_lists(), "holds no tensors"),
        ("stride.pth", lambda: hostile.stride_zero(), r"refused at a tensor, .* 8 times the \d+ bytes of the file"),
        ("zeros.pth", lambda: hostile.deflated_storage(1 << 22), r"refused at storage 0, .* 8 times"),
        (
            "declares.npz",
            lambda: dict(hostile._npz())["declares_6_gb.npz"],
            r"w\.npy: damaged array .*cannot hold",
        ),
        ("bytes.pkl", lambda: dict(hostile._pickles())["bytes_of_a_number.pkl"], "a: damaged tensor"),
        ("key.pkl", lambda: dict(hostile._pickles())["doubled_key.pkl"], "a tuple as a key"),
        ("deep.safetensors", lambda: dict(hostile._safetensors())["deep.safetensors"], "recursion"),
        ("same.safetensors", lambda: dict(hostile._safetensors())["same_bytes.safetensors"], "refused at w10, "),
        ("buffer.pkl", lambda: dict(hostile._pickles())["many_arrays_of_one_buffer.pkl"], "refused at an array"),
    ],
)
def test_small_files_that_make_much_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content())
    with pytest.raises(WeightsError, match=rf"{name}: .*{message}".replace(".pkl", r"\.pkl")) as caught:
        read_tensors(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_hdf5_that_declares_or_nests_much_is_one_line(tmp_path):
    for path in hostile._hdf5(tmp_path):
        try:
            read_matterport(path)
        except WeightsError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    with pytest.raises(WeightsError, match=r"refused at /conv1/kernel:0, .* 8 times"):
        read_matterport(tmp_path / "declares_6_gb.h5")
    with pytest.raises(WeightsError, match="lies in another file"):
        read_matterport(tmp_path / "another_file.h5")


def test_pipes_and_odd_paths_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for read in (read_tensors, read_matterport, detect_format):
        with pytest.raises(WeightsError, match=r"pipe\.pth: is not a file"):
            read(tmp_path / "pipe.pth")
        with pytest.raises(WeightsError, match=r"\\x00.*null"):
            read("a\0b.pth")


def test_what_training_programs_save_beside_the_weights_is_passed_over(tmp_path):
    """As torchvision's references do: args are a Namespace, the schedule counts milestones in a Counter."""
    checkpoint = {
        "model": collections.OrderedDict({"a.weight": BASE}),
        "optimizer": {"state": {0: {"momentum_buffer": BASE}}, "param_groups": [{"lr": 0.02, "params": [0]}]},
        "lr_scheduler": {"milestones": collections.Counter({16: 1, 22: 1}), "_last_lr": [0.02]},
        "args": argparse.Namespace(device="cuda", output=pathlib.Path("a"), aspect=collections.defaultdict(list)),
        "epoch": 25,
    }
    for protocol in (2, 4, 5):
        (tmp_path / "c.pkl").write_bytes(pickle.dumps(checkpoint, protocol=protocol))
        tensors = read_tensors(tmp_path / "c.pkl")
        assert list(tensors) == ["a.weight"]
        np.testing.assert_array_equal(tensors["a.weight"], BASE, strict=True)


def test_one_tensor_under_two_names_is_one_array(tmp_path):
    (tmp_path / "tied.pkl").write_bytes(pickle.dumps({"a": BASE, "b": BASE}))
    tensors = read_tensors(tmp_path / "tied.pkl")
    assert tensors["a"] is tensors["b"]
