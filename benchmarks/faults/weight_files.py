"""Hostile weight files through the importers: python -m benchmarks.faults.weight_files [--seed=N].

Each file of tests/weights/hostile.py is imported in a process of its own. None may end by a signal or a traceback,
take 2 GB of memory or 20 seconds of processor time, or print anything but one line that names it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import signal
import sys
import tempfile

BYTES, SECONDS = 2 << 30, 20


def main() -> int:
    """Print a line for each fault and one with the counts; exit code 1 where there is a fault."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tests.weight_files import hostile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the damaged bytes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = hostile.write_all(pathlib.Path(folder), arguments.seed)
        faults = [line for line in map(check, paths) if line]
    for line in faults:
        print(line)
    print(f"{len(paths)} hostile weight files: {len(paths) - len(faults)} ended in one line, {len(faults)} did not")
    return 1 if faults else 0


def check(path: pathlib.Path) -> str:
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


def _import(path: pathlib.Path, writer: int) -> None:
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


if __name__ == "__main__":
    import kmaskrcnn.weights.convert  # noqa: F401  once, before the forks

    sys.exit(main())
