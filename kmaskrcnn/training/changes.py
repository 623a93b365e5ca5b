"""What is not as it was when a run began, said where it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from kmaskrcnn.config import Config
from kmaskrcnn.data import CocoDataset
from kmaskrcnn.model_folder import read_config
from kmaskrcnn.results.labels import write_text

_FACTS = "training_set.json"


def what_changed(directory: Path, config: Config, train_set: CocoDataset) -> list[str]:
    """Lines on the settings and the training set of a folder's run that are now others; empty where none are.

    Args:
        directory: the model folder, as the run before left it.
        config: the settings now. Another model is refused elsewhere.
        train_set: the training set now.
    """
    old, lines, changes = read_config(directory), [], []
    for group in ("data", "train"):
        before, now = (dataclasses.asdict(getattr(c, group)) for c in (old, config))
        changes += [(name, before[name], now[name]) for name in now if now[name] != before[name]]
    skipped = ("model_dir", "init_weights")
    if told := ", ".join(f"{name} {_text(a)} -> {_text(b)}" for name, a, b in changes if name not in skipped):
        lines.append(f"changed since the run before: {told}")
    if any(name == "init_weights" for name, _, _ in changes):
        lines.append("init_weights is not used: the run goes on from its checkpoint")
    try:
        known = json.loads((directory / _FACTS).read_text())
    except (OSError, ValueError):  # of a release that did not write it
        return lines
    facts = _facts(train_set)
    if known != facts:
        counts = [f"{f.get('objects')} objects in {f.get('images')} images" for f in (known, facts)]
        lines.append(f"the training set is another one than in the run before: {counts[0]} then, {counts[1]} now")
    return lines


def write_set_facts(directory: Path, train_set: CocoDataset) -> None:
    """Write what tells a training set from another one into a model folder."""
    write_text(directory / _FACTS, json.dumps(_facts(train_set)) + "\n")


def _facts(train_set: CocoDataset) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name in train_set.file_names:  # a folder may have moved
        digest.update(os.path.basename(name).encode() + b"\0")
    for array in (train_set.sizes, train_set.boxes, train_set.classes):
        digest.update(np.ascontiguousarray(array).tobytes())
    return {"images": len(train_set), "objects": len(train_set.boxes), "sha256": digest.hexdigest()}


def _text(value: Any) -> str:
    return ",".join(map(str, value)) or "()" if isinstance(value, tuple) else f"{value}" if value != "" else "''"
