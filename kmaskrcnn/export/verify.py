"""An exported model compared with the original, on real images."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.evaluation.coco_metrics import score
from kmaskrcnn.export.client import ImageError, ServingError
from kmaskrcnn.progress import Progress
from kmaskrcnn.results.prediction import Prediction

Predict = Callable[[str], Prediction]

# Detections of the model with a lower score are not looked for in the artifact. In drawn images, which are not what the
# model was trained for, scores are low; below its score_threshold, 0.05, it finds nothing.
MIN_SCORE, _MIN_SCORE_DRAWN = 0.3, 0.1
_MATCH_IOU = 0.5


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What an artifact may differ by.

    Attributes:
        matched: smallest share of the model's detections that the artifact must find again.
        within: share of these whose box, score and mask must each lie within the bounds below.
        box: difference of a coordinate of a matched box, as a share of the box's side.
        score: difference of a matched score.
        mask: difference of a matched mask's probability, the largest of its pixels.
        ap: largest loss of box or mask AP.
    """

    matched: float
    within: float
    box: float
    score: float
    mask: float
    ap: float


# By quantization, and of a SavedModel. Where numbers differ at all, in their last digits or because weights are
# rounded, NMS and top-k now and then keep the other of two candidates of almost equal score, with quite another box and
# mask: no bound holds for every detection.
BOUNDS = {
    "saved_model": Bounds(matched=1.0, within=1.0, box=1e-2, score=1e-3, mask=1e-2, ap=1e-3),
    "none": Bounds(matched=0.99, within=0.99, box=1e-3, score=5e-4, mask=2e-3, ap=1e-3),
    "float16": Bounds(matched=0.99, within=0.95, box=0.01, score=0.02, mask=0.1, ap=5e-3),
    "dynamic": Bounds(matched=0.9, within=0.75, box=0.1, score=0.1, mask=0.6, ap=1e-2),
    "int8": Bounds(matched=0.9, within=0.75, box=0.1, score=0.1, mask=0.6, ap=1e-2),
}

# PointRend refines a mask's most uncertain cells. Of two that differ in their last digits the other one may be taken,
# and then a cell has its interpolated value in one of the masks.
_WITHIN_POINTS = 0.99


def bounds_of(form: str, point_rend: bool) -> Bounds:
    """What an artifact may differ by.

    Args:
        form: a key of BOUNDS.
        point_rend: whether the model has PointRend masks.
    """
    bounds = BOUNDS[form]
    return dataclasses.replace(bounds, within=min(bounds.within, _WITHIN_POINTS)) if point_rend else bounds


@dataclasses.dataclass(frozen=True)
class Report:
    """The outcome: lines of a table, what exceeds its bound, and whether the artifact can be used nevertheless."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]
    verdict: str

    def __str__(self) -> str:
        problems = (f"OUT OF BOUNDS: {problem}" for problem in self.problems)
        return "\n".join((*self.lines, *problems, f"verdict                    {self.verdict}"))


class Differences:
    """Differences over pairs of predictions, one of each kind for each pair of detections.

    Args:
        min_score: detections of the model with a lower score are not looked for.
    """

    def __init__(self, min_score: float = MIN_SCORE):
        self.min_score = min_score
        self.images = self.expected = self.found = self.fallen = 0
        self.box: list[float] = []
        self.score: list[float] = []
        self.mask: list[float] = []

    def add(self, expected: Prediction, found: Prediction) -> None:
        """Count what an image adds; detections are matched by class and IoU, the best pairs first."""
        self.images += 1
        self.found += int(np.sum(found.scores >= self.min_score))
        rows = np.flatnonzero(expected.scores >= self.min_score)
        self.expected += len(rows)
        if not len(rows) or not len(found):
            return
        overlaps = _iou(expected.boxes[rows], found.boxes)
        overlaps = np.where(expected.classes[rows, None] == found.classes[None], overlaps, 0.0)
        for _ in range(len(rows)):
            i, j = np.unravel_index(np.argmax(overlaps), overlaps.shape)
            if overlaps[i, j] < _MATCH_IOU:
                break
            overlaps[i], overlaps[:, j] = 0.0, 0.0
            self._compare(expected, int(rows[i]), found, int(j))

    def _compare(self, expected: Prediction, i: int, found: Prediction, j: int) -> None:
        box = expected.boxes[i]
        sides = np.maximum(box[2:] - box[:2], 1.0)
        self.box.append(float(np.max(np.abs(box - found.boxes[j]) / np.tile(sides, 2))))
        self.score.append(float(abs(expected.scores[i] - found.scores[j])))
        if expected.mask_scores is not None:  # that there are none is the largest difference
            theirs = math.nan if found.mask_scores is None else found.mask_scores[j]
            self.score[-1] = float(np.maximum(self.score[-1], abs(expected.mask_scores[i] - theirs)))
        self.fallen += int(found.scores[j] < self.min_score)
        own, other = expected.mask_probabilities, found.mask_probabilities
        assert own is not None and other is not None  # exported models see an image whole, without tiles
        self.mask.append(float(np.max(np.abs(own[i] - other[j]))))


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, 4) and (M, 4) yxyx -> (N, M)."""
    xywh = [np.concatenate([x[:, [1, 0]], x[:, [3, 2]] - x[:, [1, 0]]], 1) for x in (a, b)]
    # pycocotools reads the memory as it lies.
    own, other = (np.ascontiguousarray(x, np.float64) for x in xywh)
    return np.asarray(mask_utils.iou(own, other, [0] * len(b)))


