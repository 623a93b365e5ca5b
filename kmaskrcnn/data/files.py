"""Files on the local disk and behind tf.io.gfile (gs://, s3://, ram://, ...), with the errors of the local ones."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import stat
from collections.abc import Iterable, Iterator
from typing import IO

import tensorflow as tf

from kmaskrcnn.outputs import OutputError, Outputs


def is_remote(path: str) -> bool:
    """Whether a path names a file system of tf.io.gfile."""
    return "://" in path


@contextlib.contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Turn TensorFlow's file errors into FileNotFoundError and OSError."""
    try:
        yield
    except tf.errors.NotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except tf.errors.OpError as error:
        raise OSError(f"{path}: {error.message}") from None


@contextlib.contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """A file to read and seek in, closed at the end; raises FileNotFoundError or OSError."""
    if is_remote(path):
        with os_errors(path), tf.io.gfile.GFile(path, "rb") as file:
            yield file
    else:
        try:
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except ValueError as error:  # a zero byte, or half of a surrogate pair
            raise OSError(f"not a file name ({error})") from None
        if not regular:  # a pipe would be waited for, a device never ends
            raise OSError("not a regular file")
        with open(path, "rb") as file:
            yield file


def read_bytes(path: str, offset: int = 0, length: int = -1) -> bytes:
    """A file, or `length` bytes of it from `offset` on."""
    with open_binary(path) as file:
        if offset:
            file.seek(offset)
        data = file.read(length) if length >= 0 else file.read()
    if length >= 0 and len(data) != length:
        raise OSError(f"{path}: ends before byte {offset + length}")
    return data


def read_text(path: str) -> str:
    """A UTF-8 text file; raises also UnicodeDecodeError."""
    return read_bytes(path).decode("utf-8-sig")


def write_bytes(path: str, data: bytes) -> None:
    """Write a file anew."""
    with os_errors(path), tf.io.gfile.GFile(path, "wb") as file:
        file.write(data)


def write_text(path: str, text: str) -> None:
    """Write a UTF-8 text file anew."""
    write_bytes(path, text.encode())


class RemoteOutputs(Outputs):
    """Outputs behind tf.io.gfile, where nothing that exists is ever replaced."""

    def _open(self) -> None:
        """Nothing is read."""

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[str]:
        """The path to write to."""
        path = self._claim(name)
        make_folder(os.path.dirname(path))
        yield path

    def write_bytes(self, name: str, data: bytes) -> str:
        """Write a file; returns its path."""
        with self.file(name) as path:
            write_bytes(path, data)
        return path

    def _check(self, name: str) -> None:
        if exists(self.path(name)):
            raise OutputError(f"{self.path(name)}: already exists; choose another output, or remove it")


def open_outputs(folder: str, program: str, read: Iterable[str] = ()) -> Outputs:
    """As `Outputs`, local or behind tf.io.gfile."""
    return (RemoteOutputs if is_remote(folder) else Outputs)(folder, program, read)


def join(folder: str, name: str) -> str:
    """`name` in a folder, or `name` itself where it says where it is, also behind tf.io.gfile."""
    return name if is_remote(name) else os.path.join(folder, name)


def normal_path(path: str) -> str:
    """A path without `.`, `..` and doubled slashes, to compare; a remote one as it is."""
    return path if is_remote(path) else os.path.normpath(path)


def size(path: str) -> int:
    """Bytes of a file."""
    with os_errors(path):
        return tf.io.gfile.stat(path).length


def is_folder(path: str) -> bool:
    """Whether there is a folder of this name."""
    return tf.io.gfile.isdir(path) if is_remote(path) else os.path.isdir(path)


def is_file(path: str) -> bool:
    """Whether there is something of this name that is no folder."""
    if is_remote(path):
        return tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path)
    return os.path.exists(path) and not os.path.isdir(path)


def exists(path: str) -> bool:
    """Whether there is a file or folder of this name."""
    return tf.io.gfile.exists(path) if is_remote(path) else os.path.exists(path)


def make_folder(path: str) -> None:
    """Make a folder and those above it, if need be."""
    with os_errors(path):
        tf.io.gfile.makedirs(path)


def names_in(folder: str) -> list[str]:
    """Names in a folder in order, hidden ones left out; those of folders end without a slash."""
    with os_errors(folder):
        names = tf.io.gfile.listdir(folder) if is_remote(folder) else os.listdir(folder)
    return sorted(name.rstrip("/") for name in names if not name.startswith("."))


def matching(folder: str, *patterns: str) -> list[str]:
    """Names in a folder that match one of the patterns, whatever their case, in order."""
    return [n for n in names_in(folder) if any(fnmatch.fnmatch(n.lower(), p) for p in patterns)]


IMAGE_PATTERNS = ("*.jpg", "*.jpeg", "*.png", "*.bmp", "*.gif", "*.tif", "*.tiff", "*.webp")


def stem(name: str) -> str:
    """The name of a file without folder and ending."""
    return os.path.splitext(os.path.basename(name))[0]
