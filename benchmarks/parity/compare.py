"""Comparing lists of boxes one to one, and the table of results."""

import pathlib

import numpy as np

IOU_BOUND = 0.999
SCORE_BOUND = 1e-3
# Boxes whose edges are all this near, in pixels, are one: of a sliver at the border, rounding alone moves the IoU far.
SAME_EDGES = 1e-3


def relative(ours, theirs):
    """Largest difference as a share of the reference's largest magnitude."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        return np.inf
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max()) if theirs.size else 0.0


def iou(a, b):
    """(N, 4) and (M, 4) yxyx -> (N, M), in float64."""
    a, b = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    overlap = np.prod(np.maximum(sides, 0), axis=-1)
    area_a, area_b = (np.prod(x[..., 2:] - x[..., :2], axis=-1) for x in (a, b))
    return overlap / np.maximum(area_a + area_b - overlap, 1e-12)


def match(
    boxes_a,
    boxes_b,
    classes_a=None,
    classes_b=None,
    scores_a=None,
    scores_b=None,
    iou_bound=IOU_BOUND,
    score_bound=SCORE_BOUND,
):
    """Pairs of rows (i, j) of equal class and close score, with an IoU above the bound or equal edges, each once."""
    edges = np.abs(np.asarray(boxes_a, np.float64)[:, None] - np.asarray(boxes_b, np.float64)[None]).max(axis=-1)
    overlap = np.where(edges < SAME_EDGES, 1 - edges * (1 - iou_bound), iou(boxes_a, boxes_b))
    if classes_a is not None:
        overlap = np.where(classes_a[:, None] == classes_b[None], overlap, 0.0)
    if scores_a is not None:
        overlap = np.where(np.abs(scores_a[:, None] - scores_b[None]) < score_bound, overlap, 0.0)
    rows, columns = np.nonzero(overlap > iou_bound)
    pairs, used_a, used_b = [], set(), set()
    for k in np.argsort(-overlap[rows, columns], kind="stable"):
        i, j = int(rows[k]), int(columns[k])
        if i not in used_a and j not in used_b:
            pairs.append((i, j))
            used_a.add(i)
            used_b.add(j)
    return pairs


class Found:
    """Boxes with their classes and scores, if they have any."""

    def __init__(self, boxes, classes=None, scores=None, masks=None):
        self.boxes, self.classes, self.scores, self.masks = boxes, classes, scores, masks

    def unmatched(self, other):
        """Rows of self and of other without a partner, and the pairs."""
        pairs = match(self.boxes, other.boxes, self.classes, other.classes, self.scores, other.scores)
        own = sorted(set(range(len(self.boxes))) - {i for i, _ in pairs})
        others = sorted(set(range(len(other.boxes))) - {j for _, j in pairs})
        return own, others, pairs

    def row(self, i):
        box = ", ".join(f"{x:.2f}" for x in self.boxes[i])
        return f"[{box}]" + ("" if self.classes is None else f" class {self.classes[i]} score {self.scores[i]:.5f}")


def unexplained(ours, theirs, disturbed):
    """Compare two results and sort what differs into ties and the rest.

    A tie is what the reference itself changes when its features move by rounding: a row of ours that one of its
    disturbed runs has too, or a row of its own that one of them lacks.

    Returns:
        rows that differ and are no tie (count), lines that list the ties, pairs.
    """
    own, others, pairs = ours.unmatched(theirs)
    seen, stable = set(), set(others)
    for run in disturbed:
        missing, _, _ = ours.unmatched(run)
        seen |= set(own) - set(missing)
        gone, _, _ = theirs.unmatched(run)
        stable -= set(gone)
    lines = [f"only ours: {ours.row(i)}" for i in own if i in seen]
    lines += [f"only torchvision's: {theirs.row(j)}" for j in others if j not in stable]
    rest = [f"NOT A TIE, only ours: {ours.row(i)}" for i in own if i not in seen]
    rest += [f"NOT A TIE, only torchvision's: {theirs.row(j)}" for j in sorted(stable)]
    return len(rest), lines + rest, pairs


class Table:
    """Results by model and stage; keeps the worst over the cases."""

    def __init__(self):
        self.rows = {}
        self.ties = []
        self.notes = []

    def add(self, model, stage, error, bound):
        worst, _ = self.rows.get((model, stage), (0.0, bound))
        self.rows[model, stage] = (max(worst, error) if not np.isnan(error) else np.inf, bound)

    def failed(self):
        return [key for key, (error, bound) in self.rows.items() if error > bound]

    def markdown(self):
        models = list(dict.fromkeys(model for model, _ in self.rows))
        stages = list(dict.fromkeys(stage for _, stage in self.rows))
        lines = ["| stage | bound | " + " | ".join(models) + " |", "| --- | --- |" + " --- |" * len(models)]
        for stage in stages:
            cells = [self.rows.get((model, stage)) for model in models]
            bound = next(cell[1] for cell in cells if cell)
            texts = ["" if c is None else f"{c[0]:.1e}" + ("" if c[0] <= c[1] else " **over**") for c in cells]
            lines.append(f"| {stage} | {bound:g} | " + " | ".join(texts) + " |")
        return "\n".join(lines)

    def finish(self, heading, path):
        """Print the table, write it to the file at `path` if there is one, and return the exit status."""
        text = heading + "\n\n" + self.markdown() + "\n\n" + "".join(f"- {line}\n" for line in self.notes) + "\n"
        text += f"Ties ({len(self.ties)}):\n\n" + "".join(f"- {line}\n" for line in self.ties or ["none"])
        print(text)
        if path:
            pathlib.Path(path).write_text(text)
        failed = self.failed()
        print("FAILED: " + "; ".join(map(" ".join, failed)) if failed else "within all bounds")
        return 1 if failed else 0
