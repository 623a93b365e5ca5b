"""What AP does not tell: errors by kind, the quality of edges, and the scores to work with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from kmaskrcnn.evaluation.coco_metrics import CocoScores, default_max_detections, score
from kmaskrcnn.evaluation.error_kinds import ImageMatches, match_images
from kmaskrcnn.evaluation.score_thresholds import ScoreThreshold, best_thresholds
from kmaskrcnn.evaluation.tide import TideErrors, tide_errors


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The errors of a model on a data set.

    Attributes:
        boundary: Boundary AP, the scores of the masks by the smaller of mask IoU and boundary IoU.
        tide: the AP that each kind of error costs, of "box" and "mask".
        thresholds: the score threshold of best F1, by class name.
        matches: which detections are right, image by image.
    """

    boundary: CocoScores
    tide: dict[str, TideErrors]
    thresholds: dict[str, ScoreThreshold]
    matches: list[ImageMatches]

    def scalars(self) -> dict[str, float]:
        """boundary_AP, mask_dAP/Loc, score_threshold/CLASS, F1/CLASS, ECE/CLASS ... by name."""
        values = {f"boundary_{name}": value for name, value in self.boundary.summary.items()}
        values |= {f"boundary_AP/{name}": value for name, value in self.boundary.class_ap.items()}
        for kind, errors in self.tide.items():
            values |= {f"{kind}_dAP/{name}": value for name, value in (errors.main | errors.special).items()}
        for name, best in self.thresholds.items():
            if best.threshold is not None:
                values |= {f"score_threshold/{name}": best.threshold, f"F1/{name}": best.f1}
            if best.calibration_error is not None:
                values[f"ECE/{name}"] = best.calibration_error
        return values

    def table(self) -> str:
        """Errors and thresholds as lines of text."""
        kinds = [*self.tide["mask"].main, *self.tide["mask"].special]
        lines = ["AP50 that errors cost (TIDE)", " " * 8 + "".join(f"{kind:>9}" for kind in kinds)]
        for name, errors in self.tide.items():
            costs = errors.main | errors.special
            lines.append(f"{name:<8}" + "".join(f"{costs[kind]:9.3f}" for kind in kinds))
        width = max(map(len, ["class", *self.thresholds]))
        lines.append(f"{'class':<{width}}  best F1  at score  F1 at 0.5    ECE")
        for name, best in self.thresholds.items():
            threshold, error = (
                "-" if value is None else f"{value:.3f}" for value in (best.threshold, best.calibration_error)
            )
            lines.append(f"{name:<{width}}{best.f1:9.3f} {threshold:>9} {best.f1_at_working_score:10.3f} {error:>6}")
        return "\n".join(lines)


def analyze(ground_truth: dict, results: Sequence[dict], image_ids: Sequence[int], max_detections: int = 0) -> Analysis:
    """Find the errors in the detections of images.

    Args:
        ground_truth: a COCO instances dict.
        results: detections with masks, as COCO results.
        image_ids: the images.
        max_detections: detections per image that count for Boundary AP and TIDE, the best ones; 0: as for `score`.
    """
    max_detections = max_detections or default_max_detections(ground_truth, image_ids)
    matches = match_images(ground_truth, results, image_ids)
    return Analysis(
        score(ground_truth, results, "boundary", max_detections, image_ids=image_ids),
        {kind: tide_errors(ground_truth, results, kind, max_detections, image_ids) for kind in ("box", "mask")},
        best_thresholds(matches, {c["id"]: c["name"] for c in ground_truth["categories"]}),
        matches,
    )
