"""Hostile annotation files of every form: read with and without skipping bad records, and shown to the doctor.

Each must load or be refused by DataError in words that name it, in 20 s and 2 GB, without a signal or a traceback.
"""

from __future__ import annotations

import collections
import json
import queue
import resource
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

from benchmarks.faults import Row, tally
from benchmarks.faults.hostile_files import make

SECONDS, BYTES = 20.0, 2 * 2**30
# TensorFlow's own address space is about 3 GB; what asks for more than this gets a MemoryError in place of the machine.
_ADDRESS_SPACE = 9 * 2**30
_WORKERS = 2


def run(count: int, folder: Path) -> list[Row]:
    """Try `count` files; two processes read them, and one that dies is named by the file it read."""
    numbers: queue.Queue[int] = queue.Queue()
    for number in range(count):
        numbers.put(number)
    results: list[dict] = []
    threads = [threading.Thread(target=_feed, args=(numbers, results, folder)) for _ in range(_WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wrong = [
        f"file {r['number']} ({r['what']}): {r['wrong']}"
        for r in sorted(results, key=lambda r: r["number"])
        if r["wrong"]
    ]
    outcomes = collections.Counter(r["outcome"] for r in results if not r["wrong"])
    most = max(r.get("seconds", 0.0) for r in results), max(r.get("bytes", 0) for r in results) / 1e6
    counts = f"{outcomes['refused']} refused by name, {outcomes['loaded']} loaded"
    right = f"{counts}; at most {most[0]:.1f} s and {most[1]:.0f} MB"
    for line in wrong:
        print(line)
    return [tally("hostile annotation files", wrong, len(results), right)]


def _feed(numbers: queue.Queue[int], results: list[dict], folder: Path) -> None:
    """Let a process read one file after the other; a new one where it dies or takes too long."""
    worker = None
    while True:
        try:
            number = numbers.get_nowait()
        except queue.Empty:
            break
        if worker is None:
            command = [sys.executable, "-m", "benchmarks.faults.hostile_annotations", str(folder)]
            worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            worker.stdout.readline()  # imports are done
        worker.stdin.write(f"{number}\n")
        worker.stdin.flush()
        # A machine under load may take several times as long; only a file that never ends is cut off here.
        timer = threading.Timer(10 * SECONDS, worker.kill)
        timer.start()
        line = worker.stdout.readline()
        timer.cancel()
        if line.strip():
            results.append(json.loads(line))
        else:
            code = worker.wait()
            what = make(folder / f"{number}_again", number)[1]
            results.append({"number": number, "what": what, "wrong": f"the process ended with {code}"})
            worker = None
    if worker is not None:
        worker.stdin.close()
        worker.wait()


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def read_one(folder: Path, number: int) -> dict:
    """In a worker: read a file in every way and judge what came of it."""
    from kmaskrcnn.data import DataError, load_dataset
    from kmaskrcnn.data.doctor.examine import examine
    from kmaskrcnn.data.readers import read_raw

    path, what = make(folder / str(number), number)
    result = {"number": number, "what": what, "wrong": "", "outcome": "loaded"}
    Path("/proc/self/clear_refs").write_text("5")
    began = time.process_time(), time.monotonic()
    for step in ("load", "skip", "doctor"):
        try:
            if step == "doctor":
                examine(read_raw(path))
            else:
                dataset = load_dataset(path, on_bad_record="error" if step == "load" else "skip")
                for index in range(min(len(dataset), 3)):
                    dataset.instances(index, 28)
                dataset.image(0)
                str(dataset.coco_dict)
        except DataError as error:
            result["outcome"] = "refused" if step == "load" else result["outcome"]
            first = str(error).splitlines()[0]
            if str(folder / str(number)) not in first or len(first) > 2000:
                result["wrong"] = f"{step}: does not name it: {first[:300]}"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{step}: {type(error).__name__}: {str(error)[:200]} ({place.filename}:{place.lineno})"
            result["wrong"] = text
    # Processor time, so that other work on the machine does not count; waiting for ever shows in the other.
    seconds, waited = time.process_time() - began[0], time.monotonic() - began[1]
    result |= {"seconds": seconds, "bytes": _peak_bytes()}
    if seconds > SECONDS or waited > 5 * SECONDS:
        result["wrong"] = result["wrong"] or f"took {seconds:.0f} s ({waited:.0f} s)"
    if result["bytes"] > BYTES:
        result["wrong"] = result["wrong"] or f"took {result['bytes'] / 1e9:.1f} GB"
    return result


def _work(folder: Path) -> None:
    out = sys.stdout
    sys.stdout = sys.stderr
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    from kmaskrcnn.data import load_dataset  # noqa: F401
    from kmaskrcnn.data.doctor.examine import examine  # noqa: F401

    print("ready", file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(read_one(folder, int(line))), file=out, flush=True)


if __name__ == "__main__":
    _work(Path(sys.argv[1]))
