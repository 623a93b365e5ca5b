"""What a program writes: never over a file that was read, nor over one that the program did not write itself.

Every program writes through `Outputs`. It notes each file in OUTPUTS_LIST beside the outputs, with a hash, so that a
later run of the same program may replace it as long as nobody has changed it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from kmaskrcnn.config import ConfigError

# A line of JSON for each file written: its name from the list's folder, the program, size and hash.
OUTPUTS_LIST = ".kmaskrcnn-outputs.jsonl"

_counter = itertools.count()


class OutputError(ConfigError):
    """An output would replace a file that it must not replace. The message names the file."""


class Outputs:
    """The output files of one run of a program.

    A file appears whole or not at all.

    Args:
        folder: of the outputs; made when the first of them is written. `~` is the home folder.
        program: name of the program; it may replace what it wrote in an earlier run.
        read: files, and folders of files, that were or will be read, whichever program wrote them.

    Raises:
        OutputError: the folder is a file, or an address such as gs://...
    """

    def __init__(self, folder: str | os.PathLike, program: str, read: Iterable[str | os.PathLike] = ()):
        self.folder, self.program = os.path.expanduser(os.fspath(folder)) or ".", program
        self._read = [os.fspath(path) for path in read]
        self._names: set[str] = set()
        self._lock = threading.Lock()
        self._hashes: dict[str, set[str]] = {}
        self._open()

    def _open(self) -> None:
        if "://" in self.folder:
            raise OutputError(f"{self.folder}: is an address, and outputs need a local folder")
        if os.path.lexists(self.folder) and not os.path.isdir(self.folder):
            raise OutputError(f"{self.folder}: is a file, and outputs need a folder")
        for entry in _entries(self.folder):
            if entry["by"] == self.program:
                self._hashes.setdefault(entry["file"], set()).add(entry["blake2b"])

    def path(self, name: str) -> str:
        """Where the output `name`, which may hold folders, lies."""
        return os.path.join(self.folder, name)

    def check(self, names: Iterable[str]) -> None:
        """See before the work that these outputs may be written.

        Raises:
            OutputError: one would replace a file that it must not replace, or two of them are the same file.
        """
        seen: set[str] = set()
        for name in names:
            if _key(name) in seen:
                raise OutputError(f"{self.path(name)}: two outputs share this name")
            seen.add(_key(name))
            self._check(name)

    @contextlib.contextmanager
    def file(self, name: str) -> Iterator[str]:
        """A path to write to, with the suffix of `name`; the file gets its name at the end of the `with`.

        Raises:
            OutputError: the file must not be written.
        """
        path = self._claim(name)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        suffix = os.path.splitext(path)[1]
        temporary = os.path.join(os.path.dirname(path), f".part-{os.getpid()}-{next(_counter)}{suffix}")
        try:
            yield temporary
            if os.path.exists(temporary):  # a video without frames has no file
                self._note(name, temporary)
                os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def write_text(self, name: str, text: str) -> str:
        """Write a UTF-8 text file; returns its path."""
        return self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> str:
        """Write a file; returns its path."""
        with self.file(name) as path, open(path, "wb") as file:
            file.write(data)
        return self.path(name)

    def set_aside(self, name: str) -> str:
        """Rename an output of an earlier run to NAME-1, NAME-2 ..., the first that is free; returns its new path.

        Raises:
            OutputError: the file is no such output.
        """
        self._check(name)
        stem, suffix = os.path.splitext(self.path(name))
        free = next(path for n in itertools.count(1) if not os.path.lexists(path := f"{stem}-{n}{suffix}"))
        os.rename(self.path(name), free)
        return free

    def _claim(self, name: str) -> str:
        """Take a name for this run; returns its path."""
        with self._lock:
            if _key(name) in self._names:
                raise OutputError(f"{self.path(name)}: two outputs share this name")
            self._names.add(_key(name))
        self._check(name)
        return self.path(name)

    def _check(self, name: str) -> None:
        path = self.path(name)
        if not os.path.lexists(path):
            parent = os.path.dirname(path)
            while parent and not os.path.lexists(parent):
                parent = os.path.dirname(parent)
            if parent and not os.path.isdir(parent):
                raise OutputError(f"{path}: cannot be written, since {parent} is a file")
            return
        if os.path.isdir(path):
            raise OutputError(f"{path}: is a folder; choose another output")
        if self._was_read(path):
            raise OutputError(f"{path}: is an input, which an output never replaces; choose another output")
        if _hash(path) not in self._hashes.get(name, ()):
            raise OutputError(
                f"{path}: already exists, and {self.program} did not write it or it has changed since; "
                "choose another output, or move it away"
            )

    def _was_read(self, path: str) -> bool:
        folder = os.path.realpath(os.path.dirname(path) or ".")
        for read in self._read:
            if os.path.isdir(read) and os.path.realpath(read) == folder:
                return True
            if os.path.exists(read) and os.path.exists(path) and os.path.samefile(read, path):
                return True
        return False

    def _note(self, name: str, written: str) -> None:
        """Note a file before it gets its name, so that a run that is killed in between can be repeated."""
        digest = _hash(written)
        entry = {"file": name, "by": self.program, "size": os.path.getsize(written), "blake2b": digest}
        with self._lock:
            known = self._hashes.setdefault(name, set())
            if digest not in known:
                known.add(digest)
                with open(os.path.join(self.folder, OUTPUTS_LIST), "a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")


def split_file(path: str | os.PathLike) -> tuple[str, str]:
    """The folder and the name of an output that is one file; raises OutputError where it is a folder."""
    folder, name = os.path.split(os.fspath(path))
    if not name:
        raise OutputError(f"{path}: is a folder; give the name of a file")
    return folder or ".", name


def images_written(folder: str, programs: Sequence[str] = ("predict", "evaluate")) -> set[str]:
    """Names in a folder, as its list has them, of the files that earlier runs of these programs left there."""
    names = set()
    for entry in _entries(folder):
        path = os.path.join(folder, entry["file"])
        if entry["by"] in programs and os.path.isfile(path) and os.path.getsize(path) == entry.get("size"):
            names.add(entry["file"])
    return names


def output_names(paths: Sequence[str], roots: Sequence[str] | None = None) -> list[str]:
    """A name for the outputs of each input, without suffix: `a` for `a.png`, `cam1/1` where there is a `cam2/1.png`.

    Args:
        paths: the inputs, which differ.
        roots: of each, the folder whose structure below it is kept; default: the names are those of the files alone.

    Returns:
        Names that differ also where upper and lower case are one, where `/` becomes `__`, and with `_masks` at the
        end of one of them.
    """
    stems, kept = [], []
    for path, root in zip(paths, roots or [os.path.dirname(path) for path in paths], strict=True):
        below = os.path.relpath(path, root or ".")
        stems.append(os.path.splitext(os.path.abspath(path))[0].replace(os.sep, "/"))
        kept.append(0 if below.startswith("..") else below.count(os.sep))
    groups: dict[str, list[int]] = {}
    for index, stem in enumerate(stems):
        groups.setdefault(_key(stem), []).append(index)
    for group in groups.values():
        if len(group) > 1:  # a.png and a.jpg become a_png and a_jpg
            for index in group:
                stems[index] += "_" + os.path.splitext(paths[index])[1][1:]
    parts = [stem.strip("/").split("/") for stem in stems]
    while True:
        names = ["/".join(part[-1 - count :]) for part, count in zip(parts, kept, strict=True)]
        groups = {}
        for index, name in enumerate(names):
            groups.setdefault(_key(name), []).append(index)
        alike = [g for g in groups.values() if len({_key("/".join(parts[i])) for i in g}) > 1]
        longer = [i for group in alike for i in group if kept[i] + 1 < len(parts[i])]
        if not longer:
            break
        for index in longer:
            kept[index] += 1
    taken: set[str] = set()
    unique = []
    for name in names:
        number, candidate = 1, name
        while {_key(candidate), _key(candidate + "_masks")} & taken:
            number += 1
            candidate = f"{name}_{number}"
        taken |= {_key(candidate), _key(candidate + "_masks")}
        unique.append(candidate)
    return unique


def _key(name: str) -> str:
    """What is one name for file systems that know neither case nor forms of Unicode, and in flat folders."""
    return unicodedata.normalize("NFC", name).casefold().replace("/", "__")


def _entries(folder: str) -> Iterator[dict]:
    """The lines of a folder's list that can be read."""
    try:
        with open(os.path.join(folder, OUTPUTS_LIST), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            texts = [entry.get(key) for key in ("file", "by", "blake2b")] if isinstance(entry, dict) else [None]
            if all(isinstance(text, str) for text in texts):
                yield entry


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
