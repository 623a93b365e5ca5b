"""The drawings of the evaluation report, as data URLs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kmaskrcnn.evaluation.coco_metrics import CocoScores
from kmaskrcnn.evaluation.error_kinds import Calibration
from kmaskrcnn.report_page import chart, new_chart

_RECALLS = np.linspace(0, 1, 101)
# Classes drawn with a curve of their own, and classes whose cells of the confusion matrix hold their numbers.
_MOST_CURVES, _MOST_NUMBERS = 10, 20


def _curve(precision: np.ndarray) -> np.ndarray:
    """(R, K) -> (R,), the mean over the classes that have objects."""
    present = (precision > -1).all(0)
    return precision[:, present].mean(1) if present.any() else np.zeros(len(precision))


def precision_recall_by_iou(runs: Sequence[tuple[str, CocoScores]]) -> str:
    """Precision over recall at IoU 0.5 and 0.75 and over all ten thresholds, means over the classes; a style a run."""
    drawing, axes = new_chart()
    for (name, scores), style in zip(runs, ("-", "--"), strict=False):
        rows = {"IoU 0.5": scores.precision[0], "IoU 0.75": scores.precision[5]}
        curves = {key: _curve(value) for key, value in rows.items()}
        curves["IoU 0.5 to 0.95"] = np.mean([_curve(p) for p in scores.precision], axis=0)
        for color, (key, values) in zip(("C0", "C1", "C2"), curves.items(), strict=True):
            label = f"{key}: {values.mean():.3f}" + (f" ({name})" if len(runs) > 1 else "")
            axes.plot(_RECALLS, values, style, color=color, label=label)
    return _finish(drawing, axes)


def precision_recall_by_class(scores: CocoScores) -> str:
    """Precision over recall at IoU 0.5 of each class, of the worst ones where there are many."""
    drawing, axes = new_chart()
    names = list(scores.class_ap)
    rows = [(k, scores.precision[0, :, k]) for k in range(len(names)) if (scores.precision[0, :, k] > -1).all()]
    rows.sort(key=lambda row: row[1].mean())
    for k, values in rows[:_MOST_CURVES]:
        axes.plot(_RECALLS, values, label=f"{names[k]}: {values.mean():.3f}")
    return _finish(drawing, axes)


def _finish(drawing: Any, axes: Any) -> str:
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8, loc="lower left")
    return chart(drawing)


def confusion(matrix: np.ndarray, names: Sequence[str]) -> str:
    """The matrix of `errors.confusion_matrix`, colors by the share of each row."""
    labels = [*names, "nothing"]
    side = max(4.0, min(0.45 * len(labels) + 1.5, 16))
    drawing, axes = new_chart(side, side)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="found as", ylabel="is", xticks=range(len(labels)), yticks=range(len(labels)))
    axes.set_xticklabels(labels, rotation=90, fontsize=8)
    axes.set_yticklabels(labels, fontsize=8)
    if len(labels) <= _MOST_NUMBERS:
        for row, column in np.argwhere(matrix > 0):
            color = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=color, fontsize=8)
    return chart(drawing)


def error_costs(kinds: Sequence[str], runs: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Horizontal bars of the AP that each kind of error costs, one for each run."""
    drawing, axes = new_chart(height=3.3 + 0.3 * len(runs))
    thickness = 0.8 / len(runs)
    for number, (name, values) in enumerate(runs):
        places = np.arange(len(kinds)) + (number - (len(runs) - 1) / 2) * thickness
        shown = axes.barh(places, values, thickness, label=name, color=f"C{number}")
        axes.bar_label(shown, fmt="%.3f", padding=3, fontsize=8)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set(xlabel="dAP at IoU 0.5")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    if len(runs) > 1:
        drawing.legend(fontsize=8, loc="outside upper center")
    return chart(drawing)


def reliability(runs: Sequence[tuple[str, Calibration]]) -> str:
    """The share of right detections over their score, with the number of detections below."""
    drawing, axes = new_chart()
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8, label="perfectly calibrated")
    counts = runs[0][1].counts
    edges = np.linspace(0, 1, len(counts) + 1)
    other = axes.twinx()
    other.bar(edges[:-1], counts, np.diff(edges), align="edge", color="C0", alpha=0.15)
    other.set_ylabel("detections")
    for (name, values), style in zip(runs, ("o-", "s--"), strict=False):
        there = values.counts > 0
        axes.plot(values.mean_scores[there], values.precisions[there], style, label=f"{name}: error {values.error:.3f}")
    axes.set(xlabel="score", ylabel="share that is an object", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    return chart(drawing)
