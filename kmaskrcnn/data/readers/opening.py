"""Opening a data set: by its path, or as the settings name it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from kmaskrcnn.config import Config
from kmaskrcnn.data.readers import read_raw
from kmaskrcnn.data.readers.tfrecord import is_shards
from kmaskrcnn.data.readers.yolo import with_split
from kmaskrcnn.data.sets.check_set import no_objects
from kmaskrcnn.data.sets.class_names import parse_class_map, parse_class_names
from kmaskrcnn.data.sets.dataset import CocoDataset, dataset_of
from kmaskrcnn.data.sets.file_names import is_anywhere
from kmaskrcnn.data.sets.raw_set import RawSet
from kmaskrcnn.data.sets.shapes import make_shapes
from kmaskrcnn.errors import DataError
from kmaskrcnn.folders import local_folder
from kmaskrcnn.results.labels import Labels


def open_dataset(config: Config, split: str, labels: Labels | None = None) -> CocoDataset | None:
    """The checked data set of a split, "train" or "val", that the settings name; arguments as for `open_raw`.

    Raises DataError also where no image of a training set has an object.
    """
    raw = open_raw(config, split, labels)
    if raw is None:
        return None
    dataset = dataset_of(raw, config.data.on_bad_record)
    if split == "train" and not len(dataset.classes):
        raise DataError(f"{raw.source}: {no_objects(len(dataset))}")
    return dataset


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
    given_as, data_format = f"--{split}_images", config.data.data_format
    if data_format == "yolo" or (data_format == "auto" and not is_shards(annotations)):
        annotations = with_split(annotations, split)
    raw = read_raw(annotations, images, data_format, names, renamed, labels, given_as)
    _check_folder(raw, given_as)
    return raw


def _check_folder(raw: RawSet, given_as: str) -> None:
    """Raise DataError with one line where none of the images of a set is there; `given_as` is what names the folder."""
    names = [i.get("file_name") for i in raw.images if isinstance(i, dict) and "shard" not in i]
    if len(names) < len(raw.images) or any(problem.code != "missing-image" for problem in raw.problems):
        return
    count = len(names) + len(raw.problems)
    if count and not any(not isinstance(name, str) or is_anywhere(raw.images_dir, name) for name in names):
        who = "its image is not" if count == 1 else f"none of its {count} images is"
        raise DataError(f"{raw.source}: {who} in {raw.images_dir or '.'}; {given_as} names their folder")


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
    _check_folder(raw, "images_dir")
    return dataset_of(raw, on_bad_record)


def load_coco(annotations_path: str, images_dir: str = "", on_bad_record: str = "error") -> CocoDataset:
    """`load_dataset` of a COCO instances file; empty images_dir: the folder of the JSON."""
    return load_dataset(os.fspath(annotations_path), os.fspath(images_dir), on_bad_record, "coco")
