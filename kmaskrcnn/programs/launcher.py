"""Several workers on one machine: starts them, passes signals on, and ends all of them when one fails."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmaskrcnn.config import ConfigError
from kmaskrcnn.errors import EXIT_RESTART
from kmaskrcnn.training.signals import install

# Seconds that the other workers have to notice that one is gone.
_GRACE = 20.0
_LAUNCHER = "KMASKRCNN_LAUNCHER"
_PR_SET_PDEATHSIG = 1


def launch(workers: int, arguments: Sequence[str]) -> int:
    """Run a program as several workers on loopback until all have ended.

    Args:
        workers: how many.
        arguments: the program and its flags. GPUs, or those of CUDA_VISIBLE_DEVICES, are dealt out evenly.

    Returns:
        0 where all did, else the exit code of the worker that failed first; EXIT_RESTART where a signal ended it.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(workers)]
    gpus = _gpus()
    if gpus and len(gpus) < workers:
        raise ConfigError(f"num_local_workers={workers}: there are {len(gpus)} GPUs")
    processes: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    received: list[int] = []
    # Before there is a worker: one that is left behind by a signal would train on without the others.
    handlers = install(lambda number, _: received.append(number))
    try:
        for worker in range(workers):
            processes.append(_start(worker, addresses, gpus, arguments))
            if worker:
                readers.append(threading.Thread(target=_prefix, args=(worker, processes[worker].stdout)))
                readers[-1].start()
        return _wait(processes, received)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for reader in readers:
            reader.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _start(worker: int, addresses: Sequence[str], gpus: Sequence[str], arguments: Sequence[str]) -> subprocess.Popen:
    """The process of one worker; addresses are those of all."""
    task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": worker}}
    own = {"TF_CONFIG": json.dumps(task), _LAUNCHER: str(os.getpid())}
    if gpus:
        share = len(gpus) // len(addresses)
        own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[worker * share : (worker + 1) * share])
    # The chief speaks for all. In sessions of their own, so that Ctrl-C reaches each worker once, from here.
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "replace"}
    output = piped if worker else {}
    command = [sys.executable, *arguments, "--num_local_workers=0", "--strategy=multi_worker"]
    return subprocess.Popen(command, env=os.environ | own, start_new_session=True, **output)


def follow_launcher() -> None:
    """In a worker: end when the launcher is killed, or two runs could write one folder (on Linux alone)."""
    launcher = os.environ.get(_LAUNCHER)
    if launcher and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(launcher):
            sys.exit(EXIT_RESTART)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def _prefix(worker: int, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"[worker {worker}] {line}", end="", flush=True)


def _wait(processes: Sequence[subprocess.Popen], received: list[int]) -> int:
    """The exit code, as `launch` has it; passes on the signals that are received."""
    failed: list[int] = []
    deadline = float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
        while received:
            number = received.pop(0)
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)
        failed = failed or [code for process in processes if (code := process.poll())]
        if failed and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE
    failed = failed or [code for process in processes if (code := process.poll())]
    if not failed:
        return 0
    # Of those that ended at once, one that says what is wrong goes before one that lost the others.
    code = min(failed, key=lambda code: (code < 0, code == EXIT_RESTART))
    return code if code > 0 else EXIT_RESTART