def verify(
    images: Sequence[str],
    reference: Predict,
    artifact: Predict,
    bounds: Bounds,
    truth: tuple[dict, Sequence[int]] | None = None,
    drawn: bool = False,
) -> Report:
    """Run both on the same images and compare.

    Args:
        images: files.
        reference: the model in this process.
        artifact: what was exported, in its own runtime; an ImageError or ServingError of it leaves the image out.
        bounds: what it may differ by.
        truth: a COCO instances dict and the image id of each image, for AP.
        drawn: the images are drawn: lower scores are compared too, and that nothing is found is no problem.
    """
    differences = Differences(_MIN_SCORE_DRAWN if drawn else MIN_SCORE)
    progress = Progress("images compared", len(images))
    results: tuple[list[dict], list[dict]] = ([], [])
    refused, seconds, ids = [], ([], []), []
    for number, path in enumerate(images):
        start = time.perf_counter()
        expected = reference(path)
        middle = time.perf_counter()
        try:
            found = artifact(path)
        except (ImageError, ServingError) as error:
            refused.append(f"{path}: {error}")
            continue
        finally:
            progress.step()
        for list_, duration in zip(seconds, (middle - start, time.perf_counter() - middle), strict=True):
            list_.append(duration)
        differences.add(expected, found)
        if truth is not None:
            ids.append(int(truth[1][number]))
            for list_, prediction in zip(results, (expected, found), strict=True):
                list_ += prediction.to_coco(ids[-1])
    progress.clear()
    lines, problems = _judge(differences, bounds)
    fails = bool(differences.expected) and len(differences.box) < bounds.matched * differences.expected
    if truth is not None and ids:
        for kind in ("box", "mask"):
            own, other = (score(truth[0], r, kind, _most(r), image_ids=ids).summary["AP"] for r in results)
            lines.append(f"{kind} AP on {len(ids)} images       {own:.4f} in the model, {other:.4f} exported")
            if own - other > bounds.ap:
                problems.append(f"{kind} AP falls by {own - other:.4f}, more than {bounds.ap}")
                fails = True
    if seconds[0]:
        own, other = (statistics.median(s) * 1000 for s in seconds)
        lines.append(
            f"milliseconds per image      {own:.0f} in the model, {other:.0f} exported (median, files included)"
        )
    lines += [f"refused: {line}" for line in refused]
    if not differences.images:
        problems.append("no image could be compared")
    elif not differences.expected and not drawn:
        problems.append(f"the model finds nothing with a score of at least {MIN_SCORE} in these images")
    return Report(tuple(lines), tuple(problems), _verdict(differences, problems, fails, bool(ids), drawn))


def _verdict(d: Differences, problems: list[str], fails: bool, with_truth: bool, drawn: bool) -> str:
    """Whether the artifact can be used, and otherwise what to do."""
    if not d.images:
        return "not known: give images that the exported model can read"
    if drawn and not d.expected:
        return "not known: the model finds nothing in drawn images; compare on yours with --verify_images"
    if drawn and not problems:
        return "usable: it finds what the model finds in drawn images; AP is not known without a validation set"
    if not d.expected:
        return "not known, nothing was compared: train on, or verify on images with objects that the model finds"
    if not problems:
        return "usable: it finds what the model finds"
    if fails:
        return (
            "not usable: it does not find what the model finds; quantize less, or calibrate on more images like yours"
        )
    if with_truth:
        return "usable: single detections differ by more than they should, but AP holds"
    return "not known: verify on images with ground truth, and use it if AP holds"


def _most(results: list[dict]) -> int:
    """Detections an image that count: COCO's 100, or more where a model gives more."""
    numbers: dict[int, int] = {}
    for result in results:
        numbers[result["image_id"]] = numbers.get(result["image_id"], 0) + 1
    return max(100, *numbers.values()) if numbers else 100


def _judge(d: Differences, bounds: Bounds) -> tuple[list[str], list[str]]:
    matched = len(d.box)
    lines = [
        f"images compared            {d.images}",
        f"detections above {d.min_score}       {d.expected} in the model, {d.found} exported",
    ]
    if not d.expected:
        return lines, []
    share = matched / d.expected
    fallen = f"; of these, {d.fallen} score below {d.min_score} in the exported model" if d.fallen else ""
    lines.append(
        f"matched                    {matched} of {d.expected} ({share:.1%}), at least {bounds.matched:.0%}{fallen}"
    )
    problems = [] if share >= bounds.matched else [f"only {share:.1%} of the model's detections are matched"]
    for name, values, bound in (
        ("box (share of side)", d.box, bounds.box),
        ("score", d.score, bounds.score),
        ("mask probability", d.mask, bounds.mask),
    ):
        # Falling, NaN first: it must not hide behind the numbers.
        falling = -np.sort(-np.nan_to_num(values, nan=np.inf))
        others = matched - math.ceil(bounds.within * matched)
        value, worst = (falling[others], falling[0]) if matched else (0.0, 0.0)
        lines.append(f"{name:<26} {bounds.within:.0%} within {value:.2e}, bound {bound:g}; worst {worst:.2e}")
        if not value <= bound:
            problems.append(f"{name} differs by {value:.2e}, more than {bound:g}")
    return lines, problems
