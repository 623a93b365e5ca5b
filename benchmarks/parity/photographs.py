"""Detections on photographs, from the files, beside those of another program; their COCO scores."""

import json

import numpy as np
from pycocotools import mask as mask_utils

from benchmarks.parity.compare import match
from kmaskrcnn.evaluation import score
from kmaskrcnn.inference.predictor import Predictor

# From a file two detections are one where their IoU and the distance of their scores are within these.
FILE_IOU, FILE_SCORE, FILE_BOUND = 0.99, 0.005, 0.01
PIXELS_BOUND = 1e-4  # share of the pixels of pasted masks


def coco_results(image_ids, found):
    """Predictions as COCO results of one class: random weights name no object, but they place boxes and masks."""
    results = [r for image_id, prediction in zip(image_ids, found, strict=True) for r in prediction.to_coco(image_id)]
    return [result | {"category_id": 1} for result in results]


def one_class(folder):
    """The ground truth of a COCO set, every object of the class 1."""
    truth = json.loads(next(folder.glob("instances_*.json")).read_text())
    annotations = [a | {"category_id": 1} for a in truth["annotations"]]
    return truth | {"annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def compare_scores(table, name, prefix, truth, ids, ours, theirs, bounds):
    """COCO scores of our predictions and of theirs (boxes, scores, classes, packed masks)."""
    our_results, their_results = coco_results(ids, ours), []
    for image_id, (boxes, scores, _, masks), own in zip(ids, theirs, ours, strict=True):
        masks = np.unpackbits(masks, axis=-1, count=own.width)
        for box, score_, mask in zip(boxes.tolist(), scores.tolist(), masks, strict=True):
            code = mask_utils.encode(np.asfortranarray(mask))
            y0, x0, y1, x1 = box
            base = {"image_id": image_id, "category_id": 1, "score": score_, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            their_results.append(base | {"segmentation": {"size": code["size"], "counts": code["counts"].decode()}})
    for kind in ("box", "mask"):
        own, other = (score(truth, x, kind, image_ids=ids).summary for x in (our_results, their_results))
        for key, bound in bounds.items():
            print(f"{name} {prefix} {kind} {key} on {len(ids)} images: {own[key]:.6f} and {other[key]:.6f}")
            table.add(name, f"{prefix} {kind} {key} (absolute)", abs(own[key] - other[key]), bound)


def theirs_of(dump):
    """Their detections on the photographs of a COCO set."""
    parts = ("boxes", "scores", "classes", "masks")
    return [[dump[f"{part}{i}"] for part in parts] for i in range(len(dump["image_ids"]))]


def compare_files(table, name, imported, dump, folder):
    """From the files of photographs, as a user has them: our decoder, resizing and padding beside theirs.

    Args:
        table: gets the rows.
        name: of the model.
        imported: as `import_file` gave it.
        dump: image_ids, and by image boxes, scores, classes, and masks packed along their rows.
        folder: of the COCO set.
    """
    predictor = Predictor(imported.model, imported.config, imported.labels)
    truth = one_class(folder)
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    ids, theirs, ours = dump["image_ids"].tolist(), theirs_of(dump), []
    paired, total, pixels = 0, 0, []
    for image_id, (boxes, scores, classes, masks) in zip(ids, theirs, strict=True):
        own = predictor.predict(str(next(folder.glob(f"*/{names[image_id]}"))))
        ours.append(own)
        pairs = match(own.boxes, boxes, own.classes, classes, own.scores, scores, FILE_IOU, FILE_SCORE)
        paired, total = paired + 2 * len(pairs), total + len(own) + len(boxes)
        masks = np.unpackbits(masks, axis=-1, count=own.width).astype(bool)
        pixels += [np.mean(own.mask(i) != masks[j]) for i, j in pairs]
    if not total:
        raise SystemExit(f"{name}: neither side finds anything, so there is nothing to compare: train for more steps")
    print(f"{name} from {len(ids)} files: {paired / 2:.0f} of {total / 2:.0f} detections agree")
    table.add(name, "from the file: detections without a partner (share)", 1 - paired / total, FILE_BOUND)
    table.add(name, "from the file: pasted masks (share of pixels)", float(np.mean(pixels)), PIXELS_BOUND)
    compare_scores(table, name, "from the file:", truth, ids, ours, theirs, {"AP": 5e-4, "AP75": 1e-3})
