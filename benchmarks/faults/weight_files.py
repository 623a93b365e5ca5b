"""Weight files made to harm, or damaged at random, through the importers, each in a process of its own.

None may end by a signal or a traceback, take 2 GB of memory or 20 seconds of processor time, or say anything but one
line that names it. What they are is in tests/weights/hostile.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from benchmarks.faults import Row, tally

BYTES, SECONDS = 2 << 30, 20


def run(count: int, folder: Path) -> list[Row]:
    """The first `count` of the hostile files."""
    import kmaskrcnn.weights.convert  # noqa: F401  once, before the forks
    from tests.weight_files import hostile

    paths = hostile.write_all(folder)[:count]
    wrong = [line for line in map(check, paths) if line]
    right = "each ended in one line that names it, under 2 GB and 20 s"
    return [tally("hostile weight files (.pth, .pkl, .npz, .safetensors, .h5)", wrong, len(paths), right)]


def check(path: Path) -> str:
    """Import one file in a fork; what was wrong with its end, or an empty string."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _import(path, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read().decode(errors="replace")
    _, status, usage = os.wait4(child, 0)
    if os.WIFSIGNALED(status):
        return f"{path.name}: {signal.Signals(os.WTERMSIG(status)).name}"
    if answer.startswith("Traceback") or "\n" in answer or path.name not in answer or len(answer) > 1000:
        return f"{path.name}: said {answer[:300]!r}"
    if usage.ru_maxrss * 1024 > BYTES or usage.ru_utime + usage.ru_stime > SECONDS:
        return f"{path.name}: {usage.ru_maxrss >> 10} MB, {usage.ru_utime + usage.ru_stime:.1f} s"
    return ""


def _import(path: Path, writer: int) -> None:
    from kmaskrcnn.errors import WeightsError
    from kmaskrcnn.weights.convert import import_file

    signal.alarm(10 * SECONDS)  # for one that waits
    with contextlib.suppress(BaseException), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            import_file(path)
            answer = f"{path.name}: imported"
        except WeightsError as error:
            answer = str(error)
        except BaseException as error:
            answer = f"Traceback {type(error).__name__}: {error}"
        os.write(writer, answer.encode(errors="replace")[:4000])
    os._exit(0)
