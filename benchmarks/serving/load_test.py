"""Load and faults on `kmaskrcnn serve`, on loopback: python -m benchmarks.serving.load_test --table=FILE.

A small MobileNetV2 model with random weights is exported and served. Locust sends photographs of mixed sizes; every
answer must be bit for bit one that the SavedModel gives for the photograph in a batch that the server may have made.
Beside the faults requests are sent by `RestClient`, which tries again what it may. Exit code 1 where an answer was
wrong or missing.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from kmaskrcnn.export.client import RestClient, ServerBusyError, ServingError
from kmaskrcnn.results.labels import Labels

SIZES = [(480, 640), (640, 480), (300, 400), (1080, 1920)]
LABELS = Labels(("a", "b", "c"), (1, 2, 3))
MAX_BATCH = 4


def export(folder: Path) -> Path:
    """A small model; returns the folder with its version 1."""
    from benchmarks.serving_versions import SETTINGS
    from kmaskrcnn.config import Config
    from kmaskrcnn.export.saved_model import export_saved_model
    from kmaskrcnn.model_folder import build_model

    config = Config().replace(**SETTINGS, min_size=192, max_size=256)
    export_saved_model(build_model(config), config, LABELS, folder / "small")
    return folder / "small"


def photographs() -> list[bytes]:
    """JPEG files of mixed sizes."""
    from tests.export.images import encode, picture

    return [encode(picture(*size, seed), "JPEG", quality=90) for seed, size in enumerate(SIZES)]


def expected_hashes(version: Path, images: list[bytes], most: int) -> list[list[str]]:
    """For each image the hashes of its answers, alone and in every batch that can have been made."""
    from kmaskrcnn.serving import rest
    from kmaskrcnn.serving.runner import SavedModelRunner, joined_run

    runner = SavedModelRunner(str(version), 2)
    found: list[set[str]] = [set() for _ in images]
    # What a batch is padded to depends on who is in it, and the last bit also on the order.
    for count in range(1, most + 1):
        for batch in itertools.product(range(len(images)), repeat=count):
            rows = joined_run(runner, [[images[i]] for i in batch])
            for i, outputs in zip(batch, rows, strict=True):
                found[i].add(hashlib.sha256(rest.format_answer(outputs, rest.AnswerForm())).hexdigest())
    return [sorted(hashes) for hashes in found]


def alone(function: Callable, *arguments: object) -> Any:
    """Call a function in a process of its own: TensorFlow's threads cannot be set once it has run."""
    with futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Server:
    """`kmaskrcnn serve` as a process."""

    def __init__(self, model: Path, log: Path, **settings: object):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url, self.name = f"http://127.0.0.1:{self.port}", model.name
        flags = [f"--{key}={value}" for key, value in settings.items()]
        command = [sys.executable, "-m", "kmaskrcnn", "serve", f"--model={model}", f"--port={self.port}", *flags]
        self._log = log.open("w")
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, start_new_session=True)
        for _ in range(3000):
            try:
                if urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200:
                    return
            except OSError:
                threading.Event().wait(0.1)
        raise RuntimeError(f"the server does not start: {log.read_text()[-2000:]}")

    def processes(self) -> list[int]:
        """Ids of the server and all below it."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                text = path.read_text()
            except OSError:
                continue
            parents[int(path.parent.name)] = int(text.rpartition(")")[2].split()[1])
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def megabytes(self) -> float:
        """Resident memory of all of them."""
        total = 0
        for pid in self.processes():
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except OSError:
                continue
        return total * os.sysconf("SC_PAGE_SIZE") / 1e6

    def worker(self) -> int:
        """The process with the model: the largest below the server."""
        sizes = {}
        for pid in self.processes()[1:]:
            sizes[int(Path(f"/proc/{pid}/statm").read_text().split()[1])] = pid
        return sizes[max(sizes)]

    def stop(self) -> None:
        """End it."""
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        self._log.close()


def load(server: Server, work: Path, clients: int, requests: int) -> dict[str, float]:
    """One run of locust; returns its counts, times in milliseconds and memory after 1,000 requests and at the end."""
    (work / "warm").unlink(missing_ok=True)
    environment = os.environ | {"LOAD_TEST_WORK": str(work), "LOAD_TEST_REQUESTS": str(requests)}
    environment["LOAD_TEST_MODEL"] = server.name
    command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("locustfile.py")), "--headless"]
    command += [f"--host={server.url}", f"--users={clients}", f"--spawn-rate={clients}", "--only-summary"]
    command += ["--run-time=3h", "--stop-timeout=60"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    warm, before = 0.0, cores()
    while process.poll() is None:
        threading.Event().wait(0.1)
        if not warm and (work / "warm").exists():
            warm = server.megabytes()
    busy, all_time = (now - then for now, then in zip(cores(), before, strict=True))
    counts = json.loads((work / "counts.json").read_text())
    return counts | {"warm": warm, "end": server.megabytes(), "busy": 100 * busy / all_time}


def cores() -> tuple[int, int]:
    """Ticks that the machine's cores were busy, and all ticks, since it started."""
    ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def faults(server: Server, images: list[bytes], expected: list[set], act, requests: int, clients: int) -> Counter:
    """Send requests from several clients, act once a third of them is done, count what became of them."""
    counts: Counter = Counter()
    lock, acted = threading.Lock(), threading.Event()

    def one(number: int) -> None:
        index = number % len(images)
        client = local.__dict__.setdefault("client", RestClient(server.url, server.name, LABELS, retries=20))
        try:
            outcome = "right" if key(client.predict(images[index])) in expected[index] else "wrong"
        except ServerBusyError:
            outcome = "refused"
        except ServingError as error:
            outcome = "failed"
            print(f"failed: {error}", file=sys.stderr)
        with lock:
            counts[outcome] += 1
            begin = sum(counts.values()) >= requests // 3 and not acted.is_set()
            if begin:
                acted.set()
        if begin:
            act()

    local = threading.local()
    with futures.ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(requests)))
    return counts


