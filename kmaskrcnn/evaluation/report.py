"""The evaluation report: one HTML file that holds everything, images included."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from kmaskrcnn import report_page
from kmaskrcnn.config import ConfigError
from kmaskrcnn.data import CocoDataset
from kmaskrcnn.evaluation import report_figures as figures
from kmaskrcnn.evaluation.analysis import Analysis, analyze
from kmaskrcnn.evaluation.coco_metrics import COUNT_IOUS, CocoScores, score
from kmaskrcnn.evaluation.error_kinds import ImageMatches, calibration, confusion_matrix, to_rle
from kmaskrcnn.evaluation.evaluator import Evaluation, evaluation_outputs
from kmaskrcnn.progress import Progress
from kmaskrcnn.report_page import figure, jpeg, row
from kmaskrcnn.results.draw import draw_instances
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.mask_paste import rle_to_window
from kmaskrcnn.results.pasted_masks import PastedMasks

_WORST, _BEST, _CHANGED = 6, 4, 3
_IMAGE_SIDE = 900
_RESULT = {"image_id", "category_id", "score", "bbox", "segmentation"}
_RIGHT, _FALSE, _MISSED = (60, 200, 90), (240, 70, 50), (255, 210, 0)
_ERRORS = {
    "Cls": "wrong class, on an object",
    "Loc": "right class, IoU of 0.1 to 0.5",
    "Both": "wrong class, IoU of 0.1 to 0.5",
    "Dupe": "an object that was found before",
    "Bkg": "nothing is there",
    "Miss": "an object without a Cls or Loc error on it",
    "FalsePos": "all false positives",
    "FalseNeg": "all missed objects",
}


@dataclasses.dataclass(frozen=True)
class _Run:
    """One run's results on the data set."""

    name: str
    box: CocoScores
    mask: CocoScores
    analysis: Analysis

    @property
    def boundary(self) -> CocoScores:
        return self.analysis.boundary

    @property
    def matches(self) -> list[ImageMatches]:
        return self.analysis.matches

    @property
    def f1(self) -> list[float]:
        return [image.f1 for image in self.matches]


def write_report(
    directory: str | Path,
    evaluation: Evaluation,
    dataset: CocoDataset,
    labels: Labels,
    name: str,
    max_detections: int = 0,
    compare: str | Path = "",
    read: Iterable[str | Path] = (),
) -> Path:
    """Write report.html, score_thresholds.json, scores.json, and results.json, with which another report can compare.

    Args:
        directory: the folder; created if necessary.
        evaluation: the result of `evaluate`.
        dataset: the data set that was evaluated.
        labels: class names and COCO ids of the model.
        name: name of the run.
        max_detections: as for `score`.
        compare: folder with the results.json of another run on the same data set; empty: none.
        read: files that were read besides the images, such as the annotations; no output replaces them.

    Returns:
        The path of the page.

    Raises:
        ConfigError: there are no results to compare with, or they are of other images.
        OutputError: a file exists that an earlier evaluation did not write.
    """
    read = [*dataset.paths, *read, *([compared_file(compare)] if compare else [])]
    outputs, _ = evaluation_outputs(directory, list(evaluation.overlays), read, "report.html")
    ids = dataset.image_ids[: evaluation.images].tolist()
    truth = dataset.coco_dict
    if evaluation.analysis is None:
        evaluation = dataclasses.replace(evaluation, analysis=analyze(truth, evaluation.results, ids, max_detections))
    assert evaluation.analysis is not None
    own = _Run(name, evaluation.box, evaluation.mask, evaluation.analysis)
    other = _compared_run(compare, dataset, evaluation.images, max_detections) if compare else None
    evaluation.write(directory, read)
    sections = {
        "Average precision": _precision_section(own, other, truth, evaluation),
        "Kinds of error": _errors_section(own, other),
        "Precision and recall": _curves_section(own, other),
        "Confusion": _confusion_section(own, labels, dataset),
        "Score thresholds": _thresholds_section(own, other),
        "Calibration": _calibration_section(own, other),
        "Worst images": "",
        "Best images": "",
    }
    order = sorted(range(len(ids)), key=lambda i: (own.f1[i], -sum(own.matches[i].counts[1:])))
    worst = [i for i in order if own.f1[i] < 1][:_WORST]
    best = [i for i in sorted(order, key=lambda i: (-own.f1[i], -own.matches[i].counts[0])) if i not in worst][:_BEST]
    changed = _changed(own, other) if other else []
    progress = Progress("images of the report", len(worst) + len(best) + 2 * len(changed))
    sections["Worst images"] = _gallery(own, worst, dataset, progress)
    sections["Best images"] = _gallery(own, best, dataset, progress)
    if other:
        sections["Images that changed most"] = _changes_section(own, other, changed, dataset, progress)
    progress.clear()
    page = report_page.page(f"Evaluation of {name}", _headline(own, other, evaluation), sections)
    return Path(outputs.write_text("report.html", page))


