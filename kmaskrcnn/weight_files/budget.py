"""How much memory the reading of a weight file may take."""

from __future__ import annotations

import os
import stat

from kmaskrcnn.errors import WeightsError

_TIMES_THE_FILE = 8  # pruned weights in a compressed .npz are some times smaller than in memory
_SLACK = 1 << 20


class Budget:
    """The bytes of memory that the tensors of one file may take: a small multiple of the file's size.

    A few bytes can declare any number of elements: by shapes, strides of 0, compression, or names for one object.

    Args:
        path: the file.

    Attributes:
        path, size: the file and its size in bytes.

    Raises:
        WeightsError: there is none, or it is a folder, a pipe or a device, which may never end.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise WeightsError(f"{self.path}: {error.strerror or error}") from None
        except ValueError as error:  # a NUL in the path
            raise WeightsError(f"{self.path!r}: {error}") from None
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{self.path}: is not a file")
        self.size = size = status.st_size
        self._left = _TIMES_THE_FILE * size + _SLACK

    def take(self, count: int, what: str) -> None:
        """Count bytes of memory that `what` is about to take; raises WeightsError where there are too many."""
        self._left -= count
        if self._left < 0:
            raise WeightsError(
                f"{self.path}: refused at {what}, its content would take more than {_TIMES_THE_FILE} times the "
                f"{self.size} bytes of the file"
            )
