"""Hostile requests to an exported model: mutated image files, good ones beside them unchanged bit for bit."""

from __future__ import annotations

import pathlib

from benchmarks.faults import Row
from tests.export import fuzz


def run(count: int, folder: pathlib.Path) -> list[Row]:
    """Run `count` mutated files through the signature, 20 a request with a whole one; see tests/export/fuzz.py."""
    saved_model = fuzz.export_small_model(folder / "model")
    outcomes, problem, (start, peak) = fuzz.try_files(saved_model, count)
    tried = sum(outcomes.values())
    read = sum(n for outcome, n in outcomes.items() if outcome.endswith(": decoded"))
    words = (
        f"{read} read, {tried - read} refused, readable ones unchanged bit for bit, {peak - start:.0f} MB more memory"
    )
    return [Row("hostile image files in requests", tried, problem or words, not problem and tried >= count)]
