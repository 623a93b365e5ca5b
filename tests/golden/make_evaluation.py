"""What the authors' own code says of one scene: Boundary AP and TIDE's errors, in evaluation.json.

    PYTHONPATH=boundary-iou-api python tests/golden/make_evaluation.py

boundary-iou-api is a checkout of github.com/bowenc0221/boundary-iou-api (37d2558), in an environment with tidecv 1.0.1,
pycocotools and opencv-python. The file holds the scene itself, so that it does not hang on random numbers.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from boundary_iou.coco_instance_api.coco import COCO
from boundary_iou.coco_instance_api.cocoeval import COCOeval
from pycocotools import mask as mask_utils
from tidecv import TIDE, datasets

np.float = float  # which NumPy has dropped and boundary-iou-api still uses
PATH = Path(__file__).with_name("evaluation.json")
SIZES = [(120, 160), (200, 140), (90, 90), (64, 400), (150, 150), (110, 70), (480, 640)]
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 12, "name": "unseen"}]
LIMITS = (100, 6)  # detections per image that TIDE counts


def outline(rng, height, width, center, radius) -> list[float]:
    """A star of random rays as a COCO polygon; it may lie partly beyond the image."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 14))
    rays = radius * rng.uniform(0.6, 1.1, 14)
    points = np.stack([center[1] + rays * np.cos(angles), center[0] + rays * np.sin(angles)], 1)
    return np.clip(points, 0, [width, height]).round(2).reshape(-1).tolist()


def as_rle(polygons, height, width, hole=None) -> dict:
    mask = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, height, width)))
    if hole:
        mask[hole[0] : hole[1], hole[2] : hole[3]] = 0
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def moved(polygon, rng, shift, height, width) -> list[float]:
    points = np.array(polygon).reshape(-1, 2) + rng.normal(0, 0.6, (len(polygon) // 2, 2)) + shift
    return np.clip(points, 0, [width, height]).reshape(-1).tolist()


def scene() -> tuple[dict, list[dict]]:
    """Objects, some truncated, with holes or crowds; and detections with every kind of error and equal scores."""
    rng = np.random.default_rng(11)
    annotations, results, images = [], [], []
    for image_id, (height, width) in enumerate(SIZES, 1):
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width})

        def detect(polygon, category, score, rng=rng, image_id=image_id, height=height, width=width):
            rle = as_rle([polygon], height, width)
            if mask_utils.area(rle):
                box = [round(float(v + rng.normal(0, 0.3)), 2) for v in mask_utils.toBbox(rle)]
                row = {"image_id": image_id, "category_id": category, "score": round(float(score), 2)}
                results.append({**row, "bbox": box, "segmentation": rle})

        for number in range(0 if image_id == 6 else 9):  # one image without objects
            radius = rng.uniform(5, min(height, width) / 4)
            polygon = outline(rng, height, width, (rng.uniform(0, height), rng.uniform(0, width)), radius)
            rle = as_rle([polygon], height, width)
            if mask_utils.area(rle) < 12:
                continue
            y, x = np.argwhere(mask_utils.decode(rle)).mean(0).astype(int)
            holed = as_rle([polygon], height, width, (y, y + int(radius / 3), x, x + int(radius / 3)))
            record = {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": int(number == 8)}
            segmentation = [polygon] if number % 3 == 0 and number != 8 else holed if number % 3 == 1 else rle
            area = float(mask_utils.area(rle if isinstance(segmentation, list) else segmentation))
            box = mask_utils.toBbox(rle).tolist()
            category = int(rng.choice([3, 7]))
            annotations.append({**record, "category_id": category, "bbox": box, "area": area})
            annotations[-1]["segmentation"] = segmentation
            if image_id == 5:  # one image without detections
                continue
            kind, other = number % 6, 10 - category
            if kind in (0, 1, 2) and number != 2:
                detect(moved(polygon, rng, 0, height, width), category, rng.uniform(0.3, 1))
            if kind in (1, 3):
                detect(moved(polygon, rng, radius * 0.6, height, width), category, rng.uniform(0.1, 1))  # off
            if kind in (2, 3):
                detect(moved(polygon, rng, 0.5, height, width), other, rng.uniform(0.1, 1))  # wrong class
            if kind == 4:
                detect(moved(polygon, rng, radius * 0.7, height, width), other, rng.uniform(0.1, 1))  # both
            if kind == 0:
                detect(moved(polygon, rng, 0.5, height, width), category, rng.uniform(0.1, 0.6))  # again
            if number == 8:
                detect(moved(polygon, rng, 0, height, width), category, 0.7)  # in the crowd
        if image_id != 5:
            for category in (3, 7, 12):
                center = (rng.uniform(0, height), rng.uniform(0, width))
                detect(outline(rng, height, width, center, 8), category, rng.uniform(0, 0.9))  # nothing there
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}, results


def boundary(folder: Path, truth: Path, results: list[dict]) -> dict:
    path = folder / "masks.json"  # without boxes, as their areas would stand for those of the masks
    path.write_text(json.dumps([{k: v for k, v in r.items() if k != "bbox"} for r in results]))
    coco = COCO(str(truth), get_boundary=True, dilation_ratio=0.02)
    evaluation = COCOeval(coco, coco.loadRes(str(path)), iouType="boundary", dilation_ratio=0.02)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1].mean(1)
    return {"stats": evaluation.stats.tolist(), "precision_by_iou_and_class": precision.tolist()}


def tide(truth: Path, found: Path) -> dict:
    values = {}
    for limit in LIMITS:
        for kind, mode in (("box", TIDE.BOX), ("mask", TIDE.MASK)):
            objects, detections = datasets.COCO(str(truth)), datasets.COCOResult(str(found))
            objects.max_dets = limit
            run = TIDE(mode=mode).evaluate(objects, detections)
            main = {error.short_name: value for error, value in run.fix_main_errors().items()}
            special = {error.short_name: value for error, value in run.fix_special_errors().items()}
            values[f"{kind} {limit}"] = {"ap": run.ap, "main": main, "special": special}
    return values


def main() -> None:
    truth, results = scene()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "truth.json").write_text(json.dumps(truth))
        (folder / "results.json").write_text(json.dumps(results))
        values = {"truth": truth, "results": results}
        values["boundary"] = boundary(folder, folder / "truth.json", results)
        values["tide"] = tide(folder / "truth.json", folder / "results.json")
    PATH.write_text(json.dumps(values) + "\n")
    print(json.dumps(values["tide"], indent=1), len(truth["annotations"]), len(results), PATH.stat().st_size)


if __name__ == "__main__":
    main()
