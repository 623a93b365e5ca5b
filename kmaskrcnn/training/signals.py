"""Signals that ask a run to stop: Ctrl-C, a scheduler's SIGTERM, a terminal that goes away."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from kmaskrcnn.errors import EXIT_INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def install(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Set a handler for SIGNALS but for those that are ignored, as nohup does; returns the ones before."""
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


class StopSignals:
    """Within its context a signal is a wish to stop, and a Ctrl-C after it acts as it did before.

    Outside the main thread, where Python cannot hear signals, there is never a wish.

    Attributes:
        number: the first signal that came; None where none did.
    """

    def __init__(self):
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.number = None
        if threading.current_thread() is threading.main_thread():
            self._before = install(self._wish)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _wish(self, number: int, frame: Any) -> None:
        if self.number is None:
            self.number = number
        elif number == signal.SIGINT and callable(self._before[number]):
            self._before[number](number, frame)


class SignalWatch:
    """For a program: ends the process by itself where a signal comes and nothing needs saving, with exit code 75.

    That is the case before the first step, and at a second Ctrl-C; else `StopSignals` has the word. It looks at signals
    in a thread, since the main one may be within TensorFlow for minutes: in a collective, or tracing a graph.

    Attributes:
        unsaved: tells whether there is something to save; set it once there is a run.
    """

    def __init__(self):
        self.unsaved: Callable[[], bool] = lambda: False
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        install(lambda *_: None)  # so that they do not end the process themselves
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True, name="signals").start()

    def stop(self) -> None:
        """Leave signals to others."""
        signal.set_wakeup_fd(-1)

    def _watch(self, reader: int) -> None:
        heard = False
        while True:
            for number in os.read(reader, 64):
                if number not in SIGNALS:
                    continue
                name = signal.Signals(number).name
                if not self.unsaved():
                    _end(f"{name} before a step was taken: nothing to save, the same command starts again")
                if heard and number == signal.SIGINT:
                    _end("a second Ctrl-C: stopped at once; the same command resumes from the newest checkpoint")
                heard = True


def _end(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, (line + "\n").encode())
    os._exit(EXIT_INTERRUPTED)
