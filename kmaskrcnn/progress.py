"""Progress lines with an ETA."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

# Work that is done sooner shows nothing; where the output is no terminal, lines come this far apart.
_QUIET_SECONDS, _SECONDS_BETWEEN_LINES = 2.0, 10.0


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    seconds = max(0, round(seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


@contextlib.contextmanager
def phase(what: str) -> Iterator[None]:
    """Print `what` where the work within takes over two seconds, so that nobody waits without knowing for what."""
    timer = threading.Timer(_QUIET_SECONDS, lambda: print(f"{what} ...", flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# Called at each unit of work that any `Progress` counts.
_listeners: list[Callable[[], None]] = []


@contextlib.contextmanager
def listening(heard: Callable[[], None]) -> Iterator[None]:
    """Within the context `heard` is called whenever work goes on, for a watchdog."""
    _listeners.append(heard)
    try:
        yield
    finally:
        _listeners.remove(heard)


class Progress:
    """Counts units of work and shows the progress: one line that is rewritten on a terminal, elsewhere a line at times.

    Args:
        what: what is counted, such as "images"; it follows the numbers.
        total: how many there are; 0 where nobody knows.
    """

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done = what, total, 0
        self._start = self._told = time.monotonic()
        self._width = 0  # of the line on the terminal

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._start

    def step(self, count: int = 1) -> None:
        """Count units that are done, and show it where it is time to."""
        self.done += count
        for heard in _listeners:
            heard()
        now = time.monotonic()
        if now - self._start < _QUIET_SECONDS or now - self._told < 0.2:
            return
        terminal = sys.stdout.isatty()
        if not terminal and now - self._told < _SECONDS_BETWEEN_LINES:
            return
        self._told = now
        line = f"{self.done}{f'/{self.total}' if self.total else ''} {self.what}"
        if self.total:
            line += f", ETA {clock(self.seconds * (self.total - self.done) / self.done)}"
        if terminal:
            print("\r" + line.ljust(self._width), end="", flush=True)
            self._width = len(line)
        else:
            print(line, flush=True)

    def clear(self) -> None:
        """Take the line off the terminal, so that another one can be printed."""
        if self._width:
            print("\r" + " " * self._width, end="\r", flush=True)
            self._width = 0
