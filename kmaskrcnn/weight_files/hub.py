"""Model folders on the Hugging Face Hub, by hf://OWNER/NAME, through its own library (pip install kmaskrcnn[hub])."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from kmaskrcnn.errors import WeightsError, reason
from kmaskrcnn.weight_files.download import is_offline

_SCHEME = "hf://"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?", re.ASCII)
# What a model folder needs to be opened; checkpoints and logs stay at home.
_FILES = ("config.json", "labels.json", "best.weights.h5", "last.weights.h5", "README.md")


def is_address(text: str) -> bool:
    """Whether it begins with hf://."""
    return text.startswith(_SCHEME)


def pull(address: str, folder: str | os.PathLike | None = None, offline: bool | None = None) -> Path:
    """Download a model folder; what is in the library's cache already is not downloaded again.

    Args:
        address: hf://OWNER/NAME, and @REVISION where it is not the newest.
        folder: where to copy it; default: it stays in the library's cache (HF_HOME).
        offline: take what is in the cache; default: KMASKRCNN_OFFLINE.

    Raises:
        WeightsError: the library is not installed, there is no such model or no network, it holds no model folder, or
            `folder` holds a model already.
    """
    (name, revision), library = _parts(address), _library()
    offline = is_offline() if offline is None else offline
    target = Path(folder).expanduser() if folder else None
    for file in [target / name for name in _FILES] if target else ():
        if file.exists():
            raise WeightsError(f"{file}: already exists; choose another folder, or move it away")
    try:
        path = Path(
            library.snapshot_download(name, revision=revision, allow_patterns=list(_FILES), local_files_only=offline)
        )
    # The library's errors are those of its HTTP client, of which it has had several.
    except Exception as error:
        hint = "; the network is off (`offline` or KMASKRCNN_OFFLINE)" if offline else ""
        raise WeightsError(f"{address}: cannot be downloaded ({reason(error)}){hint}") from None
    if not (path / "config.json").is_file():
        raise WeightsError(f"{address}: is not a kmaskrcnn model, it has no config.json")
    if target is None:
        return path
    target.mkdir(parents=True, exist_ok=True)
    # Not the library's local_dir: what it has copied before it is cut off would be in the way of the next try.
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target) as part:
        names = [name for name in reversed(_FILES) if (path / name).is_file()]  # config.json last: then it is whole
        for name in names:
            shutil.copyfile(path / name, Path(part) / name)
        for name in names:
            os.replace(Path(part) / name, target / name)
    return target


def push(folder: str | os.PathLike, address: str, private: bool = False) -> str:
    """Upload a model folder, without checkpoints and logs; the repository is made if need be.

    Args:
        folder: of a model, as training and the importers write it.
        address: hf://OWNER/NAME.
        private: make a new repository visible to its owner alone.

    Returns:
        Its address on the web.

    Raises:
        WeightsError: no model folder, the library is not installed, no right to write there (run `hf auth login`), or
            no network.
    """
    (name, revision), library = _parts(address), _library()
    path = Path(folder)
    if not (path / "config.json").is_file() or not any((path / file).is_file() for file in _FILES[2:4]):
        raise WeightsError(f"{path}: is not a model folder, it lacks config.json or {_FILES[2]}")
    if is_offline():
        raise WeightsError(f"{address}: the network is off (`offline` or KMASKRCNN_OFFLINE)")
    try:
        library.create_repo(name, private=private, exist_ok=True)
        library.upload_folder(repo_id=name, folder_path=path, allow_patterns=list(_FILES), revision=revision)
    except Exception as error:
        raise WeightsError(f"{address}: cannot be uploaded ({reason(error)}); `hf auth login` signs you in") from None
    return f"https://huggingface.co/{name}"


def _parts(address: str) -> tuple[str, str | None]:
    name, _, revision = address.removeprefix(_SCHEME).partition("@")
    if not is_address(address) or not _NAME.fullmatch(address.removeprefix(_SCHEME)):
        raise WeightsError(f"{address}: is not of the form hf://OWNER/NAME")
    return name, revision or None


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise WeightsError("hf:// needs huggingface_hub: pip install huggingface_hub") from None
    return huggingface_hub
