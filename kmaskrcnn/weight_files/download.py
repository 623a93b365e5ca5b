"""Published files over HTTP, each once: resumed where it broke off, checked, and moved into the cache when whole.

keras.utils.get_file writes straight to the file's final name, so that a second process reads half of it, and begins
anew after each cut; pooch neither resumes nor locks; huggingface_hub does both, for its own server alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kmaskrcnn.errors import WeightsError, reason
from kmaskrcnn.progress import Progress

OFFLINE, MIRROR = "KMASKRCNN_OFFLINE", "KMASKRCNN_MIRROR"
_BLOCK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_FRUITLESS_TRIES = 3  # in a row that brought no byte


@dataclasses.dataclass(frozen=True)
class Published:
    """A file on a server.

    Attributes:
        url: its address.
        sha256: its SHA-256, or the first digits of it that its name carries; empty where none is published. The sum is
            then recorded at the first download, and what is in the cache is held against it.
        filename: its name in the cache; default: the address' last part.
    """

    url: str
    sha256: str = ""
    filename: str = ""

    @property
    def name(self) -> str:
        """Its name in the cache."""
        return self.filename or urlsplit(self.url).path.rpartition("/")[2]


def cache_folder() -> Path:
    """Keras' folder of models: KERAS_HOME/models, or ~/.keras/models."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "models"


def is_offline() -> bool:
    """Whether the network must not be touched: KMASKRCNN_OFFLINE is set, and not to 0."""
    return os.environ.get(OFFLINE, "0") not in ("", "0")


