"""COCO average precision by pycocotools, and the share of right objects at a working score."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from kmaskrcnn.evaluation.boundary import BoundaryEval
from kmaskrcnn.evaluation.error_kinds import ranking_score
from kmaskrcnn.evaluation.sparse_eval import SparseCOCOeval

# Detections of an image that COCO counts; more where an image of the set has more objects.
_COCO_DETECTIONS = 100
# IoU thresholds at which objects are counted.
COUNT_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)


@dataclasses.dataclass(frozen=True)
class CocoScores:
    """The COCO metrics of boxes or of masks; -1 if there is nothing to score.

    Attributes:
        summary: AP, AP50, AP75, APs, APm, APl (areas below 32^2, below 96^2, above), AR1, AR10 and AR at the maximum
            number of detections.
        class_ap: AP by class name.
        class_summary: the columns of `summary` other than AR1 and AR10, by class name.
        counts: by IoU of 0.5 to 0.9, (TP, FP, FN) over all images of the detections above the working score.
        precision: (T, R, K) at IoU thresholds 0.5, 0.55, ... 0.95, recalls 0, 0.01, ... 1 and classes; -1 for a class
            without objects.
        max_detections: the maximum number of detections of `AR`: detections of an image that count, the best ones.
    """

    summary: dict[str, float]
    class_ap: dict[str, float]
    class_summary: dict[str, dict[str, float]]
    counts: dict[float, tuple[int, int, int]]
    precision: np.ndarray
    max_detections: int = _COCO_DETECTIONS

    def overlap_scores(self) -> list[float]:
        """TP / (TP + FP + FN) at each of COUNT_IOUS, the measure of the 2018 Data Science Bowl over the whole set."""
        return [tp / total if (total := tp + fp + fn) else -1.0 for tp, fp, fn in self.counts.values()]


def score(
    ground_truth: dict,
    results: Sequence[dict],
    kind: str,
    max_detections: int = 0,
    working_score: float = 0.5,
    image_ids: Sequence[int] | None = None,
) -> CocoScores:
    """Score results in COCO form.

    Args:
        ground_truth: a COCO instances dict.
        results: dicts of image_id, category_id, score, bbox xywh, segmentation (RLE; only for masks); may be empty.
            Masks rank by `mask_score` where there is one (mask_scoring).
        kind: "box", "mask", or "boundary" for masks by the smaller of mask IoU and boundary IoU (Boundary AP).
        max_detections: detections per image that count, the best ones; 0: COCO's 100, or as many as the fullest image
            has objects where that is more.
        working_score: detections above this score, the one by which they rank, enter the counts.
        image_ids: score only these images; default: all.
    """
    if kind not in ("box", "mask", "boundary"):
        raise ValueError(f"kind={kind!r}: choose box, mask or boundary")
    max_detections = max_detections or default_max_detections(ground_truth, image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        # pycocotools marks what is not matched by 0, so ids start from 1.
        truth = _index(ground_truth, [{**a, "id": i} for i, a in enumerate(ground_truth["annotations"], 1)])
        detections = _index(ground_truth, _annotations(results, kind))
        evaluator = BoundaryEval if kind == "boundary" else SparseCOCOeval
        coco_eval = evaluator(truth, detections, "bbox" if kind == "box" else "segm")
        coco_eval.params.maxDets = sorted({min(1, max_detections), min(10, max_detections), max_detections})
        if image_ids is not None:
            coco_eval.params.imgIds = sorted(int(i) for i in image_ids)
        coco_eval.evaluate()
        coco_eval.accumulate()
    names = _names(ground_truth["categories"])
    # (IoU, recall, class, area, detections) of precision and (IoU, class, area, detections) of recall
    precision, recall = coco_eval.eval["precision"], coco_eval.eval["recall"]
    summary = _summary(precision, recall)
    middle = {"AR1": _mean(recall[:, :, 0, 0]), "AR10": _mean(recall[:, :, 0, min(1, recall.shape[-1] - 1)])}
    summary = {**{k: v for k, v in summary.items() if k != "AR"}, **middle, "AR": summary["AR"]}
    class_summary = {
        names[c]: _summary(precision[:, :, k : k + 1], recall[:, k : k + 1])
        for k, c in enumerate(coco_eval.params.catIds)
    }
    class_ap = {name: values["AP"] for name, values in class_summary.items()}
    counts = _counts(coco_eval, working_score)
    return CocoScores(summary, class_ap, class_summary, counts, precision[:, :, :, 0, -1], max_detections)


def default_max_detections(ground_truth: dict, image_ids: Sequence[int] | None = None) -> int:
    """Detections of an image that count: COCO's 100, or as many as the fullest image has objects where that is more."""
    return max(_COCO_DETECTIONS, most_objects(ground_truth, image_ids))


