"""The end of a process that has come to a standstill."""

from __future__ import annotations

import os
import sys
import threading
import time


class Watchdog:
    """Ends this process with `code` where `beat` was not called for `seconds`.

    A worker that waits in a collective for one that is stalled cannot raise, so this is the end of the process and not
    an exception. Used as a context; 0 seconds are for ever.
    """

    def __init__(self, seconds: float, code: int, message: str):
        self.seconds, self.code, self.message = seconds, code, message
        self._last = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")

    def __enter__(self) -> Watchdog:
        self.beat()
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def beat(self) -> None:
        """Tell that work goes on."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._over.wait(min(5.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                sys.stdout.flush()
                print(f"error: {self.message}", file=sys.stderr, flush=True)
                os._exit(self.code)
