"""Tiled prediction of a large mosaic beside prediction of each of its images alone.

python -m benchmarks.tiling --model_dir=DIR --annotations=FILE --images=FOLDER [--height=6000 --width=8000]

The images of a set are laid out in rows, over and over, turned and mirrored, on ground of the color
that the network's padding has. Both predictions are scored on the same cells by COCO's measures; what tiles found
is cut to the cell that holds its center, or the nearest one.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
from absl import app, flags
from pycocotools import mask as mask_utils

_MODEL = flags.DEFINE_string("model_dir", None, "Folder of a trained model.", required=True)
_ANNOTATIONS = flags.DEFINE_string("annotations", None, "COCO JSON of the images.", required=True)
_IMAGES = flags.DEFINE_string("images", "", "Folder of the images; empty: that of the JSON.")
_HEIGHT = flags.DEFINE_integer("height", 6000, "Of the mosaic, in pixels.")
_WIDTH = flags.DEFINE_integer("width", 8000, "Of the mosaic, in pixels.")
_TILE = flags.DEFINE_integer("tile", 512, "Side of a tile.")
_OVERLAP = flags.DEFINE_integer("overlap", 128, "Pixels that tiles share.")
_GAP = flags.DEFINE_integer("gap", 16, "Pixels between images.")
_OVERLAY = flags.DEFINE_string("overlay", "", "File for an image of the mosaic with what tiles found.")
_GROUND = (124, 116, 104)


@dataclasses.dataclass
class _Cell:
    top: int
    left: int
    pixels: np.ndarray
    masks: list[tuple[np.ndarray, dict[str, Any]]]  # (height, width) bool and annotation of each object


def _turned(array: np.ndarray, way: int) -> np.ndarray:
    """One of the eight ways to turn and mirror an array (H, W, ...)."""
    return np.rot90(array if way < 4 else array[:, ::-1], way % 4)


def _cells(dataset: Any, height: int, width: int, gap: int) -> list[_Cell]:
    """Images in rows, as many as fit."""
    annotations: dict[int, list[dict]] = {}
    for annotation in dataset.coco_dict["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    order = sorted(range(len(dataset)), key=lambda i: int(dataset.sizes[i].max()))  # even rows
    cells, top, left, row = [], 0, 0, 0
    for way in range(8):
        for index in order:
            pixels = _turned(dataset.image(index), way)
            h, w = pixels.shape[:2]
            if left + w > width:
                top, left, row = top + row + gap, 0, 0
            if top + h > height:
                return cells
            masks = []
            for annotation in annotations.get(int(dataset.image_ids[index]), []):
                segmentation, size = annotation["segmentation"], map(int, dataset.sizes[index])
                rle = segmentation
                if isinstance(segmentation, list):
                    rle = mask_utils.merge(mask_utils.frPyObjects(segmentation, *size))
                masks.append((_turned(mask_utils.decode(rle).astype(bool), way), annotation))
            cells.append(_Cell(top, left, pixels, masks))
            left, row = left + w + gap, max(row, h)
    return cells


def _truth(cells: list[_Cell], categories: list[dict]) -> dict[str, list[dict]]:
    images, annotations = [], []
    for image_id, cell in enumerate(cells, 1):
        height, width = cell.pixels.shape[:2]
        images.append({"id": image_id, "file_name": str(image_id), "height": height, "width": width})
        for mask, annotation in cell.masks:
            rle = mask_utils.encode(np.asfortranarray(mask, np.uint8))
            own = {"id": len(annotations) + 1, "image_id": image_id, "segmentation": rle, "area": int(mask.sum())}
            annotations.append({**annotation, **own, "bbox": mask_utils.toBbox(rle).tolist()})
    return {"images": images, "annotations": annotations, "categories": categories}


def _in_cells(prediction: Any, cells: list[_Cell]) -> list[dict]:
    """What was found in the mosaic, as results of the cells."""
    from kmaskrcnn.results.pasted_masks import cut_window

    frames = np.array([(c.top, c.left, c.top + c.pixels.shape[0], c.left + c.pixels.shape[1]) for c in cells])
    results = []
    for index in range(len(prediction)):
        center = (prediction.boxes[index, :2] + prediction.boxes[index, 2:]) / 2
        outside = np.maximum(frames[:, :2] - center, 0) + np.maximum(center - frames[:, 2:], 0)
        nearest = int(np.abs(outside).max(1).argmin())
        rle = mask_utils.encode(np.asfortranarray(cut_window(prediction.window(index), *frames[nearest]), np.uint8))
        results.append(
            {
                "image_id": nearest + 1,
                "category_id": prediction.labels.category_ids[prediction.classes[index] - 1],
                "score": float(prediction.scores[index]),
                "bbox": mask_utils.toBbox(rle).tolist(),
                "segmentation": rle,
            }
        )
    return results


def main(argv: list[str]) -> None:
    from kmaskrcnn.data import load_coco
    from kmaskrcnn.evaluation import score
    from kmaskrcnn.inference.predictor import Predictor
    from kmaskrcnn.training.summaries import peak_memory_gb

    dataset = load_coco(_ANNOTATIONS.value, _IMAGES.value)
    cells = _cells(dataset, _HEIGHT.value, _WIDTH.value, _GAP.value)
    mosaic = np.empty((_HEIGHT.value, _WIDTH.value, 3), np.uint8)
    mosaic[:] = _GROUND
    for cell in cells:
        h, w = cell.pixels.shape[:2]
        mosaic[cell.top : cell.top + h, cell.left : cell.left + w] = cell.pixels
    objects = sum(len(cell.masks) for cell in cells)
    print(f"mosaic of {mosaic.shape[1]} x {mosaic.shape[0]}: {len(cells)} images, {objects} objects")
    tiled = Predictor.from_directory(_MODEL.value, tile_size=_TILE.value, tile_overlap=_OVERLAP.value)
    tiled.predict(mosaic[: _TILE.value, : _TILE.value].copy())  # traces the graph
    print(f"peak memory before: {peak_memory_gb():.2f} GB, of which the mosaic is {mosaic.nbytes / 1e9:.2f}")
    start = time.monotonic()
    prediction = tiled.predict(mosaic)
    print(f"tiled: {len(prediction)} objects in {time.monotonic() - start:.0f} s, peak {peak_memory_gb():.2f} GB")
    results = {"tiled": _in_cells(prediction, cells), "each image alone": []}
    if _OVERLAY.value:
        prediction.draw().save(_OVERLAY.value)
    plain = Predictor.from_directory(_MODEL.value)
    start = time.monotonic()
    for image_id, cell in enumerate(cells, 1):
        results["each image alone"] += plain.predict(np.ascontiguousarray(cell.pixels)).to_coco(image_id)
    print(f"each image alone: {time.monotonic() - start:.0f} s")
    truth = _truth(cells, dataset.categories)
    limit = plain.config.evaluation.eval_max_detections
    for name, found in results.items():
        for kind in ("box", "mask"):
            scores = score(truth, found, kind, limit)
            shown = "  ".join(f"{key} {scores.summary[key]:.3f}" for key in ("AP", "AP50", "AP75"))
            overlap = scores.overlap_scores()
            print(f"{name:<17} {kind:<5} {shown}  TP/(TP+FP+FN) at 0.5: {overlap[0]:.3f}, at 0.7: {overlap[2]:.3f}")


if __name__ == "__main__":
    app.run(main)
