"""Deadlines of calls to a server, and when to try one again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from .answers import ServerBusyError, ServingTimeoutError

Result = TypeVar("Result")

# Seconds before the second try, at most; doubled for each further one.
FIRST_WAIT, LONGEST_WAIT = 0.1, 5.0


class Deadline:
    """A moment in the future.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, 0 once it has passed."""
        return max(self._end - time.monotonic(), 0.0)


def retry(call: Callable[[], Result], deadline: Deadline, retries: int) -> Result:
    """The result of a call, which is made again after a wait where it raises ServerBusyError.

    Waits are drawn from 0 to a bound that doubles, so that clients refused together do not come back together, or are
    what the server asked for. A wait that would pass the deadline is not begun.

    Raises:
        ServerBusyError: of the last try.
        Exception: any other that the call raises, at once.
    """
    for attempt in range(retries + 1):
        try:
            return call()
        except ServerBusyError as error:
            bound = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
            wait = random.uniform(0, bound) if error.retry_after is None else error.retry_after
            if attempt == retries or wait >= deadline.left():
                raise
        threading.Event().wait(wait)
    raise ServingTimeoutError("no attempt was allowed")
