"""The sides of the leaderboard, and its results as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple


class Side(NamedTuple):
    """A package with its recipe: module here, the environment that it runs in, and the tasks that it is made for."""

    label: str
    module: str
    environment: str
    tasks: tuple[str, ...] = ("nuclei", "fruits", "people")
    arguments: tuple[str, ...] = ()


SIDES = {
    "ours": Side("kmaskrcnn, automatic recipe", "our_side", "ours"),
    "ours-heads": Side(
        "kmaskrcnn, nuclei.flags with a cascade and PointRend",
        "our_side",
        "ours",
        ("nuclei",),
        ("--flags=--flagfile=configs/nuclei.flags --cascade_ious=0.5,0.6,0.7 --mask_point_rend --mask_subdivisions=3",),
    ),
    "stardist": Side("StarDist", "stardist_side", "stardist", ("nuclei",)),
    "torchvision": Side("torchvision, 800 pixels", "torchvision_side", "torchvision"),
    "torchvision-small": Side("torchvision, 320 pixels", "torchvision_side", "torchvision", arguments=("--small",)),
    "yolo": Side("YOLO11n-seg", "yolo_side", "ultralytics"),
    "rfdetr": Side("RF-DETR-Seg-Nano", "rfdetr_side", "rfdetr"),
}
COLUMNS = (
    "package, recipe",
    "seeds",
    "steps x batch",
    "minutes",
    "box AP",
    "mask AP",
    "AP50",
    "AP75",
    "TP / (TP + FP + FN) at 0.5, 0.6, 0.7, 0.8, 0.9",
    "seconds an image",
    "peak memory",
    "file",
)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """The mean, and the lowest and highest of several."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def row(label: str, runs: Sequence[dict[str, Any]]) -> str:
    """The line of a side."""

    def mean(key: str) -> float:
        return statistics.mean(run[key] for run in runs)

    overlaps = [statistics.mean(values) for values in zip(*(run["overlap"] for run in runs), strict=True)]
    cells = [label, str(len(runs)), f"{mean('steps'):.0f} x {runs[0]['batch']}", f"{mean('minutes'):.1f}"]
    cells += [spread([run[key] for run in runs]) for key in ("box_AP", "mask_AP", "mask_AP50", "mask_AP75")]
    cells.append(" ".join(f"{value:.3f}" for value in overlaps) + f" (above {mean('working_score'):.2g})")
    cells += [f"{mean('seconds_an_image'):.2f}", f"{mean('memory_gb'):.1f} GB", f"{mean('file_mb'):.0f} MB"]
    return f"| {' | '.join(cells)} |"


def table(results: dict[str, Any]) -> str:
    """A table for each task that was run, in the order of SIDES."""
    parts = []
    for name, task in results["tasks"].items():
        if not task["runs"]:
            continue
        train, held = task["images"]
        head = f"{name}: {train} images to train on, {held} to score on, {task['minutes']:g} minutes of one core"
        lines = [head, "", f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
        lines += [
            row(side.label, list(task["runs"][key].values())) for key, side in SIDES.items() if key in task["runs"]
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
