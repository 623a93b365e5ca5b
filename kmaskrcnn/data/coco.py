"""Data sets in COCO form: read, checked before training, and handed out one image at a time."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf
from pycocotools import mask as mask_utils

from kmaskrcnn.data.image_files import ImageHeader, decode_file, read_header
from kmaskrcnn.data.masks import CropCache, Segmentation, mask_frame, rasterize_polygons, resample_area
from kmaskrcnn.data.records import DataError, Problems, is_integer, parse_box, parse_segmentation


class CocoDataset:
    """Images and instances of a COCO file, as `load_coco` makes it.

    Attributes:
        class_names: names by contiguous class - 1.
        category_ids: COCO category ids by contiguous class - 1.
        image_ids: (len,) int64 COCO image ids.
        paths: image files.
        sizes: (len, 2) int32 height, width.
        by_pillow: (len,) bool, files that TensorFlow's decoders do not read.
        boxes: (A, 4) float32 yxyx pixels of every instance, clipped to its image; instances of one image together.
        classes: (A,) int32 in 1..C.
        is_crowd: (A,) bool.
        frames: (A, 4) float32 yxyx, the rectangle that each mask is cropped to: it covers box and segmentation.
        segmentations: A polygon lists or RLE.
        report: number of records left out, by reason.
    """

    def __init__(self, images: list[dict], headers: list[ImageHeader], paths: list[str], categories: list[dict]):
        self.categories = sorted(categories, key=lambda c: c["id"])
        self.class_names = [c["name"] for c in self.categories]
        self.category_ids = [c["id"] for c in self.categories]
        self.image_ids = np.array([i["id"] for i in images], np.int64)
        self.paths = paths
        self.sizes = np.array([h[:2] for h in headers], np.int32).reshape(-1, 2)
        self.by_pillow = np.array([h.by_pillow for h in headers], bool)
        self.report: collections.Counter[str] = collections.Counter()
        self.file_names = [i["file_name"] for i in images]
        self.segmentations: list[Segmentation] = []
        self._cache = CropCache()

    def _set_annotations(self, rows: list[tuple]) -> None:
        """Take (image index, class, crowd, box, frame, COCO bbox, id, area, segmentation) in any order."""
        rows.sort(key=lambda row: row[0])  # stable: the order inside an image stays that of the file
        columns = list(zip(*rows, strict=True)) or [()] * 9
        image_index, classes, crowd, boxes, frames, bboxes, ids, areas, segmentations = columns
        self.classes = np.array(classes, np.int32)
        self.is_crowd = np.array(crowd, bool)
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)
        self.frames = np.array(frames, np.float32).reshape(-1, 4)
        self.segmentations = list(segmentations)
        self._bboxes = np.array(bboxes, np.float64).reshape(-1, 4)
        self._annotation_ids = np.array(ids, np.int64)
        self._areas = np.array(areas, np.float64)
        # Instances of image i are rows _starts[i].._starts[i + 1].
        self._starts = np.searchsorted(np.array(image_index, np.int64), np.arange(len(self) + 1))

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, index: int) -> slice:
        """Rows of `boxes`, `classes`, ... that belong to the image at `index`."""
        return slice(int(self._starts[index]), int(self._starts[index + 1]))

    def masks(self, rows: np.ndarray, mask_resolution: int) -> np.ndarray:
        """(len(rows), m, m) uint8 coverage 0..255 of the cells of `frames[rows]`, at mask_resolution m."""
        masks = np.zeros((len(rows), mask_resolution, mask_resolution), np.uint8)
        for i, row in enumerate(map(int, rows)):
            segmentation, frame = self.segmentations[row], self.frames[row]
            if isinstance(segmentation, dict):
                masks[i] = resample_area(self._cache.crop(row, segmentation, frame), mask_resolution)
            else:
                masks[i] = rasterize_polygons(segmentation, frame, mask_resolution)
        return masks

    def instances(self, index: int, mask_resolution: int = 112) -> dict[str, np.ndarray]:
        """Ground truth of one image in its own pixels.

        Returns:
            boxes (N, 4) float32 yxyx, classes (N,) int32 in 1..C, is_crowd (N,) bool, masks (N, m, m) uint8 coverage
            0..255 of the cells of mask_frames (N, 4) float32 yxyx.
        """
        rows = self.rows(index)
        return {
            "boxes": self.boxes[rows].copy(),
            "classes": self.classes[rows].copy(),
            "is_crowd": self.is_crowd[rows].copy(),
            "masks": self.masks(np.arange(rows.start, rows.stop), mask_resolution),
            "mask_frames": self.frames[rows].copy(),
        }

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB pixels of one image, as stored."""
        return decode_file(tf.constant(self.paths[index]), tf.constant(bool(self.by_pillow[index]))).numpy()

    @property
    def coco_dict(self) -> dict[str, list[dict]]:
        """The kept records as a COCO dict with the file's own ids, for pycocotools; made anew at each call."""
        images = [
            {"id": int(image_id), "file_name": name, "height": int(h), "width": int(w)}
            for image_id, name, (h, w) in zip(self.image_ids, self.file_names, self.sizes, strict=True)
        ]
        annotations = []
        for index, image in enumerate(images):
            rows = self.rows(index)
            for row in range(rows.start, rows.stop):
                segmentation = self.segmentations[row]
                if isinstance(segmentation, dict):
                    segmentation = {"size": segmentation["size"], "counts": segmentation["counts"].decode()}
                else:
                    segmentation = [polygon.tolist() for polygon in segmentation]
                annotations.append(
                    {
                        "id": int(self._annotation_ids[row]),
                        "image_id": image["id"],
                        "category_id": self.category_ids[self.classes[row] - 1],
                        "iscrowd": int(self.is_crowd[row]),
                        "bbox": self._bboxes[row].tolist(),
                        "area": float(self._areas[row]),
                        "segmentation": segmentation,
                    }
                )
        return {"images": images, "annotations": annotations, "categories": self.categories}

    def summary(self) -> str:
        """A line with the counts, and one for each reason why records were left out; printed and returned."""
        empty = int(np.sum(np.diff(self._starts) == 0))
        lines = [
            f"{len(self)} images ({empty} without objects), {len(self.classes)} instances "
            f"({int(self.is_crowd.sum())} crowd), {len(self.class_names)} classes"
        ]
        lines += [f"left out: {count} x {reason}" for reason, count in sorted(self.report.items())]
        print("\n".join(lines))
        return "\n".join(lines)


