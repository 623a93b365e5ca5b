"""Opening a data set: by its path, or as the settings name it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from kmaskrcnn.config import Config
from kmaskrcnn.data.readers import read_raw
from kmaskrcnn.data.readers.yolo import with_split
from kmaskrcnn.data.sets.class_names import parse_class_map, parse_class_names
from kmaskrcnn.data.sets.dataset import CocoDataset, dataset_of
from kmaskrcnn.data.sets.raw_set import RawSet
from kmaskrcnn.data.sets.shapes import make_shapes
from kmaskrcnn.folders import local_folder
from kmaskrcnn.results.labels import Labels


def open_dataset(config: Config, split: str, labels: Labels | None = None) -> CocoDataset | None:
    """The checked data set of a split, "train" or "val", that the settings name; arguments as for `open_raw`."""
    raw = open_raw(config, split, labels)
    return None if raw is None else dataset_of(raw, config.data.on_bad_record)


def open_raw(config: Config, split: str, labels: Labels | None = None) -> RawSet | None:
    """The records of a split, "train" or "val", that the settings name; None if val_annotations is empty.

    The built-in shapes are first written into a folder beside the checkpoints. `labels` are those of the model that the
    data set is for: files with class names alone take its ids.
    """
    annotations = getattr(config.data, f"{split}_annotations")
    images = getattr(config.data, f"{split}_images")
    if not annotations:
        return None
    if annotations == "shapes":
        count = config.data.shapes_images if split == "train" else config.data.shapes_val_images
        folder = local_folder(config.train.model_dir or ".") / "shapes" / split
        # The two splits are different images: the seed of an image is the seed of its set and its number.
        path = make_shapes(folder, count, config.data.shapes_size, seed=0 if split == "train" else 1)
        return read_raw(path, "", "coco")
    names, renamed = parse_class_names(config.data.class_names), parse_class_map(config.data.class_map)
    return read_raw(with_split(annotations, split), images, config.data.data_format, names, renamed, labels)


def load_dataset(
    path: str,
    images_dir: str = "",
    on_bad_record: str = "error",
    data_format: str = "auto",
    class_names: Sequence[str] = (),
    class_map: Mapping[str, str] | None = None,
    labels: Labels | None = None,
) -> CocoDataset:
    """Read a data set in any known format and check every record and every image file.

    Categories become classes 1..C in the order of their ids; if the files give names alone, in the order of the names.
    Boxes that extend beyond the image are clipped; boxes with nothing left are bad records. Image files are opened and
    checked for their end mark, not decoded. The checks are the doctor's; what it calls an error raises.

    Args:
        path: file, folder or pattern of shards, also remote (gs://...); docs/guide/data.md lists the formats.
        images_dir: folder of the images; empty: where the format has them.
        on_bad_record: "error" raises on bad records, "skip" leaves them out and counts them in `report`.
        data_format: one of `kmaskrcnn.data.readers.FORMATS`, or "auto" to detect it.
        class_names: the classes in order, which then get the ids 1, 2, ...; empty: those of the data set.
        class_map: new name by old name, applied first; an empty new name drops the class.
        labels: names and ids of a model's classes, for files that give names alone.

    Raises:
        DataError: one line per problem; also under "skip" if the file is not a data set or nothing in it is usable.
    """
    if on_bad_record not in ("error", "skip"):
        raise ValueError(f"on_bad_record={on_bad_record!r}: choose error or skip")
    raw = read_raw(path, images_dir, data_format, class_names, class_map, labels)
    return dataset_of(raw, on_bad_record)


def load_coco(annotations_path: str, images_dir: str = "", on_bad_record: str = "error") -> CocoDataset:
    """`load_dataset` of a COCO instances file; empty images_dir: the folder of the JSON."""
    return load_dataset(os.fspath(annotations_path), os.fspath(images_dir), on_bad_record, "coco")
