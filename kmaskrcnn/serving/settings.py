"""Settings of a server."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class ServeSettings:
    """Settings of a server; what a client gets beyond each bound is in docs/guide/serving.md.

    Attributes:
        model: folder with numbered versions, one of these versions, or a .tflite file.
        name: name of the model in URLs; "": that of the folder or file.
        host: address to listen on.
        port: port to listen on.
        grpc_port: port for gRPC; 0: no gRPC.
        workers: worker processes, each with a copy of the model.
        threads: threads per worker; 0: the cores divided among the workers.
        max_batch_size: most requests that a worker runs together; 1: no batching.
        batch_wait_ms: milliseconds that a worker waits for a batch to fill.
        queue: most requests at once, waiting or in progress; further ones are refused.
        max_request_bytes: most bytes of the encoded images of a request.
        max_images: most images per request.
        max_pixels: most pixels per image, for a .tflite file; a SavedModel has the limit that it was exported with.
        timeout: seconds for a request to arrive, and then to wait for a worker.
        poll_seconds: how often a worker looks for a newer version of the model; 0: never.
    """

    model: str
    name: str = ""
    host: str = "127.0.0.1"
    port: int = 8501
    grpc_port: int = 0
    workers: int = 1
    threads: int = 0
    max_batch_size: int = 1
    batch_wait_ms: float = 5.0
    queue: int = 32
    max_request_bytes: int = 64 << 20
    max_images: int = 16
    max_pixels: int = 40_000_000
    timeout: float = 60.0
    poll_seconds: float = 5.0

    def __post_init__(self):
        lowest: dict[str, float] = {"workers": 1, "threads": 0, "max_batch_size": 1, "batch_wait_ms": 0, "queue": 1}
        lowest |= {"max_request_bytes": 1, "max_images": 1, "max_pixels": 1, "timeout": 0.001, "poll_seconds": 0}
        for field, least in lowest.items():
            if getattr(self, field) < least:
                raise ValueError(f"{field}={getattr(self, field)}: must be at least {least}")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port={self.port}: a port is 1 to 65535")
        if not 0 <= self.grpc_port <= 65535 or self.grpc_port == self.port:
            raise ValueError(f"grpc_port={self.grpc_port}: a port is 1 to 65535, other than port; 0: no gRPC")
        if self.batch_wait_ms >= 1000 * self.timeout:
            raise ValueError(f"batch_wait_ms={self.batch_wait_ms:g} is not below timeout={self.timeout:g} s")
        if self.max_batch_size > self.max_images:
            raise ValueError(f"max_batch_size={self.max_batch_size} is more than max_images={self.max_images}")

    def threads_of_worker(self) -> int:
        """`threads`, or the cores shared among the workers."""
        return self.threads or max((os.cpu_count() or 1) // self.workers, 1)

    def local_host(self) -> str:
        """The address to reach the server at from this machine."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)


@dataclasses.dataclass(frozen=True)
class ModelVersion:
    """A model on disk: the folder of a SavedModel's version, or a .tflite file."""

    path: str
    name: str
    number: int


def newest_version(settings: ServeSettings) -> ModelVersion:
    """The version to serve now: the highest number; raises ValueError where there is no model."""
    path = Path(settings.model).expanduser().resolve()
    if path.suffix == ".tflite":
        if not path.is_file():
            raise ValueError(f"model={settings.model}: no such file")
        return ModelVersion(str(path), settings.name or path.stem, 1)
    if (path / "saved_model.pb").is_file():
        return ModelVersion(
            str(path), settings.name or path.parent.name, int(path.name) if path.name.isdecimal() else 1
        )
    numbers = [
        int(child.name)
        for child in (path.iterdir() if path.is_dir() else ())
        if child.name.isascii() and child.name.isdecimal() and (child / "saved_model.pb").is_file()
    ]
    if not numbers:
        raise ValueError(f"model={settings.model}: neither a SavedModel nor a .tflite file that was exported")
    # Folders may be named with zeros in front.
    chosen = next(child for child in path.iterdir() if child.name.isdecimal() and int(child.name) == max(numbers))
    return ModelVersion(str(chosen), settings.name or path.name, max(numbers))