def _read_json(path: str) -> dict[str, list]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such annotation file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not text.strip():
        raise DataError(f"{path}: the annotation file is empty")
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DataError(f"{path}: not a COCO instances file: no list {key!r}")
        if not tree[key]:
            raise DataError(f"{path}: the annotation file is empty: {key!r} has no records")
    return tree


def _check_categories(path: str, categories: list) -> None:
    seen = set()
    for position, category in enumerate(categories):
        good = isinstance(category, dict) and is_integer(category.get("id")) and isinstance(category.get("name"), str)
        if not good:
            raise DataError(f"{path}: categories[{position}]: needs an integer 'id' and a text 'name'")
        if category["id"] in seen:
            raise DataError(f"{path}: categories[{position}]: duplicate category id {category['id']}")
        seen.add(category["id"])


def _check_file(path: str) -> ImageHeader | OSError:
    try:
        return read_header(path)
    except OSError as error:
        return error


def _keep_images(
    records: list, images_dir: str, problems: Problems
) -> tuple[list[dict], list[ImageHeader], list[str], set]:
    """Images whose record and file are in order, and the ids of those that are not."""
    candidates, seen, dropped = [], set(), set()
    for position, image in enumerate(records):
        name = f"images[{position}]"
        keys = ("id", "height", "width")
        good = isinstance(image, dict) and all(is_integer(image.get(k)) for k in keys) and image.get("file_name")
        if not good or not isinstance(image["file_name"], str) or min(image["height"], image["width"]) < 1:
            problems.add("bad image record", name, "needs integers 'id', 'height', 'width' and a text 'file_name'")
            if isinstance(image, dict) and is_integer(image.get("id")):
                dropped.add(image["id"])
        elif image["id"] in seen:
            problems.add("duplicate image id", f"{name} ({image['file_name']})", f"duplicate image id {image['id']}")
        else:
            seen.add(image["id"])
            candidates.append(image)
    paths = [os.path.join(images_dir, image["file_name"]) for image in candidates]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        headers = list(pool.map(_check_file, paths, chunksize=64))
    kept: tuple[list, list, list] = [], [], []
    for image, header, path in zip(candidates, headers, paths, strict=True):
        record, reason = f"image {image['id']} ({path})", ""
        if isinstance(header, FileNotFoundError):
            reason, detail = "missing image", "the file is missing"
        elif isinstance(header, OSError):
            reason, detail = "unreadable image", str(header)
        elif (header.height, header.width) != (image["height"], image["width"]):
            reason = "image size differs"
            detail = f"the file has {header.width} x {header.height}, the JSON {image['width']} x {image['height']}"
            if header.turned:
                detail += "; its EXIF orientation turns it, store it upright"
        if reason:
            problems.add(reason, record, detail)
            dropped.add(image["id"])
        else:
            for column, value in zip(kept, (image, header, path), strict=True):
                column.append(value)
    return *kept, dropped - {image["id"] for image in kept[0]}


