"""A real HTTP server on loopback whose manners can be set: cuts, no ranges, redirects, other bytes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer(ThreadingHTTPServer):
    """Serves `files` (path -> bytes).

    Attributes:
        files: what there is.
        cut_after: close the connection after so many bytes of each answer; None: never.
        ranges: honor Range and If-Range.
        most: bytes that the answer to a Range holds at most; None: all that is left.
        etag: of every file; empty: none is sent.
        redirects: path -> address.
        content_type: of every answer.
        lengths: send Content-Length.
        requests: (path, Range or None) of every request so far.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cut_after: int | None = None
        self.most: int | None = None
        self.ranges, self.lengths, self.etag = True, True, '"one"'
        self.redirects: dict[str, str] = {}
        self.content_type = "application/octet-stream"
        self.requests: list[tuple[str, str | None]] = []

    @property
    def base(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def running() -> Iterator[FileServer]:
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked))
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path not in server.files:
            self.send_error(404)
            return
        data, start = server.files[self.path], 0
        if asked and server.ranges and self.headers.get("If-Range") in (None, server.etag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        size = len(data)
        if start and server.most is not None:
            data = data[: start + server.most]
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{size}")
        if server.lengths:
            self.send_header("Content-Length", str(len(data) - start))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.content_type)
        self.close_connection = True
        self.end_headers()
        end = len(data) if server.cut_after is None else min(len(data), start + server.cut_after)
        with contextlib.suppress(OSError):
            self.wfile.write(data[start:end])

    def log_message(self, *_: object) -> None:
        pass