def compared_file(directory: str | Path) -> Path:
    """The file with the results of a run to compare with."""
    return Path(directory).expanduser() / "results.json"


def read_compared(directory: str | Path, dataset: CocoDataset, count: int) -> list[dict]:
    """The results of another run on the first `count` images of a data set.

    Raises:
        ConfigError: there are none, or they are of other images or of fewer.
    """
    path, ids = compared_file(directory), dataset.image_ids.tolist()
    try:
        results = json.loads(path.read_text())
        scores = path.with_name("scores.json")
        images = json.loads(scores.read_text()).get("images", count) if scores.exists() else count
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"compare={directory}: no results of another run there ({error})") from None
    if not isinstance(results, list) or not all(isinstance(r, dict) and r.keys() >= _RESULT for r in results):
        raise ConfigError(f"compare={directory}: its results.json is not that of an evaluation")
    if unknown := {r["image_id"] for r in results} - set(ids):
        raise ConfigError(f"compare={directory}: its results are of other images, such as id {min(unknown)}")
    if images < count:
        raise ConfigError(f"compare={directory}: it was scored on {images} images, and this run is on {count}")
    chosen = set(ids[:count])
    return [r for r in results if r["image_id"] in chosen]


def _compared_run(directory: str | Path, dataset: CocoDataset, count: int, max_detections: int) -> _Run:
    results, truth = read_compared(directory, dataset, count), dataset.coco_dict
    ids = dataset.image_ids[:count].tolist()
    box, mask = (score(truth, results, kind, max_detections, image_ids=ids) for kind in ("box", "mask"))
    return _Run(str(directory), box, mask, analyze(truth, results, ids, max_detections))


# Sections


def _headline(own: _Run, other: _Run | None, evaluation: Evaluation) -> str:
    totals = np.sum([m.counts for m in own.matches], axis=0)
    text = (
        f"{evaluation.images} images, {int(totals[0] + totals[2])} objects. At a score of at least 0.5 and a mask IoU "
        f"of 0.5: {totals[0]} true positives, {totals[2]} missed, {totals[1]} false positives."
    )
    return f"<p>{text}</p>" + (f"<p>Compared with <b>{html.escape(other.name)}</b>.</p>" if other else "")


