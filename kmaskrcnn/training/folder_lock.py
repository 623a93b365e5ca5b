"""Who trains in a model folder: one process at a time."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import socket
from pathlib import Path

from kmaskrcnn.errors import LOCK, TrainingError


class FolderLock:
    """Keeps a second training out of a folder, by a lock of the operating system that ends with the process.

    The file `training.lock` says who holds it. A process that was killed leaves the file and not the lock, so the next
    one takes it over. Within a process a folder can be locked again: its trainers follow each other.

    Args:
        folder: an existing folder.

    Raises:
        TrainingError: another process holds it.
        OSError: the file cannot be written.
    """

    def __init__(self, folder: Path):
        self.path = folder.resolve() / LOCK
        self._file: int | None = _held.get(self.path)
        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(os.read(file, 1000))
                os.close(file)
                raise TrainingError(
                    f"{folder} is in use: {holder} trains there; wait until it ends, stop it, or choose another folder"
                ) from None
            except OSError:  # a file system without locks
                pass
            # The one before may have removed the file after it was opened here.
            if os.path.exists(self.path) and os.path.samestat(os.fstat(file), os.stat(self.path)):
                self._file = _held[self.path] = file
            else:
                os.close(file)
        since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        text = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}) + "\n"
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)

    def release(self) -> None:
        """Let others in; nothing where it was done before."""
        if self._file is not None and _held.pop(self.path, None) is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
        self._file = None


# Open files by the path of the lock, of this process.
_held: dict[Path, int] = {}


def _holder(content: bytes) -> str:
    try:
        told = json.loads(content)
        return f"process {told['pid']} on {told['host']} (since {told['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
