"""The server: LitServe with the routes of TensorFlow Serving's REST API, metrics and a page.

Batching, workers, their restart, the time limit of the queue and /health are LitServe's; the metrics are those of
prometheus-fastapi-instrumentator.
"""

# No postponed annotations: FastAPI reads them.
import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from litserve import LitServer
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.exceptions import HTTPException

from kmaskrcnn.serving import rest
from kmaskrcnn.serving.admission import Admission
from kmaskrcnn.serving.detector import Detector
from kmaskrcnn.serving.settings import ServeSettings, newest_version
from kmaskrcnn.serving.stopping import Stopper, end

_PAGE = Path(__file__).parent / "page.html"


def build(
    settings: ServeSettings, class_names: list[str], open_version: Callable[[str], Any] | None = None
) -> LitServer:
    """The server, not yet started.

    Args:
        settings: of the server.
        class_names: in the order of the classes, for the page.
        open_version: as for `Detector`.

    Raises:
        ValueError: there is no model.
    """
    name = newest_version(settings).name
    detector = Detector(settings, name, open_version)
    server = LitServer(
        detector,
        accelerator="cpu",  # TensorFlow takes the devices that it finds
        workers_per_device=settings.workers,
        timeout=settings.timeout,
        restart_workers=True,
        disable_openapi_url=True,
    )
    app = server.app
    app.state.admission = Admission(settings, name)
    Instrumentator(excluded_handlers=["/metrics", "/health"]).instrument(app).expose(app, include_in_schema=False)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        # LitServe's 500 is a worker that has died with the request, and is started again.
        died = error.status_code == 500
        status, words = (503, "a worker died: try again later") if died else (error.status_code, error.detail)
        headers = {"Retry-After": "1"} if status in (429, 503) else {}
        return Response(rest.format_error(words), status, headers, media_type=rest.JSON)

    @app.get(f"/v1/models/{name}")
    async def state() -> Response:
        newest, served = newest_version(settings).number, detector.version.value
        states = {newest: "LOADING"} | ({served: "AVAILABLE"} if served else {})
        told = [
            {"version": str(number), "state": states[number], "status": {"error_code": "OK"}}
            for number in sorted(states, reverse=True)
        ]
        return Response(json.dumps({"model_version_status": told}), media_type=rest.JSON)

    page = _PAGE.read_text()
    for mark, value in (("__MODEL__", name), ("__CLASSES__", class_names)):
        page = page.replace(mark, json.dumps(value).replace("<", "\\u003c"))

    # LitServe has a page of its own there.
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) != "/"]

    @app.get("/")
    async def root() -> Response:
        return Response(page, media_type="text/html")

    return server


def start(server: LitServer, settings: ServeSettings) -> None:
    """Serve until a signal, which ends this process.

    Raises:
        OSError: a port is taken.
        ValueError: no worker can load the model.
    """
    Stopper(server.app.state.admission)
    _check_port(settings)
    with contextlib.ExitStack() as stack:
        if settings.grpc_port:
            os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")  # workers use none of it, and it says so
            from kmaskrcnn.serving import grpc_front

            stack.callback(grpc_front.start(settings).stop, None)
        threading.Thread(target=_tell_when_ready, args=(settings,), daemon=True).start()
        try:
            # One process takes the requests: it knows how many there are, and sees its workers die.
            server.run(
                host=settings.host,
                port=settings.port,
                num_api_servers=1,
                api_server_worker_type="thread",
                generate_client_file=False,
                log_level="warning",
            )
        except RuntimeError:  # LitServe's; the worker has said why
            end(2, f"error: --model={settings.model}: cannot be loaded")


def _check_port(settings: ServeSettings) -> None:
    """Raise OSError where the port cannot be had; LitServe tells it otherwise."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise OSError(f"port={settings.port}: cannot listen on {settings.host} ({error.strerror})") from None


def _tell_when_ready(settings: ServeSettings) -> None:
    """Print where the server is once all of its workers have the model."""
    version, host = newest_version(settings), settings.local_host()
    print(f"loading {version.path} ...", flush=True)
    while not _healthy(host, settings.port):
        time.sleep(0.1)
    host = f"[{host}]" if ":" in host else host
    address = f"http://{host}:{settings.port}"
    print(f"ready; to try it in a browser: {address}/", flush=True)
    print(f"REST: {address}/v1/models/{version.name}:predict", flush=True)
    if settings.grpc_port:
        print(f"gRPC: {host}:{settings.grpc_port}, model {version.name}", flush=True)


def _healthy(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def run(settings: ServeSettings) -> None:
    """Serve a model until a signal; raises ValueError where there is none."""
    from kmaskrcnn.serving.runner import class_names

    start(build(settings, class_names(newest_version(settings).path)), settings)
