"""Serve an exported model on this machine: `kmaskrcnn serve --model=exported/mine`.

Takes and answers what the REST API of TensorFlow Serving does, and with --grpc_port its gRPC API; a page at / takes
dropped images. docs/guide/serving.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from kmaskrcnn.serving.settings import ServeSettings

_HELP = {
    "model": "folder with numbered versions, one of them, or a .tflite file",
    "name": "model name in URLs; default: the name of the folder",
    "host": "address to listen on; 0.0.0.0: all interfaces",
    "port": "port to listen on",
    "grpc_port": "port for gRPC; 0: no gRPC",
    "workers": "worker processes, each with a copy of the model",
    "threads": "threads per worker; 0: the cores divided among the workers",
    "max_batch_size": "dynamic batching: most requests run together; 1: no batching",
    "batch_wait_ms": "dynamic batching: milliseconds to wait for a batch to fill",
    "queue": "most requests in progress at once; further ones get status 429",
    "max_request_bytes": "most bytes of the encoded images of a request; more get status 413",
    "max_images": "most images per request; more get status 400",
    "max_pixels": "most pixels per image, for a .tflite file; larger images get image_errors",
    "timeout": "seconds for a request to arrive (then 408), and to wait for a worker (then 504)",
    "poll_seconds": "seconds between looks for a newer version of the model; 0: never",
}


def program(name: str, arguments: Sequence[str]) -> int:
    """Serve until told to stop; exit code 2 for what cannot be served."""
    parser = argparse.ArgumentParser(name, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--helpfull", action="help", help=argparse.SUPPRESS)  # as the other commands have it
    for field in dataclasses.fields(ServeSettings):
        required = field.default is dataclasses.MISSING
        options = {"type": str} if required else {"type": type(field.default), "default": field.default}
        parser.add_argument(f"--{field.name}", required=required, help=_HELP[field.name], **options)
    options = vars(parser.parse_args(arguments))
    try:
        settings = ServeSettings(**options)
        from kmaskrcnn.serving.server import run
    except ModuleNotFoundError as error:
        print(f"error: {error}: pip install 'kmaskrcnn[serving]'", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: --{error}", file=sys.stderr)
        return 2
    try:
        run(settings)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