def _precision_section(own: _Run, other: _Run | None, truth: dict, evaluation: Evaluation) -> str:
    parts = []
    numbers = {c["id"]: c["name"] for c in truth["categories"]}
    objects: dict[str, int] = {}
    for annotation in (o for image in own.matches for o in image.objects):
        objects[numbers[annotation["category_id"]]] = objects.get(numbers[annotation["category_id"]], 0) + 1
    for kind, title in (("mask", "masks"), ("boundary", "boundaries"), ("box", "boxes")):
        scores: CocoScores = getattr(own, kind)
        theirs = getattr(other, kind) if other else None
        columns = [c for c in scores.summary if c not in ("AR1", "AR10")]
        rows = [("all", sum(objects.values()), scores.summary, theirs.summary if theirs else None)]
        if len(scores.class_summary) > 1:
            for name, values in scores.class_summary.items():
                rows.append((name, objects.get(name, 0), values, theirs.class_summary[name] if theirs else None))
        body = []
        for index, (name, count, values, old) in enumerate(rows):
            cells = [html.escape(name), str(count), *(_cell(values[c], old[c] if old else None) for c in columns)]
            body.append(f"<tr{' class=all' if not index else ''}>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
        parts.append(_table([title, "objects", *columns], body))
    shares = ", ".join(f"{v:.3f} at {iou}" for iou, v in zip(COUNT_IOUS, evaluation.mask.overlap_scores(), strict=True))
    note = (
        "COCO metrics: AP is the mean over IoU 0.50 to 0.95; s, m, l are objects below 32<sup>2</sup>, below "
        "96<sup>2</sup> and above, by area in pixels; - where there are none. Boundaries: Boundary AP, by the smaller "
        "of mask IoU and the IoU of the strips along the edges, as wide as 2 % of the image's diagonal. "
        f"Masks above a score of 0.5, TP / (TP + FP + FN): {shares}."
    )
    return "".join(parts) + f"<p>{note}</p>"


def _cell(value: float | None, old: float | None = None, better: int = 1) -> str:
    """A value with its change; better: 1 where more is better, else -1."""
    if value is None or value < 0:
        return "-"
    text = f"{value:.3f}"
    if old is None or old < 0:
        return text
    change = value - old
    return f'{text} <span class="{"up" if change * better >= 0 else "down"}">{change:+.3f}</span>'


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{head}</th>" for head in heads)
    return f"<table class=numbers><tr>{cells}</tr>{''.join(rows)}</table>"


def _errors_section(own: _Run, other: _Run | None) -> str:
    rows = []
    for kind, meaning in _ERRORS.items():
        costs = ((_cost(own, of, kind), _cost(other, of, kind) if other else None) for of in ("mask", "box"))
        cells = [_cell(value, old, better=-1) for value, old in costs]
        rows.append(f"<tr><td>{kind}</td>{''.join(f'<td>{c}</td>' for c in cells)}<td class=text>{meaning}</td></tr>")
    runs = [run for run in (own, other) if run]
    kinds = list(_ERRORS)
    drawings = (
        figures.error_costs(kinds, [(run.name, [_cost(run, of, kind) for kind in kinds]) for run in runs])
        for of in ("mask", "box")
    )
    captions = [f"What each kind of error costs in AP at IoU 0.5, {of}." for of in ("masks", "boxes")]
    note = (
        "dAP (TIDE): how much AP at IoU 0.5 would rise if all errors of this kind, and no others, were corrected. The "
        "values do not add up to what AP lacks."
    )
    return (
        row(figure(d, c) for d, c in zip(drawings, captions, strict=True))
        + _table(["error", "masks", "boxes", ""], rows)
        + f"<p>{note}</p>"
    )


def _cost(run: _Run, of: str, kind: str) -> float:
    errors = run.analysis.tide[of]
    return (errors.main | errors.special)[kind]


def _thresholds_section(own: _Run, other: _Run | None) -> str:
    rows = []
    for name, best in own.analysis.thresholds.items():
        old = other.analysis.thresholds[name] if other else None
        cells = [html.escape(name), str(best.objects), _cell(best.threshold), _cell(best.precision), _cell(best.recall)]
        cells.append(_cell(best.f1, old.f1 if old else None))
        cells.append(_cell(best.f1_at_working_score, old.f1_at_working_score if old else None))
        cells.append(_cell(best.calibration_error, old.calibration_error if old else None, better=-1))
        rows.append(f"<tr>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    heads = ["class", "objects", "threshold", "precision", "recall", "F1", "F1 at 0.5", "calibration error"]
    note = (
        "The score threshold of each class with the best F1 on these images, masks at IoU 0.5, with its precision "
        "and recall; - where no detection is right. <code>kmaskrcnn predict --score_thresholds=FILE</code> with "
        "score_thresholds.json uses them. With few objects a threshold says little of other images."
    )
    return _table(heads, rows) + f"<p>{note}</p>"


def _curves_section(own: _Run, other: _Run | None) -> str:
    runs = [(own.name, own.mask)] + ([(other.name, other.mask)] if other else [])
    drawings = [figures.precision_recall_by_iou(runs)]
    if len(own.mask.class_ap) > 1:
        drawings.append(figures.precision_recall_by_class(own.mask))
    captions = ("Masks, mean over the classes.", "Masks at IoU 0.5, classes of lowest precision first.")
    return row(figure(d, c) for d, c in zip(drawings, captions, strict=False))


def _confusion_section(own: _Run, labels: Labels, dataset: CocoDataset) -> str:
    names = dict(zip(labels.category_ids, labels.class_names, strict=True))
    matrix = confusion_matrix(own.matches, dataset.category_ids)
    drawing = figures.confusion(matrix, [names[i] for i in dataset.category_ids])
    caption = (
        "Masks with a score of at least 0.5 and the objects that they match with an IoU of at least 0.5, of any "
        "class. Last row: false positives on the background; last column: missed objects."
    )
    return row([figure(drawing, caption)])


def _calibration_section(own: _Run, other: _Run | None) -> str:
    runs = [(run.name, calibration(run.matches)) for run in (own, other) if run]
    caption = "Share of masks by score that match an object (IoU 0.5); bars: count; error: expected calibration error."
    return row([figure(figures.reliability(runs), caption)])


def _gallery(run: _Run, indices: Sequence[int], dataset: CocoDataset, progress: Progress) -> str:
    if not indices:
        return "<p>None.</p>"
    return _key() + row(_matches_figure(run.matches[i], i, dataset, progress) for i in indices)


def _key() -> str:
    names = ((_RIGHT, "correct"), (_FALSE, "false positive, or wrong class"), (_MISSED, "missed"))
    return "<p>" + "".join(f'<span class="key" style="background:rgb{c}"></span>{n}' for c, n in names) + "</p>"


def _matches_figure(image: ImageMatches, index: int, dataset: CocoDataset, progress: Progress, title: str = "") -> str:
    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    drawn = draw_matches(image, dataset.image(index), names)
    progress.step()
    right, false, missed = image.counts
    text = f"{title}{image.image['file_name']}: {right} correct, {false} false, {missed} missed"
    return figure(jpeg(drawn, _IMAGE_SIDE), text)


def draw_matches(image: ImageMatches, pixels: np.ndarray, names: dict[int, str]) -> Image.Image:
    """An image with its errors: false positives and missed objects with their names, true positives without."""
    rows = []
    for i in np.flatnonzero(image.shown):
        result = image.results[i]
        name = names.get(result["category_id"], "?")
        right = image.matched[i] >= 0
        taken = image.taken_for[i]
        truth = f", is {names[image.objects[taken]['category_id']]}" if taken >= 0 else f" {result['score']:.2f}"
        rows.append((result, _RIGHT if right else _FALSE, "" if right else name + truth))
    covered = set(image.taken_for[image.taken_for >= 0].tolist())
    for i in np.flatnonzero(~image.found):
        if i not in covered:
            rows.append((image.objects[i], _MISSED, names[image.objects[i]["category_id"]]))
    rows.sort(key=lambda row: row[1] == _RIGHT)  # errors are drawn last, on top
    boxes = np.array([[y, x, y + h, x + w] for (x, y, w, h) in (row[0]["bbox"] for row in rows)], np.float32)
    masks = PastedMasks(rle_to_window(to_rle(record, image.image)) for record, _, _ in rows)
    return draw_instances(pixels, boxes.reshape(-1, 4), masks, [r[2] for r in rows], [r[1] for r in rows])


def _changed(own: _Run, other: _Run) -> list[int]:
    gain = np.subtract(own.f1, other.f1)
    order = np.argsort(gain, kind="stable")
    losses = [int(i) for i in order[:_CHANGED] if gain[i] < 0]
    return [int(i) for i in order[::-1][:_CHANGED] if gain[i] > 0] + losses


def _changes_section(own: _Run, other: _Run, indices: list[int], dataset: CocoDataset, progress: Progress) -> str:
    gain = np.subtract(own.f1, other.f1)
    text = (
        f"F1 of an image (score 0.5, mask IoU 0.5) against {html.escape(other.name)}: better on "
        f"{int((gain > 0).sum())}, worse on {int((gain < 0).sum())}, equal on {int((gain == 0).sum())}."
    )
    rows = []
    for i in indices:
        both = (_matches_figure(run.matches[i], i, dataset, progress, f"{run.name}, ") for run in (own, other))
        rows.append(f"<h3>F1 {other.f1[i]:.2f} &rarr; {own.f1[i]:.2f}</h3>" + row(both))
    return f"<p>{text}</p>" + "".join(rows)
