"""Split a COCO file in two: python -m kmaskrcnn.data.split --annotations=FILE --val_images=N --output=DIR."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from absl import app, flags

from kmaskrcnn.data.records import DataError

_ANNOTATIONS = flags.DEFINE_string("annotations", None, "COCO JSON to split.", required=True)
_VAL_IMAGES = flags.DEFINE_integer("val_images", None, "Images of the second part.", lower_bound=1, required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for train.json and val.json.", required=True)
_SEED = flags.DEFINE_integer("seed", 0, "The same seed makes the same split.")


def split_coco(tree: dict[str, list], val_images: int, seed: int = 0) -> tuple[dict[str, list], dict[str, list]]:
    """Deal the images of a COCO dict out to two, with their annotations; both keep all categories.

    Args:
        tree: the COCO dict.
        val_images: images drawn for the second.
        seed: of the draw, which depends on it and on the image ids alone.

    Raises:
        DataError: no image would be left in the first.
    """
    ids = sorted(image["id"] for image in tree["images"])
    if not 0 < val_images < len(ids):
        raise DataError(f"val_images={val_images}: must lie in 1..{len(ids) - 1}, the set has {len(ids)} images")
    chosen = set(np.random.default_rng(seed).permutation(ids)[:val_images].tolist())

    def part(inside: bool) -> dict[str, list]:
        return {
            **tree,
            "images": [i for i in tree["images"] if (i["id"] in chosen) == inside],
            "annotations": [a for a in tree["annotations"] if (a["image_id"] in chosen) == inside],
        }

    return part(False), part(True)


def main(_: list[str]) -> None:
    """Write the two files."""
    with open(_ANNOTATIONS.value, encoding="utf-8") as file:
        tree = json.load(file)
    output = Path(_OUTPUT.value)
    os.makedirs(output, exist_ok=True)
    for name, part in zip(("train", "val"), split_coco(tree, _VAL_IMAGES.value, _SEED.value), strict=True):
        (output / f"{name}.json").write_text(json.dumps(part))
        print(f"{output / name}.json: {len(part['images'])} images, {len(part['annotations'])} annotations")


if __name__ == "__main__":
    app.run(main)
