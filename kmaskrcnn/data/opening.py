"""The data sets that the settings name."""

from __future__ import annotations

from kmaskrcnn.config import Config
from kmaskrcnn.data.class_names import parse_class_map, parse_class_names
from kmaskrcnn.data.coco import CocoDataset, dataset_of
from kmaskrcnn.data.raw import RawSet
from kmaskrcnn.data.readers import read_raw
from kmaskrcnn.data.shapes import make_shapes
from kmaskrcnn.folders import local_folder
from kmaskrcnn.labels import Labels


def open_dataset(config: Config, split: str, labels: Labels | None = None) -> CocoDataset | None:
    """The data set of a split, "train" or "val", as the settings name it, checked; arguments as of `open_raw`."""
    raw = open_raw(config, split, labels)
    return None if raw is None else dataset_of(raw, config.data.on_bad_record)


def open_raw(config: Config, split: str, labels: Labels | None = None) -> RawSet | None:
    """The records of a split, "train" or "val", as the settings name it; None where val_annotations is empty.

    The built-in shapes are written into a folder beside the checkpoints first. `labels` are those of the model that the
    set is for: files that give names of classes only take its ids.
    """
    annotations = getattr(config.data, f"{split}_annotations")
    images = getattr(config.data, f"{split}_images")
    if not annotations:
        return None
    if annotations == "shapes":
        count = config.data.shapes_images if split == "train" else config.data.shapes_val_images
        folder = local_folder(config.train.model_dir or ".") / "shapes" / split
        # The two splits are different pictures: the seed of a picture is the seed of its set and its number.
        path = make_shapes(folder, count, config.data.shapes_size, seed=0 if split == "train" else 1)
        return read_raw(path, "", "coco")
    names, renamed = parse_class_names(config.data.class_names), parse_class_map(config.data.class_map)
    return read_raw(annotations, images, config.data.data_format, names, renamed, labels)
