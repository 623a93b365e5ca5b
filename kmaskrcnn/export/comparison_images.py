"""The images that an exported model is compared with the original on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.data import files, load_image, open_dataset
from kmaskrcnn.data.sets.shapes import draw_image
from kmaskrcnn.errors import DataError
from kmaskrcnn.evaluation.evaluator import check_categories
from kmaskrcnn.inference.inputs import find_inputs
from kmaskrcnn.results.labels import Labels

_DRAWN, _DRAWN_SIDE = 4, 512


@dataclasses.dataclass(frozen=True)
class ComparisonImages:
    """Images to compare on.

    Attributes:
        paths: files that can be read.
        about: what they are.
        truth: the COCO instances dict of their set, and the id of each image; None where there is none.
        drawn: whether they are drawn, for want of photographs.
    """

    paths: list[str]
    about: str
    truth: tuple[dict[str, Any], Sequence[int]] | None = None
    drawn: bool = False


def comparison_images(
    config: Config, labels: Labels, given: Sequence[str], calibration: Sequence[str], count: int, folder: str
) -> ComparisonImages:
    """The given images; or else those of the validation set, for calibration, or of the training set; or drawn ones.

    Args:
        config: of the model.
        labels: of the model, whose ids a set with names alone takes.
        given: files, folders and globs.
        calibration: files that can be read.
        count: the most images to take.
        folder: temporary, for images that are no files.

    Raises:
        ConfigError: none of the given images can be read.
        DataError: the validation set cannot be read, or has a category that the model does not know.
    """
    if given:
        return ComparisonImages(readable("verify_images", given, count), "--verify_images")
    found = _images_of(config, labels, "val", count, folder)
    if found is None and calibration:
        return ComparisonImages([*calibration[:count]], "the calibration images")
    if found is None and config.data.train_annotations != "shapes":  # the built-in set is drawn below
        with contextlib.suppress(DataError, OSError, ConfigError):  # it may have been moved since
            found = _images_of(config, labels, "train", count, folder)
    if found is not None:
        return found
    paths = []
    for number in range(min(_DRAWN, count)):
        pixels, _ = draw_image(_DRAWN_SIDE, np.random.default_rng(number))
        paths.append(str(Path(folder) / f"drawn{number}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return ComparisonImages(paths, "drawn images, for want of yours", drawn=True)


def readable(flag: str, inputs: Sequence[str], count: int) -> list[str]:
    """The first images that files, folders and globs name; one that cannot be read is named and left out.

    Raises:
        ConfigError: none can be read.
    """
    paths = []
    for path, _ in find_inputs(inputs):
        if len(paths) == count:
            break
        try:
            load_image(path)
            paths.append(path)
        except OSError as error:
            print(f"skipped: {error}", flush=True)
    if not paths:
        raise ConfigError(f"--{flag}: none of the images can be read")
    return paths


def _images_of(config: Config, labels: Labels, split: str, count: int, folder: str) -> ComparisonImages | None:
    dataset = open_dataset(config, split, labels)
    if dataset is None:
        return None
    check_categories(labels, dataset)
    paths = list(dataset.paths[:count])
    if (dataset.spans[:, 1] >= 0).any():  # in TFRecord: each gets a file for as long as it is needed
        for index, shard in enumerate(paths):
            file = Path(folder) / f"{index}_{Path(dataset.file_names[index]).name}"
            file.write_bytes(files.read_bytes(shard, *map(int, dataset.spans[index])))
            paths[index] = str(file)
    name = {"val": "validation", "train": "training"}[split]
    return ComparisonImages(paths, f"the {name} set", (dataset.coco_dict, dataset.image_ids[: len(paths)]))
