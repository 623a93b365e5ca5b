"""COCO instances files, whose images are files or lie in TFRecord shards, as `write_tfrecord` writes them."""

from __future__ import annotations

import os
from typing import Any

from kmaskrcnn.data import files
from kmaskrcnn.data.readers.json_file import read_json
from kmaskrcnn.data.sets.check_record import is_integer, plain_integer
from kmaskrcnn.data.sets.raw_set import RawSet
from kmaskrcnn.errors import DataError

# The file beside the shards that `kmaskrcnn.data.readers.write_tfrecord` writes.
INSTANCES = "instances.json"


_INTEGERS = {
    "images": ("id", "height", "width"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id",),
}


def is_coco(tree: object) -> bool:
    """Whether a JSON tree is a COCO instances file."""
    return isinstance(tree, dict) and {"images", "annotations"} <= tree.keys()


def read_coco(path: str, images_dir: str) -> RawSet:
    """Read a COCO instances file; raises DataError where it is none or has no records."""
    tree = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise DataError(f"{path}: not a COCO instances file: no list {key!r}")
        if not tree[key] and key != "annotations":  # images without objects are a set
            raise DataError(f"{path}: the annotation file is empty: {key!r} has no records")
    for key, fields in _INTEGERS.items():
        tree[key] = [_plain(record, fields) for record in tree[key]]
    folder = os.path.dirname(path)
    raw = RawSet(
        path,
        images_dir or folder,
        tree["images"],
        tree["annotations"],
        tree["categories"],
        [f"images[{i}]" for i in range(len(tree["images"]))],
        [f"annotations[{i}]" for i in range(len(tree["annotations"]))],
    )
    if isinstance(tree.get("shards"), dict):
        _open_shards(raw, folder, tree["shards"])
    return raw


def _plain(record: Any, fields: tuple[str, ...]) -> Any:
    """A record with 17 for 17.0 and "17", as ids become on their way through tables, and no blanks around a name."""
    if not isinstance(record, dict):
        return record
    if isinstance(record.get("name"), str) and record["name"] != record["name"].strip():
        record = {**record, "name": record["name"].strip()}
    changed = {k: v for k in fields if k in record and type(v := plain_integer(record[k])) is not type(record[k])}
    return {**record, **changed} if changed else record


def _open_shards(raw: RawSet, folder: str, sizes: dict[str, int]) -> None:
    """Turn the shards of images into paths; raises DataError where one is not as it was written."""
    for name, size in sizes.items():
        path = files.join(folder, name)
        try:
            found = files.size(path)
        except (OSError, ValueError):
            raise DataError(f"{raw.source}: the shard {path} is missing") from None
        if found != size:
            raise DataError(f"{raw.source}: the shard {path} has {found} bytes, {size} were written")
    for position, image in enumerate(raw.images):
        if isinstance(image, dict) and "shard" not in image:  # a file of its own
            continue
        good = isinstance(image, dict) and isinstance(image.get("shard"), str) and image["shard"] in sizes
        good = good and isinstance(image.get("by_pillow", False), bool) and image.get("turn", 1) in range(1, 9)
        if not good or not all(is_integer(image.get(k)) for k in ("offset", "length", "height", "width")):
            raise DataError(f"{raw.source}: images[{position}]: needs 'shard', 'offset', 'length' as it was written")
        if image["offset"] < 0 or image["length"] < 1 or image["offset"] + image["length"] > sizes[image["shard"]]:
            raise DataError(f"{raw.source}: images[{position}]: lies beyond the end of {image['shard']}")
    raw.images = [{**i, "shard": files.join(folder, i["shard"])} if "shard" in i else i for i in raw.images]
