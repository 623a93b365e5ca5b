"""A server that ends within seconds of Ctrl-C, SIGTERM or a terminal that goes away.

LitServe cannot stop a front that is a thread: it ends the processes behind it and then waits for it for ever.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import resource_tracker

from kmaskrcnn.serving.admission import Admission

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# How long requests that are under way may take once the server is told to stop.
_GRACE_SECONDS = 5.0


class Stopper:
    """From its making on a signal ends the process with code 0: the requests under way are answered first.

    Ctrl-C reaches the workers too; they ignore it, so that they can answer. A second signal ends all at once.
    Make it in the main thread, before any worker is started.

    Args:
        admission: refuses further requests from the first signal on, and knows how many have no answer yet.
    """

    def __init__(self, admission: Admission):
        self._admission = admission
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores one
        for number in heard:
            signal.signal(number, lambda *_: None)
        resource_tracker.ensure_running()  # started later, it would lift the mask
        # Seen in a thread at once, whatever the main one waits for.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_BLOCK, heard)  # workers inherit this, handlers they do not
        threading.Thread(target=self._watch, args=(reader, heard), daemon=True, name="signals").start()

    def _watch(self, reader: int, heard: list[int]) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
        _next(reader, heard)
        threading.Thread(target=self._stop, daemon=True, name="stop").start()
        _next(reader, heard)
        end(0, "stopped at once")

    def _stop(self) -> None:
        self._admission.closed = True
        until = time.monotonic() + _GRACE_SECONDS
        while self._admission.under_way and time.monotonic() < until:
            time.sleep(0.02)
        left = self._admission.under_way
        time.sleep(0.1)  # the last answer is still on its way out
        end(0, f"stopped; {left} requests were not answered" if left else "stopped")


def _next(reader: int, heard: list[int]) -> None:
    """Wait for a signal."""
    while os.read(reader, 1)[0] not in heard:
        pass


def end(code: int, line: str) -> None:
    """End this process and its workers now, with a last line on stderr."""
    for process in multiprocessing.active_children():
        process.kill()
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
    os._exit(code)


def end_with_server() -> None:
    """In a worker: end where the server has ended, however that came about."""

    def watch() -> None:
        server = multiprocessing.parent_process()
        if server is not None:
            server.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
