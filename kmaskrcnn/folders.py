"""Where a model folder is on the disk, and whether it is one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kmaskrcnn.config import ConfigError


def local_folder(name: str | os.PathLike) -> Path:
    """The path of a folder that is to be written or read, with a leading ~ expanded.

    Raises:
        ConfigError: the name is an address such as gs://bucket/run, or there is no such home folder.
    """
    text = os.fspath(name)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ConfigError(
            f"{text} is an address, and a model folder must be on a file system: name a local folder, "
            "or mount the bucket, and copy the folder from there when it is done"
        )
    if not text.strip() or "\0" in text:
        raise ConfigError(f"{text!r} is not a folder name")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{text}: there is no such home folder") from None


def config_file(folder: str | os.PathLike) -> Path:
    """The file of settings in a model folder; raises ConfigError where there is none."""
    path = local_folder(folder) / "config.json"
    if not path.is_file():
        raise ConfigError(f"{folder} is not a model folder: it has no config.json")
    return path