def most_objects(ground_truth: dict, image_ids: Sequence[int] | None = None) -> int:
    """Objects of the fullest of these images (default: of all) of a COCO instances dict, crowd regions left out."""
    wanted = None if image_ids is None else set(image_ids)
    owners = (a["image_id"] for a in ground_truth["annotations"] if not a.get("iscrowd"))
    return max(collections.Counter(i for i in owners if wanted is None or i in wanted).values(), default=0)


def _names(categories: Sequence[dict]) -> dict[int, str]:
    """Names by id, those that occur twice with their ids."""
    count = collections.Counter(c["name"] for c in categories)
    return {c["id"]: c["name"] if count[c["name"]] == 1 else f"{c['name']} (id {c['id']})" for c in categories}


def _summary(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    areas = {"s": 1, "m": 2, "l": 3}
    return {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
        **{f"AP{name}": _mean(precision[:, :, :, area, -1]) for name, area in areas.items()},
        "AR": _mean(recall[:, :, 0, -1]),
    }


def _index(ground_truth: dict, annotations: Sequence[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": ground_truth["images"],
        "categories": ground_truth["categories"],
        "annotations": list(annotations),
    }
    coco.createIndex()
    return coco


def _annotations(results: Sequence[dict], kind: str) -> list[dict]:
    """Results with the fields that COCOeval reads. The area, by which sizes are told, is the mask's own for masks."""
    annotations = []
    for number, result in enumerate(results, 1):
        if kind == "box":
            own = {"bbox": result["bbox"], "area": result["bbox"][2] * result["bbox"][3]}
        else:
            rle = result["segmentation"]
            own = {"segmentation": rle, "area": float(mask_utils.area(rle))}
        common = {name: result[name] for name in ("image_id", "category_id")}
        annotations.append({"id": number, "iscrowd": 0, **common, "score": ranking_score(result, kind), **own})
    return annotations


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _counts(coco_eval: SparseCOCOeval, working_score: float) -> dict[float, tuple[int, int, int]]:
    """(TP, FP, FN) by IoU. Matching goes by decreasing score, so what lies below working_score changes nothing."""
    params = coco_eval.params
    rows = [int(np.argmin(np.abs(params.iouThrs - iou))) for iou in COUNT_IOUS]
    images_a_class = len(params.areaRng) * len(params.imgIds)
    totals = np.zeros((len(rows), 3), np.int64)
    for category in range(len(params.catIds)):
        first = category * images_a_class  # evalImgs runs over classes, areas (all of them first) and images
        for found in coco_eval.evalImgs[first : first + len(params.imgIds)]:
            if found is None:
                continue
            above = np.array(found["dtScores"]) > working_score
            objects = int((np.array(found["gtIgnore"]) == 0).sum())
            for i, row in enumerate(rows):
                counted = above & (found["dtIgnore"][row] == 0)
                right = int((counted & (found["dtMatches"][row] > 0)).sum())
                totals[i] += right, int(counted.sum()) - right, objects - right
    return {iou: (int(a), int(b), int(c)) for iou, (a, b, c) in zip(COUNT_IOUS, totals, strict=True)}
