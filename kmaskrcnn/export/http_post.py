"""HTTP requests whose time and size are bounded as a whole, whatever the server does."""

from __future__ import annotations

import contextlib
import http.client
import queue
import socket
import threading
import urllib.parse

from .answers import ServerBusyError, ServingError, ServingTimeoutError
from .retries import Deadline

# Too many requests, bad gateway, unavailable, gateway timeout.
_TRY_AGAIN = (429, 502, 503, 504)
_PIECE = 1 << 16


class Poster:
    """Sends bodies to one URL over connections that are kept; any thread may use it.

    Args:
        url: http or https.
        headers: sent with each request.
        max_answer_bytes: longer answers are refused, also where the server only announces them.
    """

    def __init__(self, url: str, headers: dict[str, str], max_answer_bytes: int):
        self.url, self._headers, self._max_answer_bytes = url, headers, max_answer_bytes
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url}: not the address of a server, such as http://localhost:8501")
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()

    def post(self, body: bytes, deadline: Deadline) -> bytes:
        """The body of the answer to a POST.

        Raises:
            ServerBusyError: it may be sent again: nobody answers, the connection broke, or the server says so.
            ServingTimeoutError: the deadline has passed.
            ServingError: any other status than 200, or an answer that is not HTTP or too long.
        """
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            return self._exchange(self._new(deadline), body, deadline)
        try:
            return self._exchange(connection, body, deadline)
        except ServerBusyError as error:
            if error.retry_after is not None or not isinstance(error.__cause__, OSError | http.client.HTTPException):
                raise
            # A server may close a connection that was idle; that says nothing about it.
            return self._exchange(self._new(deadline), body, deadline)

    def close(self) -> None:
        """Close the connections that are kept."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _new(self, deadline: Deadline) -> http.client.HTTPConnection:
        return self._connection(self._host, self._port, timeout=max(deadline.left(), 1e-3))

    def _exchange(self, connection: http.client.HTTPConnection, body: bytes, deadline: Deadline) -> bytes:
        done = threading.Event()
        used = connection.sock

        def cut() -> None:
            # A timeout of the socket begins anew with each byte that comes.
            if not done.wait(deadline.left()):
                with contextlib.suppress(OSError, AttributeError):
                    (used or connection.sock).shutdown(socket.SHUT_RDWR)

        watch = threading.Thread(target=cut, daemon=True)
        keep = False
        try:
            watch.start()
            if used is None:
                connection.connect()
                # The connection forgets it where the answer ends with it.
                used = connection.sock
            used.settimeout(max(deadline.left(), 1e-3))
            connection.request("POST", self._path, body, self._headers)
            response = connection.getresponse()
            data = self._read(response)
            keep = not response.will_close
        except (OSError, http.client.HTTPException, ValueError) as error:
            if deadline.left() == 0 or isinstance(error, TimeoutError):
                raise ServingTimeoutError(f"{self.url}: no answer within {deadline.seconds:g} s") from None
            if isinstance(error, OSError | http.client.RemoteDisconnected | http.client.IncompleteRead):
                raise ServerBusyError(f"{self.url}: {error}") from error
            raise ServingError(f"{self.url}: not an HTTP answer ({type(error).__name__}: {str(error)[:200]})") from None
        finally:
            done.set()
            if keep:
                self._idle.put(connection)
            else:
                connection.close()
        if deadline.left() == 0:
            # What was cut off looks like the end of an answer without a length.
            raise ServingTimeoutError(f"{self.url}: no answer within {deadline.seconds:g} s")
        if response.status == 200:
            return data
        message = f"{self.url}: {response.status} {data[:500].decode(errors='replace')}"
        if response.status in _TRY_AGAIN:
            raise ServerBusyError(message, _seconds(response.headers.get("Retry-After")))
        raise ServingError(message)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        limit = self._max_answer_bytes
        if response.length is not None and response.length > limit:
            raise ServingError(f"{self.url}: an answer of {response.length} bytes, more than {limit}")
        pieces, size = [], 0
        while piece := response.read(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise ServingError(f"{self.url}: an answer of more than {limit} bytes")
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        return b"".join(pieces)


def _seconds(header: str | None) -> float | None:
    """Retry-After in seconds; None for a date, which needs the same clock on both sides, and for nonsense."""
    number = header.strip() if header else ""
    return float(number) if number.isascii() and number.isdigit() and len(number) < 9 else None
