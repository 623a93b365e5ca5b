"""Data sets in COCO form, whatever their file format: checked before training, read one image at a time."""

from __future__ import annotations

import collections
import re

import numpy as np
import tensorflow as tf

from kmaskrcnn.data.image_files import decode_file
from kmaskrcnn.data.sets.check_record import is_id
from kmaskrcnn.data.sets.check_set import (
    CheckedImages,
    check_annotations,
    check_categories,
    check_images,
    error_lines,
    raise_errors,
)
from kmaskrcnn.data.sets.defects import DEFECTS, WARNING, Findings
from kmaskrcnn.data.sets.masks import CropCache, Segmentation, mask_frame, rasterize_polygons, resample_area
from kmaskrcnn.data.sets.raw_set import RawSet
from kmaskrcnn.errors import DataError, counted

_LOST = "annotation of an image left out"


class CocoDataset:
    """Images and instances of a data set, as `load_dataset` and `load_coco` make it.

    Attributes:
        class_names: names by contiguous class - 1.
        category_ids: COCO category ids by contiguous class - 1.
        image_ids: (len,) int64 COCO image ids.
        paths: image files, or the TFRecord shards that hold the images.
        spans: (len, 2) int64, where in its file an image lies: offset and length in bytes; length -1: all of it.
        sizes: (len, 2) int32 height, width.
        by_pillow: (len,) bool, files that TensorFlow's decoders do not read.
        turns: (len,) int32, the EXIF orientation to apply: 1 if the pixels are used as stored.
        boxes: (A, 4) float32 yxyx pixels of every instance, clipped to its image; instances of one image together.
        classes: (A,) int32 in 1..C.
        is_crowd: (A,) bool.
        frames: (A, 4) float32 yxyx, the rectangle that each mask is cropped to: it covers box and segmentation.
        segmentations: A polygon lists or RLE.
        report: number of records left out, by the name of the defect.
        warnings: number of records that were kept with a warning, by the name of the defect.
    """

    def __init__(self, checked: CheckedImages, categories: list[dict]):
        images = checked.records
        self.categories = sorted(categories, key=lambda c: c["id"])
        self.class_names = [c["name"] for c in self.categories]
        self.category_ids = [c["id"] for c in self.categories]
        self.image_ids = np.array([i["id"] for i in images], np.int64)
        self.paths = checked.paths
        self.sizes = np.array([(i["height"], i["width"]) for i in images], np.int32).reshape(-1, 2)
        self.by_pillow = np.array([h.by_pillow for h in checked.headers], bool)
        self.turns = np.array(checked.turns, np.int32)
        spans = [(i["offset"], i["length"]) if "shard" in i else (0, -1) for i in images]
        self.spans = np.array(spans, np.int64).reshape(-1, 2)
        self.report: collections.Counter[str] = collections.Counter()
        self.warnings: collections.Counter[str] = collections.Counter()
        self._findings = Findings()
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

    def instances(
        self, index: int, mask_resolution: int = 112, window: tuple[int, int, int, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Ground truth of one image in its own pixels.

        Args:
            index: of the image.
            mask_resolution: m.
            window: (y, x, height, width) of the part of the image that objects must reach into; default: all of it.

        Returns:
            boxes (N, 4) float32 yxyx, classes (N,) int32 in 1..C, is_crowd (N,) bool, masks (N, m, m) uint8 coverage
            0..255 of the cells of mask_frames (N, 4) float32 yxyx.
        """
        own = self.rows(index)
        rows = np.arange(own.start, own.stop)
        if window is not None:
            y, x, height, width = window
            boxes = self.boxes[rows]
            rows = rows[((boxes[:, 2:] > (y, x)) & (boxes[:, :2] < (y + height, x + width))).all(axis=1)]
        return {
            "boxes": self.boxes[rows],
            "classes": self.classes[rows],
            "is_crowd": self.is_crowd[rows],
            "masks": self.masks(rows, mask_resolution),
            "mask_frames": self.frames[rows],
        }

    def image(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB pixels of one image, in the orientation of its annotations."""
        path, by_pillow = tf.constant(self.paths[index]), tf.constant(bool(self.by_pillow[index]))
        return decode_file(path, by_pillow, tf.constant(self.spans[index]), int(self.turns[index])).numpy()

    def read_problem(self, index: int) -> str:
        """Why the pixels of an image cannot be read or differ from its record; empty if all is well."""
        try:
            shape = self.image(index).shape[:2]
        except tf.errors.NotFoundError:
            return "the file is missing"
        except (tf.errors.OpError, OSError) as error:
            text = re.sub(r"\{\{.*?\}\}\s*|\[Op:.*|\s*\[\[.*", "", (str(error).splitlines() or [""])[0])
            return f"it cannot be decoded: {text.strip()[:200]}"
        stated = tuple(self.sizes[index].tolist())
        return "" if shape == stated else f"it has {shape[1]} x {shape[0]} pixels now, not {stated[1]} x {stated[0]}"

    @property
    def coco_dict(self) -> dict[str, list[dict]]:
        """The kept records as a COCO dict with the ids of the file, for pycocotools; a new one at each call."""
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
        """Print and return a line with the counts, and one for each reason why records were left out."""
        empty = int(np.sum(np.diff(self._starts) == 0))
        lines = [
            f"{counted(len(self), 'image')} ({empty} without objects), {counted(len(self.classes), 'instance')} "
            f"({int(self.is_crowd.sum())} crowd), {counted(len(self.class_names), 'class', 'classes')}",
            *self._findings.reasons(),
        ]
        if lost := self.report[_LOST]:
            lines.append(f"left out: {lost} x {_LOST}")
        print("\n".join(lines))
        return "\n".join(lines)


def dataset_of(raw: RawSet, on_bad_record: str = "error") -> CocoDataset:
    """Check a raw set; raises as `load_dataset` does."""
    findings, skip = Findings(), on_bad_record == "skip"
    findings.all += raw.problems
    categories, category_target = check_categories(raw, findings)
    images = check_images(raw, findings)
    dataset = CocoDataset(images, categories)
    index_of = {image["id"]: index for index, image in enumerate(images.records)}
    class_of = {number: i for i, number in enumerate(dataset.category_ids, 1)}
    target = dict.fromkeys(images.dropped, -1) | {number: number for number in index_of}
    rows = []
    for one in check_annotations(raw, {i["id"]: i for i in images.records}, target, category_target, findings):
        if one.bad:
            continue
        index = index_of[one.record["image_id"]]
        height, width = (int(side) for side in dataset.sizes[index])
        x, y, w, h = map(float, one.record["bbox"])
        box = max(y, 0.0), max(x, 0.0), min(y + h, float(height)), min(x + w, float(width))
        frame = mask_frame(one.mask.segmentation, box, height, width)
        number, crowd = class_of[one.record["category_id"]], bool(one.record["iscrowd"])
        links = (one.record["bbox"], one.record["id"], one.area, one.mask.segmentation)
        rows.append((index, number, crowd, box, frame, *links))
    dataset._set_annotations(rows)
    if not skip:
        raise_errors(findings, raw.source)
    if not len(dataset):
        raise DataError("\n".join([*error_lines(findings, raw.source), f"{raw.source}: no usable image is left"]))
    dataset.report = collections.Counter(f.code for f in findings.errors())
    if lost := sum(_image_of(a) in images.dropped for a in raw.annotations):
        dataset.report[_LOST] = lost
    dataset._findings = findings
    dataset.warnings = collections.Counter(f.code for f in findings.all if DEFECTS[f.code].grade == WARNING)
    return dataset


def _image_of(annotation: object) -> int | None:
    number = annotation.get("image_id") if isinstance(annotation, dict) else None
    return number if is_id(number) else None