def fetch(file: Published, mirror: str | None = None, offline: bool | None = None) -> Path:
    """The file in the cache, downloaded the first time.

    Several processes may ask at once: one downloads and the others wait. A download that broke off goes on where it
    was, if the server can and still has the same file.

    Args:
        file: which.
        mirror: base address in place of https://HOST in the file's own; default: KMASKRCNN_MIRROR, or none.
        offline: never touch the network; default: KMASKRCNN_OFFLINE.

    Raises:
        WeightsError: no network, no space, no such file there, or one of another SHA-256; the message says where to
            put the file by hand. What was in the cache before is still there.
    """
    path = cache_folder() / file.name
    if path.is_file():
        return _checked(path, file)
    url = _address(file.url, os.environ.get(MIRROR, "") if mirror is None else mirror)
    advice = f"download {url} to {path}"
    if is_offline() if offline is None else offline:
        raise WeightsError(f"{file.name} is not in the cache and the network is off: {advice}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            if not path.is_file():  # another process may have brought it
                _download(url, path, file)
    except OSError as error:  # of the disk; the network's are WeightsErrors by now
        raise WeightsError(
            f"{error.filename or path.parent}: {error.strerror or error}; {advice} or set KERAS_HOME"
        ) from (None)
    return _checked(path, file)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold what belongs to a path for this process alone; a process that dies lets it go."""
    with open(path.with_name(path.name + ".lock"), "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _address(url: str, mirror: str) -> str:
    return mirror.rstrip("/") + urlsplit(url).path if mirror else url


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _checked(path: Path, file: Published) -> Path:
    """The path, where its content is what was published or recorded; a file put there by hand is recorded now."""
    found = sha256_of(path)
    with contextlib.suppress(FileNotFoundError):
        recorded = _record(path).read_text()[:64]
        if found != recorded:
            raise WeightsError(
                f"{path}: has changed since it was downloaded, its SHA-256 begins with {found[:8]} and not "
                f"{recorded[:8]}: delete it to download it again"
            )
        return path
    if not found.startswith(file.sha256):
        raise WeightsError(
            f"{path}: its SHA-256 begins with {found[:8]}, its name says {file.sha256[:8]}: delete it to download it "
            f"again from {file.url}, or rename it if it is another file"
        )
    with contextlib.suppress(OSError):  # a cache that is shared and cannot be written
        _write(_record(path), f"{found}  {path.name}\n")
    return path


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


# The parts of a download: NAME.part has the bytes so far, NAME.part.json says of which version of the file.


def _download(url: str, path: Path, file: Published) -> None:
    part, about = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    advice = f"; download it yourself to {path}"
    fruitless, problem = 0, ""
    while fruitless < _FRUITLESS_TRIES:
        before = part.stat().st_size if part.exists() else 0
        try:
            whole = _receive(url, part, about, path.name)
        except ValueError as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{url}: is not a URL to download from ({reason(error)})") from None
        except urllib.error.HTTPError as error:
            with error:
                raise WeightsError(f"{url}: the server answered {error.code} {reason(error.reason)}{advice}") from None
        except (http.client.HTTPException, TimeoutError, ConnectionError, urllib.error.URLError) as error:
            problem, whole = reason(getattr(error, "reason", error)), False
            if isinstance(error, urllib.error.URLError) and not isinstance(
                error.reason, TimeoutError | ConnectionError
            ):
                break  # no such host, no route, a bad certificate: to ask again does not help
        if whole:
            break
        fruitless = 0 if part.exists() and part.stat().st_size > before else fruitless + 1
    else:
        whole = False
    if not whole:
        kept = f" ({part.stat().st_size} bytes are kept to resume from)" if part.exists() else ""
        raise WeightsError(f"{url}: cannot be downloaded, {problem or 'the connection is cut'}{kept}{advice}")
    found = sha256_of(part)
    about.unlink(missing_ok=True)
    if not found.startswith(file.sha256):
        part.unlink()
        raise WeightsError(
            f"{url}: the SHA-256 of the downloaded file begins with {found[:8]}, not {file.sha256[:8]}: a damaged or "
            f"different file, which is not kept{advice}"
        )
    _write(_record(path), f"{found}  {path.name}\n")
    os.replace(part, path)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http, where anybody on the way could put another file."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.startswith("https:"):
            raise urllib.error.HTTPError(newurl, code, "a redirect from https to http", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(url: str, part: Path, about: Path, name: str) -> bool:
    """Bring what is missing of a file; whether it is whole now."""
    start, version = _progress_so_far(part, about)
    headers = {"User-Agent": "kmaskrcnn", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(_Redirects())
    try:
        response = opener.open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the bytes there are not of this file
            raise
        error.close()
        part.unlink(missing_ok=True)
        return False
    with response:
        if response.headers.get_content_type() == "text/html":
            raise WeightsError(f"{url}: the answer is a web page, not a file; does the network have a login page?")
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            start = 0  # the server sends the file from its beginning
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else None
        if start:  # an answer may hold less than what was asked for
            whole = response.headers["Content-Range"].rpartition("/")[2]
            total = int(whole) if whole.isdigit() else None
        if total is not None and total - start > shutil.disk_usage(part.parent).free:
            raise WeightsError(
                f"{part.parent}: no space for the {total >> 20} MB of {name}; set KERAS_HOME to another disk"
            )
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        _write(about, json.dumps({"version": version}))
        done = _copy(response, part, start, total, name)
    return done == total if total is not None else True


def _progress_so_far(part: Path, about: Path) -> tuple[int, str]:
    """How many bytes there are, and of which version; 0 where that is not known for certain."""
    try:
        version, size = json.loads(about.read_text())["version"], part.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""
    # A weak tag stands for equal meaning, not for equal bytes.
    known = isinstance(version, str) and version and not version.startswith("W/")
    return (size, version) if known else (0, "")


def _copy(response: Any, part: Path, start: int, total: int | None, name: str) -> int:
    progress = Progress(f"MB of {name}", max((total or start) - start, 0) >> 20)
    done = start
    try:
        with open(part, "r+b" if start else "wb") as stream:
            stream.seek(start)
            while block := response.read(_BLOCK):
                stream.write(block)
                done += len(block)
                if came := ((done - start) >> 20) - progress.done:
                    progress.step(came)
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        progress.clear()
    return done
