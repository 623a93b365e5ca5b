"""Readers of the forms that data sets come in, all into one (`kmaskrcnn.data.sets.raw_set`)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence

from kmaskrcnn.data import files
from kmaskrcnn.data.readers.coco_json import INSTANCES, is_coco, read_coco
from kmaskrcnn.data.readers.cvat import is_cvat, read_cvat
from kmaskrcnn.data.readers.json_file import read_json
from kmaskrcnn.data.readers.label_studio import is_label_studio, read_label_studio
from kmaskrcnn.data.readers.labelme import is_labelme, read_labelme
from kmaskrcnn.data.readers.mask_files import is_mask_folder, read_mask_files, read_semantic_masks
from kmaskrcnn.data.readers.tfrecord import is_shards, read_tfrecord
from kmaskrcnn.data.readers.via import is_via, read_via
from kmaskrcnn.data.readers.voc import is_voc, list_root, read_voc
from kmaskrcnn.data.readers.yolo import is_yolo, read_yolo
from kmaskrcnn.data.sets.raw_set import RawSet, order_classes, rename_classes
from kmaskrcnn.errors import DataError
from kmaskrcnn.results.labels import Labels

_READERS: dict[str, Callable[[str, str], RawSet]] = {
    "coco": read_coco,
    "labelme": read_labelme,
    "via": read_via,
    "voc": read_voc,
    "masks": read_mask_files,
    "semantic_masks": read_semantic_masks,
    "tfrecord": read_tfrecord,
    "yolo": read_yolo,
    "cvat": read_cvat,
    "label_studio": read_label_studio,
}
FORMATS = tuple(_READERS)
_JSON_FORMS = (("coco", is_coco), ("labelme", is_labelme), ("via", is_via), ("label_studio", is_label_studio))
_WHOLE_BYTES = 10**7


def recognize(path: str) -> str:
    """The form of a set, one of FORMATS, by its path and what is there; raises DataError where it cannot be told."""
    if is_shards(path):
        return "tfrecord"
    if is_yolo(path):
        return "yolo"
    if is_cvat(path):
        return "cvat"
    if files.is_folder(path):
        return _recognize_folder(path)
    if path.lower().endswith(".csv"):
        return "via"
    if list_root(path):
        return "voc"
    form = _recognize_json(path)
    if form == "labelme":
        raise DataError(f"{path}: one LabelMe file; name the folder of all of them")
    return form or "coco"


def _recognize_json(path: str) -> str:
    """The form of a JSON file: labelme, via, coco, or empty where it is none of them or cannot be read."""
    try:
        size = files.size(path)
        if size > _WHOLE_BYTES:  # COCO's own are hundreds of megabytes, and are not parsed twice
            if files.read_bytes(path, 0, 64).lstrip().startswith(b"["):
                return "label_studio"
            head = files.read_bytes(path, 0, _WHOLE_BYTES)
            if re.search(rb'"shapes"\s*:\s*\[', head):  # with its photograph in it
                return "labelme"
            return "via" if b'"regions"' in head else "coco"
        tree = read_json(path)
    except (OSError, DataError):
        return ""
    return next((name for name, test in _JSON_FORMS if test(tree)), "")


def _recognize_folder(path: str) -> str:
    if is_voc(path):
        return "voc"
    for name in files.matching(path, "*.json"):
        form = _recognize_json(os.path.join(path, name))
        if form == "labelme":
            return form
        if form:
            raise DataError(f"{path}: name the file in it, such as {os.path.join(path, name)}")
    if is_mask_folder(path):
        return "masks"
    raise DataError(f"{path}: not a known data set format ({', '.join(FORMATS)}); data_format forces one")


def read_raw(
    path: str,
    images_dir: str = "",
    data_format: str = "auto",
    class_names: Sequence[str] = (),
    class_map: Mapping[str, str] | None = None,
    labels: Labels | None = None,
    given_as: str = "images_dir",
) -> RawSet:
    """Read a set, not checked yet; arguments as for `kmaskrcnn.data.load_dataset`, messages call images_dir `given_as`.

    Raises DataError also where there is no folder images_dir.
    """
    path, images_dir = os.fspath(path), os.fspath(images_dir)
    path = path.rstrip("/")
    if images_dir and not files.is_folder(images_dir):
        raise DataError(f"{given_as}={images_dir}: no such folder")
    if data_format == "auto" and is_shards(path) and files.exists(os.path.join(path, INSTANCES)):
        path = os.path.join(path, INSTANCES)  # as kmaskrcnn.data.readers.write_tfrecord leaves it beside its shards
    if data_format == "auto" and not is_shards(path) and not is_yolo(path) and not files.exists(path):
        raise DataError(f"{path}: no such annotation file or folder")
    raw = _READERS[recognize(path) if data_format == "auto" else data_format](path, images_dir)
    if class_map:
        rename_classes(raw, class_map)
    if class_names:
        if raw.named and {c["name"] for c in raw.categories} == {"object"} and len(class_names) == 1:
            raw.categories[0]["name"] = class_names[0]  # files that name no class
        order_classes(raw, class_names)
    elif labels is not None and raw.named:
        order_classes(raw, labels.class_names, labels.category_ids)
    return raw
