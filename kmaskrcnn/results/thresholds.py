"""The file of score thresholds by class that `kmaskrcnn evaluate` writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..errors import ConfigError
from .labels import Labels
from .prediction import class_indices


def read_score_thresholds(path: str | os.PathLike, labels: Labels) -> dict[str, float]:
    """The thresholds in a JSON file {CLASS NAME: SCORE, ...}, for `Prediction.select`.

    Args:
        path: the file; it need not name every class.
        labels: the classes of the model.

    Raises:
        ConfigError: the file cannot be read, names a class that the model does not have, or a score outside 0..1.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {error}"
        raise ConfigError(f"{path}: {reason}; evaluate writes score_thresholds.json") from None
    if not isinstance(tree, dict):
        raise ConfigError(f'{path}: expected {{"CLASS": SCORE, ...}}, as in the score_thresholds.json of evaluate')
    try:
        class_indices(labels, list(tree))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    for name, value in tree.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ConfigError(f"{path}: {name!r} has the threshold {json.dumps(value)}: expected a number from 0 to 1")
    return {name: float(value) for name, value in tree.items()}