def _check_links(annotation: Any, seen: set, index_of: dict, class_of: dict) -> tuple[str, str] | None:
    """(reason, detail) if ids of an annotation are missing, repeated or unknown."""
    if not isinstance(annotation, dict) or not is_integer(annotation.get("id")):
        return "bad annotation record", "needs an integer 'id'"
    if annotation["id"] in seen:
        return "duplicate annotation id", f"duplicate annotation id {annotation['id']}"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return "bad annotation record", f"iscrowd is {annotation['iscrowd']!r}, needs 0 or 1"
    for key, known, reason in (("image_id", index_of, "unknown image"), ("category_id", class_of, "unknown category")):
        if not is_integer(annotation.get(key)) or annotation[key] not in known:
            return reason, f"{reason} id {annotation.get(key)!r}"
    return None


def _keep_annotations(records: list, dataset: CocoDataset, dropped: set, problems: Problems) -> list[tuple]:
    index_of = {int(image_id): index for index, image_id in enumerate(dataset.image_ids)}
    class_of = {category_id: index + 1 for index, category_id in enumerate(dataset.category_ids)}
    seen, rows = set(), []
    for position, annotation in enumerate(records):
        if (
            isinstance(annotation, dict)
            and is_integer(annotation.get("image_id"))
            and annotation["image_id"] in dropped
        ):
            if problems.skip:  # in error mode the image itself is the one line to read
                problems.add("annotation of an image left out", f"annotations[{position}]", "its image was left out")
            continue
        record = f"annotations[{position}]"
        if isinstance(annotation, dict):
            record += f" (id {annotation.get('id')}, image {annotation.get('image_id')})"
        if problem := _check_links(annotation, seen, index_of, class_of):
            problems.add(problem[0], record, problem[1])
            continue
        seen.add(annotation["id"])
        index = index_of[annotation["image_id"]]
        record = f"annotations[{position}] (id {annotation['id']}, {dataset.file_names[index]})"
        height, width = map(int, dataset.sizes[index])
        try:
            reason = "bad box"
            box = parse_box(annotation.get("bbox"), height, width)
            reason = "bad segmentation"
            segmentation = parse_segmentation(annotation.get("segmentation"), height, width)
        except ValueError as error:
            problems.add(reason, record, str(error))
            continue
        area = annotation.get("area")
        if not isinstance(area, int | float):
            area = _area(segmentation, height, width)
        frame = mask_frame(segmentation, box, height, width)
        crowd, number = bool(annotation.get("iscrowd", 0)), class_of[annotation["category_id"]]
        rows.append((index, number, crowd, box, frame, annotation["bbox"], annotation["id"], area, segmentation))
    return rows


def _area(segmentation: Segmentation, height: int, width: int) -> float:
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    return float(mask_utils.area(segmentation))


def load_coco(annotations_path: str, images_dir: str = "", on_bad_record: str = "error") -> CocoDataset:
    """Read a COCO instances file and check every record and every image file.

    Categories become classes 1..C in the order of their ids. Boxes that stick out of the image are clipped; boxes
    with nothing left are bad records. Image files are opened and looked at for their end mark, not decoded.

    Args:
        annotations_path: the JSON file.
        images_dir: folder of the images; empty: the folder of the JSON.
        on_bad_record: "error" raises on bad records, "skip" leaves them out and counts them in `report`.

    Raises:
        DataError: with one line a problem; for a file that is no COCO JSON or has nothing usable also under "skip".
    """
    if on_bad_record not in ("error", "skip"):
        raise ValueError(f"on_bad_record={on_bad_record!r}: choose error or skip")
    annotations_path = os.fspath(annotations_path)
    tree = _read_json(annotations_path)
    _check_categories(annotations_path, tree["categories"])
    problems = Problems(annotations_path, skip=on_bad_record == "skip")
    images_dir = os.fspath(images_dir) or os.path.dirname(annotations_path)
    images, headers, paths, dropped = _keep_images(tree["images"], images_dir, problems)
    dataset = CocoDataset(images, headers, paths, tree["categories"])
    dataset._set_annotations(_keep_annotations(tree["annotations"], dataset, dropped, problems))
    problems.finish()
    if not len(dataset):
        raise DataError("\n".join([*problems.lines, f"{annotations_path}: no usable image is left"]))
    dataset.report = problems.counts
    return dataset
