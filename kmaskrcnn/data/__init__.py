"""Data: COCO files, the built-in shapes set, augmentation and the tf.data pipeline."""

from pathlib import Path

from kmaskrcnn.config import Config
from kmaskrcnn.data.coco import CocoDataset, load_coco
from kmaskrcnn.data.image_files import load_image
from kmaskrcnn.data.pipeline import evaluation_dataset, prepare_image, training_dataset
from kmaskrcnn.data.records import DataError
from kmaskrcnn.data.shapes import make_shapes

__all__ = [
    "CocoDataset",
    "DataError",
    "evaluation_dataset",
    "load_coco",
    "load_image",
    "make_shapes",
    "open_dataset",
    "prepare_image",
    "training_dataset",
]


def open_dataset(config: Config, split: str) -> CocoDataset | None:
    """The data set of a split, "train" or "val", as the settings name it; None where val_annotations is empty.

    The built-in shapes are written into a folder beside the checkpoints first.
    """
    annotations = getattr(config.data, f"{split}_annotations")
    images = getattr(config.data, f"{split}_images")
    if not annotations:
        return None
    if annotations == "shapes":
        count = config.data.shapes_images if split == "train" else config.data.shapes_val_images
        folder = Path(config.train.model_dir or ".") / "shapes" / split
        # The two splits are different pictures: the seed of a picture is the seed of its set and its number.
        annotations, images = make_shapes(folder, count, config.data.shapes_size, seed=0 if split == "train" else 1), ""
    return load_coco(annotations, images, config.data.on_bad_record)
