"""Output of a program that outlives the reader of it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO


class SteadyOutput:
    """A text stream whose writes never fail: what cannot be written, to a closed pipe or a full disk, is left out.

    It writes without a buffer, which at the end of the program would fail once more.

    Args:
        stream: the stream it stands for; it must have a file descriptor.
        name: what the user calls it.
        other: told once that the stream is gone, in a line.
    """

    def __init__(self, stream: TextIO, name: str, other: TextIO):
        self._stream, self._name, self._other = stream, name, other
        self._file, self._told = stream.fileno(), False

    def write(self, text: str) -> int:
        """Write text; returns its length."""
        data = text.encode(self._stream.encoding or "utf-8", "backslashreplace")
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except OSError as error:
            if not self._told:
                self._told = True
                line = f"{self._name} can no longer be written to ({error.strerror}): going on without it\n"
                with contextlib.suppress(OSError, ValueError):
                    os.write(self._other.fileno(), line.encode())
        return len(text)

    def flush(self) -> None:
        """Nothing to do."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def steady_output() -> None:
    """Let nothing that becomes of stdout and stderr end this program; where they are files of the system."""
    if isinstance(sys.stdout, SteadyOutput):
        return
    try:
        sys.stdout.flush()
        streams = SteadyOutput(sys.stdout, "stdout", sys.stderr), SteadyOutput(sys.stderr, "stderr", sys.stdout)
    except (OSError, ValueError, AttributeError):  # closed, or no files
        return
    sys.stdout, sys.stderr = streams