def key(prediction) -> str:
    """A hash of all that a prediction holds."""
    parts = (prediction.boxes, prediction.scores, prediction.classes, prediction.mask_probabilities)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def expected_keys(version: Path, images: list[bytes], threads: int) -> list[set]:
    """What `faults` holds answers against: those of single requests, by as many threads as a worker has."""
    import tensorflow as tf

    from kmaskrcnn.export.saved_model import SavedModelClient

    tf.config.threading.set_intra_op_parallelism_threads(threads)

    client = SavedModelClient(version)
    return [{key(client.predict(image))} for image in images]


def disturb(server: Server, images: list[bytes]) -> None:
    """Clients that go in the middle of a request or of its answer, and one that sends a byte now and then."""
    body = json.dumps({"instances": [{"b64": base64.b64encode(images[0]).decode()}]}).encode()
    head = f"POST /v1/models/{server.name}:predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for part in (head[:20], head, head + body[: len(body) // 2], head + body):
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(part)
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        slow.sendall(head)
        for byte in body[:20]:
            slow.sendall(bytes([byte]))
            threading.Event().wait(0.05)


def row(*cells: object) -> str:
    """A row of a table."""
    return f"| {' | '.join(f'{cell:.1f}' if isinstance(cell, float) else str(cell) for cell in cells)} |"


def main() -> int:
    """Run all of it; print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("runs/load_test.md"))
    parser.add_argument("--requests", type=int, default=10_000, help="of the longest run; the others send a tenth")
    parser.add_argument("--batches", default=f"1,{MAX_BATCH}", help="most images that the server joins, with , between")
    options = parser.parse_args()
    batches = list(map(int, options.batches.split(",")))
    lines, bad = [], 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model, images = alone(export, work), photographs()
        (work / "expected.json").write_text(json.dumps(alone(expected_hashes, model / "1", images, max(batches))))
        for i, image in enumerate(images):
            body = json.dumps({"instances": [{"b64": base64.b64encode(image).decode()}]})
            (work / f"body-{i}.json").write_text(body)
        heads = ["batching", "clients", "requests", "wrong", "failed", "refused", "p50 ms", "p95 ms", "p99 ms"]
        heads += ["images/s", "cores busy, %", "MB after 1,000", "MB at the end"]
        lines += [row(*heads), row(*["---"] * len(heads))]
        for batch in batches:
            server = Server(model, work / "server.log", max_batch_size=batch, queue=64, poll_seconds=0)
            load(server, work, 4, max(options.requests // 100, 20))
            for clients in (1, 4, 16, 32):
                count = options.requests if clients == 16 else max(options.requests // 10, 20)
                r = load(server, work, clients, count)
                bad += int(r["wrong"] + r["failed"] + r["refused"])
                counts = [r[name] for name in ("sent", "wrong", "failed", "refused", "50", "95", "99")]
                rate = r["right"] / max(r["seconds"], 1e-9)
                lines.append(
                    row(f"up to {batch}" if batch > 1 else "no", clients, *counts, rate, r["busy"], r["warm"], r["end"])
                )
                print(lines[-1], flush=True)
            server.stop()
        heads = ["fault", "requests", "right", "wrong", "failed", "refused", "MB more"]
        lines += ["", row(*heads), row(*["---"] * len(heads))]
        threads = max((os.cpu_count() or 1) // 2, 1)
        keys, count = alone(expected_keys, model / "1", images, threads), max(options.requests // 20, 40)
        server = Server(model, work / "server.log", workers=2, queue=64, poll_seconds=0.5)

        def kill() -> None:
            os.kill(server.worker(), signal.SIGKILL)

        def swap() -> None:
            shutil.copytree(model / "1", work / "copy")
            (work / "copy").rename(model / "2")

        def restart() -> None:
            for _ in range(2):
                kill()
                time.sleep(10)  # the other worker goes on; this one loads the model again

        acts = {
            "nothing": lambda: None,
            "clients that go, a slow client": lambda: disturb(server, images),
            "kill -9 of a worker": kill,
            "a newer version": swap,
            "restart of the workers, one by one": restart,
        }
        for name, act in acts.items():
            before = server.megabytes()
            c = faults(server, images, keys, act, count, 8)
            bad += count - c["right"]
            grown = server.megabytes() - before
            lines.append(row(name, count, c["right"], c["wrong"], c["failed"], c["refused"], grown))
            print(lines[-1], flush=True)
        server.stop()
        server = Server(model, work / "server.log", queue=2, poll_seconds=0)
        before = server.megabytes()
        r = load(server, work, 32, count)
        bad += int(r["wrong"] + r["failed"]) + (not r["refused"])
        counts = [r[name] for name in ("sent", "right", "wrong", "failed", "refused")]
        lines.append(row("queue of 2, 32 clients that do not wait", *counts, r["end"] - before))
        print(lines[-1], flush=True)
        server.stop()
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text("\n".join(lines) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
