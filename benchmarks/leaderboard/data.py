"""The tasks of the leaderboard from folders of images.

A task is a folder with train.json, eval.json, images/, and yolo/, the same training images in the form of Ultralytics.
Every draw depends on the image ids alone, so everybody gets the same parts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kmaskrcnn.data import load_coco
from kmaskrcnn.data.readers.write_yolo import write_yolo
from kmaskrcnn.data.sets.subsets import split_coco

Tree = dict[str, Any]


class Source(NamedTuple):
    """Where a task comes from: annotation files below its folder, images, and what is done to them."""

    annotations: tuple[str, ...]
    images: str
    held_out: int  # images to score on, drawn from the one annotation file; 0: the second file has them
    category: str = ""  # the only class that is kept, and only the images that have it


SOURCES = {
    "nuclei": Source(("instances_train.json", "instances_dev.json"), "images", 0),
    "fruits": Source(("trainval.json",), "images", 4),
    "people": Source(("instances_train2017.json",), "train2017", 15, "person"),
}
# Ultralytics' own share where it splits a set; other sides take theirs by themselves.
YOLO_VALIDATION = 0.1


def only(tree: Tree, category: str) -> Tree:
    """The objects of one class and the images that have any."""
    wanted = [c for c in tree["categories"] if c["name"] == category]
    if not wanted:
        raise SystemExit(f"no category {category!r} among {', '.join(c['name'] for c in tree['categories'][:9])}")
    annotations = [a for a in tree["annotations"] if a["category_id"] == wanted[0]["id"]]
    kept = {a["image_id"] for a in annotations if not a.get("iscrowd")}
    return {
        "images": [i for i in tree["images"] if i["id"] in kept],
        "annotations": [a for a in annotations if a["image_id"] in kept],
        "categories": wanted,
    }


def parts(source: Source, folder: Path) -> tuple[Tree, Tree]:
    """Training and evaluation part of a folder of data."""
    trees = []
    for name in source.annotations:
        if not (folder / name).is_file():
            raise SystemExit(f"{folder / name} is missing")
        tree = json.loads((folder / name).read_text())
        tree = {key: tree[key] for key in ("images", "annotations", "categories")}
        trees.append(only(tree, source.category) if source.category else tree)
    if source.held_out:
        return split_coco(trees[0], source.held_out)
    return trees[0], trees[1]


def make_task(source: Source, folder: Path, output: Path, say: Callable[[str], None] = print) -> None:
    """Write a task, unless it is there with the same parts."""
    train, held = parts(source, folder)
    texts = {"train.json": json.dumps(train), "eval.json": json.dumps(held)}
    if all((output / name).is_file() and (output / name).read_text() == text for name, text in texts.items()):
        return
    shutil.rmtree(output, ignore_errors=True)
    images = output / "images"
    images.mkdir(parents=True)
    for image in (*train["images"], *held["images"]):
        path = folder / source.images / image["file_name"]
        if not path.is_file():
            raise SystemExit(f"{path} is missing")
        shutil.copy(path, images / image["file_name"])
    pair = split_coco(train, max(1, round(YOLO_VALIDATION * len(train["images"]))))
    sets = {}
    for name, tree in zip(("train", "val"), pair, strict=True):
        path = output / f"yolo_{name}.json"
        path.write_text(json.dumps(tree))
        sets[name] = load_coco(path, images)
    write_yolo(sets, str(output / "yolo"))
    for name, text in texts.items():  # last: they say that the task is whole
        (output / name).write_text(text)
    objects = [sum(not a.get("iscrowd") for a in tree["annotations"]) for tree in (train, held)]
    say(
        f"{output}: {len(train['images'])} images to train on with {objects[0]} objects, "
        f"{len(held['images'])} to score on with {objects[1]}"
    )
