"""Split a set in two: python -m kmaskrcnn.data.split --annotations=SET --val_images=N --output=DIR."""

from __future__ import annotations

import dataclasses
import json
import os

from absl import flags as absl_flags

from kmaskrcnn import flags
from kmaskrcnn.data import files
from kmaskrcnn.data.coco import dataset_of
from kmaskrcnn.data.raw import RawSet
from kmaskrcnn.data.records import DataError, is_integer
from kmaskrcnn.data.subsets import Tree, split_coco


def tree_of(raw: RawSet, folder: str) -> Tree:
    """A raw set as a COCO dict to lie in another folder, its file names still from the images' folder.

    The records go through as they are, bad ones too; an image inside a TFRecord shard is named from the new folder.
    """
    if raw.problems:
        raise DataError("\n".join(f"{raw.source}: {p.place}: {p.detail}" for p in raw.problems[:20]))
    links = (("id",), ("image_id", "category_id"))
    for records, places, keys in zip(
        (raw.images, raw.annotations), (raw.image_places, raw.annotation_places), links, strict=True
    ):
        for record, place in zip(records, places, strict=True):
            if not isinstance(record, dict) or not all(is_integer(record.get(key)) for key in keys):
                raise DataError(f"{raw.source}: {place}: needs integers {', '.join(map(repr, keys))}")
    tree: Tree = {"images": raw.images, "annotations": raw.annotations, "categories": raw.categories}
    shards = {image["shard"] for image in raw.images if "shard" in image}
    if not shards:
        return tree
    name = {path: path if files.is_remote(path) else os.path.relpath(path, folder) for path in shards}
    images = [{**image, "shard": name[image["shard"]]} for image in raw.images]
    return {"shards": {name[path]: files.size(path) for path in sorted(shards)}, **tree, "images": images}


def with_records(raw: RawSet, part: Tree) -> RawSet:
    """A set with the images and annotations of a part of it, as they were named."""
    images = dict(zip(map(id, raw.images), raw.image_places, strict=True))
    annotations = dict(zip(map(id, raw.annotations), raw.annotation_places, strict=True))
    return dataclasses.replace(
        raw,
        images=part["images"],
        annotations=part["annotations"],
        image_places=[images[id(record)] for record in part["images"]],
        annotation_places=[annotations[id(record)] for record in part["annotations"]],
    )


def write_tree(path: str, tree: Tree) -> None:
    """Write a COCO dict as JSON, and say so."""
    files.make_folder(os.path.dirname(path))
    files.write_text(path, json.dumps(tree))
    print(f"{path}: {len(tree['images'])} images, {len(tree['annotations'])} annotations")


def main() -> int:
    """Write train.json and val.json."""
    output = set_flags.OUTPUT.value
    if _TO.value == "yolo":
        from kmaskrcnn.data.sets.write_yolo import write_yolo

        raw = set_flags.read_set()
        tree = {"images": raw.images, "annotations": raw.annotations, "categories": raw.categories}
        dataset_of(raw)  # names what is wrong first
        parts = zip(("train", "val"), split_coco(tree, _VAL_IMAGES.value, set_flags.SEED.value), strict=True)
        path = write_yolo({name: dataset_of(with_records(raw, part)) for name, part in parts}, output)
        print(f"train with --train_annotations={path} --val_annotations={path}")
        return 0
    tree = tree_of(set_flags.read_set(), output)
    for name, part in zip(("train", "val"), split_coco(tree, _VAL_IMAGES.value, set_flags.SEED.value), strict=True):
        write_tree(os.path.join(output, f"{name}.json"), part)
    return 0


if __name__ == "__main__":
    from kmaskrcnn.data import set_flags

    absl_flags.mark_flag_as_required("output")
    _TO = absl_flags.DEFINE_enum("to", "coco", ["coco", "yolo"], "Form to write.")
    _VAL_IMAGES = absl_flags.DEFINE_integer(
        "val_images", None, "Images of the second part.", lower_bound=1, required=True
    )
    flags.run(main)
