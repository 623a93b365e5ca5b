"""TensorFlow Serving's gRPC PredictionService in front of the server's own REST address.

A request goes on as it came, in protobuf, so that batching, bounds and refusals are those of REST.
"""

from __future__ import annotations

import http.client
import json
import threading
import urllib.parse
from concurrent import futures

import grpc

from kmaskrcnn.export.serving_protos import PREDICT_METHOD
from kmaskrcnn.serving.rest import PROTOBUF
from kmaskrcnn.serving.settings import ServeSettings, newest_version

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class _Front(grpc.GenericRpcHandler):
    """Hands a serialized PredictRequest to the REST address and back what it answers."""

    def __init__(self, settings: ServeSettings):
        self._address, self._timeout = (settings.local_host(), settings.port), settings.timeout
        self._path = f"/v1/models/{urllib.parse.quote(newest_version(settings).name, safe='')}:predict"
        self._local = threading.local()  # a connection for each thread

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The one method that there is."""
        if handler_call_details.method != PREDICT_METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(self._predict)

    def _predict(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        left = context.time_remaining()
        # Waiting for a worker is bounded by the server's timeout; its work comes after that.
        seconds = 4 * self._timeout if left is None else max(left, 0.001)
        try:
            status, body = self._post(request, seconds)
        except TimeoutError:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {seconds:.3g} s")
        except (OSError, http.client.HTTPException) as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, f"the server does not answer: {error}")
        if status != 200:
            try:
                words = json.loads(body)["error"]
            except (ValueError, KeyError, TypeError):
                words = f"status {status}"
            context.abort(_CODES.get(status, grpc.StatusCode.INTERNAL), words)
        return body

    def _post(self, request: bytes, seconds: float) -> tuple[int, bytes]:
        connection = self._local.__dict__.pop("connection", None)
        fresh = connection is None
        if connection is None:
            connection = http.client.HTTPConnection(*self._address)
        connection.timeout = seconds
        try:
            if connection.sock is not None:
                connection.sock.settimeout(seconds)
            connection.request("POST", self._path, request, {"Content-Type": PROTOBUF})
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if fresh or isinstance(error, TimeoutError):
                raise
            return self._post(request, seconds)  # a connection that had lain idle was closed
        self._local.connection = connection
        return status, body


def start(settings: ServeSettings) -> grpc.Server:
    """Listen in the background; raises OSError where the port is taken."""
    longest = settings.max_request_bytes + 4096 * settings.max_images
    server = grpc.server(
        # One more than are let in, so that refusals need not wait.
        futures.ThreadPoolExecutor(settings.queue + 1, "grpc"),
        handlers=[_Front(settings)],
        maximum_concurrent_rpcs=settings.queue + 1,  # none waits for a thread, with its images in memory
        options=[
            ("grpc.max_receive_message_length", longest),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError:
        raise OSError(f"grpc_port={settings.grpc_port}: cannot listen on {host}:{settings.grpc_port}") from None
    server.start()
    return server
