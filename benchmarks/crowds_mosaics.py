"""Mosaics with a wanted number of objects, made of the images of a set: COCO JSON and PNG files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.results.mask_paste import window_to_rle

# Ground between the cells, about the mean of photographs.
_GROUND, _GAP = (124, 116, 104), 4


def make_mosaics(dataset: Any, folder: Path, objects: int, count: int, side: int, seed: int = 0) -> Path:
    """Write mosaics; returns their instances.json.

    Args:
        dataset: the `CocoDataset` whose images are the cells.
        folder: for the files.
        objects: an image has this number of objects: cells are added until it is reached, each in its turn that has
            no more of them than are missing; fewer where none fits.
        count: number of mosaics.
        side: cells are images scaled to this long side.
        seed: of the order of the images, and of how they are turned and mirrored.
    """
    path = folder / "instances.json"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    order: list[int] = []
    sizes = [dataset.rows(i).stop - dataset.rows(i).start for i in range(len(dataset))]
    for number in range(1, count + 1):
        cells: list[tuple[np.ndarray, list[tuple[int, np.ndarray]]]] = []
        missing = objects
        while missing:
            if not any(sizes[i] <= missing for i in order):
                order += [i for i in rng.permutation(len(dataset)).tolist() if sizes[i]]
            chosen = next((i for i in order if sizes[i] <= missing), None)
            if chosen is None:
                break
            order.remove(chosen)
            cells.append(_cell(dataset, chosen, side, int(rng.integers(8))))
            missing -= len(cells[-1][1])
        picture, masks = _lay_out(cells, side)
        name = f"{number:03d}.png"
        Image.fromarray(picture).save(folder / name)
        height, width = picture.shape[:2]
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for category, (window, top, left) in masks:
            rle = window_to_rle(window, top, left, height, width)
            record = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0}
            record |= {"area": int(window.sum()), "bbox": mask_utils.toBbox(rle).tolist()}
            annotations.append({**record, "segmentation": {**rle, "counts": rle["counts"].decode()}})
    tree = {"images": images, "annotations": annotations, "categories": dataset.categories}
    path.write_text(json.dumps(tree))
    return path


def _cell(dataset: Any, index: int, side: int, way: int) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """An image scaled, turned and mirrored, and the category and mask of each object of which pixels are left."""
    pixels = dataset.image(index)
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX if scale < 1 else 2))
    rows, found = dataset.rows(index), []
    for row in range(rows.start, rows.stop):
        if dataset.is_crowd[row]:
            continue
        segmentation = dataset.segmentations[row]
        if isinstance(segmentation, list):
            segmentation = mask_utils.merge(
                mask_utils.frPyObjects([p.ravel().tolist() for p in segmentation], height, width)
            )
        mask = Image.fromarray(mask_utils.decode(segmentation) * 255).resize(size, Image.Resampling.BOX)
        mask = np.asarray(mask) > 127
        if mask.any():
            found.append((dataset.category_ids[dataset.classes[row] - 1], _turned(mask, way)))
    return _turned(pixels, way).copy(), found


def _turned(array: np.ndarray, way: int) -> np.ndarray:
    """One of the eight ways to turn and mirror an array (H, W, ...)."""
    return np.rot90(array if way < 4 else array[:, ::-1], way % 4)


def _lay_out(cells: list, side: int) -> tuple[np.ndarray, list]:
    """The picture of cells in rows, and (category, (window, top, left)) of each object."""
    columns = int(np.ceil(np.sqrt(len(cells))))
    pitch = side + _GAP
    picture = np.empty((-(-len(cells) // columns) * pitch, columns * pitch, 3), np.uint8)
    picture[:] = _GROUND
    masks = []
    for number, (pixels, found) in enumerate(cells):
        top, left = number // columns * pitch, number % columns * pitch
        picture[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        masks += [(category, (mask, top, left)) for category, mask in found]
    return picture, masks
