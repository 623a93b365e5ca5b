"""Parts and unions of COCO sets, as dicts; a draw depends on a seed, the image ids and which of them share a file."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from kmaskrcnn.data import files
from kmaskrcnn.data.sets.check_record import is_integer
from kmaskrcnn.data.sets.check_set import raise_errors
from kmaskrcnn.data.sets.dataset import CocoDataset
from kmaskrcnn.data.sets.defects import Findings
from kmaskrcnn.data.sets.raw_set import RawSet
from kmaskrcnn.errors import DataError, counted
from kmaskrcnn.outputs import Outputs

Tree = dict[str, Any]


def _part(tree: Tree, ids: set[int]) -> Tree:
    """The images with these ids and their annotations, with all categories."""
    return {
        **tree,
        "images": [i for i in tree["images"] if i["id"] in ids],
        "annotations": [a for a in tree["annotations"] if a["image_id"] in ids],
    }


def _drawn_order(tree: Tree, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(sorted(i["id"] for i in tree["images"])).tolist()


def _records_of_a_file(tree: Tree) -> dict[int, set[int]]:
    """For each image id the ids of all records of the same file, or of the same place in a shard."""
    groups: dict[object, set[int]] = collections.defaultdict(set)
    for image in tree["images"]:
        name, key = image.get("file_name"), image["id"]
        if "shard" in image:
            key = image["shard"], str(image.get("offset"))
        elif isinstance(name, str):
            key = files.normal_path(name)
        groups[key].add(image["id"])
    return {number: group for group in groups.values() for number in group}


def _filled(chosen: set[int], order: list[int], groups: dict[int, set[int]], images: int) -> set[int]:
    """Chosen ids and further ones in order, whole groups, until there are so many.

    A group that would leave none is taken only where all images are wanted.
    """
    chosen = set(chosen)
    for number in order:
        if len(chosen) >= images:
            break
        leaves_some = len(chosen) + len(groups[number]) < len(order)
        if number not in chosen and (leaves_some or images == len(order)):
            chosen |= groups[number]
    return chosen


def split_coco(tree: Tree, val_images: int, seed: int = 0) -> tuple[Tree, Tree]:
    """Deal the images of a COCO dict out to two, with their annotations; both keep all categories.

    Records of one image file, or of one place in a shard, stay together.

    Args:
        tree: the COCO dict.
        val_images: images drawn for the second; where files have several records, it may get more or fewer by less
            than the records of one file.
        seed: of the draw, which depends on it, on the image ids and on which of them share a file.

    Raises:
        DataError: no image would be left in one of the two.
    """
    count = len(tree["images"])
    if not 0 < val_images < count:
        raise DataError(f"val_images={val_images}: must lie in 1..{count - 1}, the set has {count} images")
    chosen = _filled(set(), _drawn_order(tree, seed), _records_of_a_file(tree), val_images)
    if not chosen:
        raise DataError(f"all {count} image records are of one file: there is nothing to split")
    return _part(tree, {i["id"] for i in tree["images"]} - chosen), _part(tree, chosen)


def part_without(tree: Tree, part: Tree) -> Tree:
    """The images of a COCO dict that a part of it does not have, with their annotations."""
    return _part(tree, {i["id"] for i in tree["images"]} - {i["id"] for i in part["images"]})


def sample_coco(tree: Tree, images: int, seed: int = 0, each_class: int = 0) -> Tree:
    """Draw a part of a COCO dict; records of one image file, or of one place in a shard, stay together.

    Args:
        tree: the COCO dict.
        images: images drawn; where files have several records, there may be more or fewer by less than the records of
            one file. With the same seed a smaller draw is part of a larger one.
        seed: of the draw.
        each_class: images of each class, at least, as far as there are so many; they are taken first, rare classes
            before common ones.

    Raises:
        DataError: there are not so many images, more than `images` are needed for the classes, or with each_class an
            annotation's category or image is not listed.
    """
    count = len(tree["images"])
    if not 0 < images <= count:
        raise DataError(f"images={images}: must lie in 1..{count}, the set has {count} images")
    order, groups = _drawn_order(tree, seed), _records_of_a_file(tree)
    holders: dict[int, set[int]] = {c["id"]: set() for c in tree["categories"]}
    listed = set(order)
    for annotation in tree["annotations"] if each_class else ():
        for key, known in (("category_id", holders), ("image_id", listed)):
            if annotation[key] not in known:
                raise DataError(f"annotation {annotation.get('id')}: {key} {annotation[key]} is not listed")
        holders[annotation["category_id"]].add(annotation["image_id"])
    chosen: set[int] = set()
    for _, mine in sorted(holders.items(), key=lambda item: (len(item[1]), item[0])):
        missing = min(each_class, len(mine)) - len(mine & chosen)
        for number in order:
            if missing <= 0:
                break
            if number in mine and number not in chosen:
                chosen |= groups[number]
                missing -= len(groups[number] & mine)
    if len(chosen) > images:
        raise DataError(f"images={images}: each_class={each_class} needs {len(chosen)}")
    return _part(tree, _filled(chosen, order, groups, images))


def merge_coco(datasets: Sequence[CocoDataset], folder: str) -> Tree:
    """Join checked sets into one COCO dict; classes of one name are one class, ids are dealt out anew.

    Args:
        datasets: the sets. An image file that several of them name is taken once for each, so they should not overlap.
        folder: where the JSON will lie: file names start from it, so that one folder of images is not needed.

    Returns:
        The dict. Category ids are those of the sets where these agree, and 1, 2, ... in order of the names otherwise.
    """
    pairs = {(c["id"], c["name"]) for dataset in datasets for c in dataset.categories}
    names = sorted({name for _, name in pairs})
    agree = len(pairs) == len(names) == len({number for number, _ in pairs})
    number = {name: i for i, name in pairs} if agree else {name: i for i, name in enumerate(names, 1)}
    images: list[dict] = []
    annotations: list[dict] = []
    for dataset in datasets:
        if (dataset.spans[:, 1] >= 0).any():
            raise DataError("sets in TFRecord shards cannot be merged; merge what they were written from")
        tree = dataset.coco_dict
        name_of = {c["id"]: c["name"] for c in tree["categories"]}
        new_id = {image["id"]: len(images) + i for i, image in enumerate(tree["images"], 1)}
        for image, path in zip(tree["images"], dataset.paths, strict=True):
            name = path if "://" in path else os.path.relpath(path, folder)
            images.append({**image, "id": new_id[image["id"]], "file_name": name})
        for annotation in tree["annotations"]:
            links = {"id": len(annotations) + 1, "image_id": new_id[annotation["image_id"]]}
            category = number[name_of[annotation["category_id"]]]
            annotations.append({**annotation, **links, "category_id": category})
    categories = [{"id": i, "name": name} for name, i in sorted(number.items(), key=lambda item: item[1])]
    return {"images": images, "annotations": annotations, "categories": categories}


def tree_of(raw: RawSet, folder: str, on_bad_record: str = "error") -> Tree:
    """A raw set as a COCO dict to lie in another folder, its file names still from the images' folder.

    The records go through as they are, but for what the reader could not use and records without the ids that link
    them: these raise DataError or, where on_bad_record is "skip", are left out and counted in lines that are printed.
    An image inside a TFRecord shard is named from the new folder.
    """
    findings = Findings()
    findings.all += raw.problems
    images = _linked(raw.images, raw.image_places, ("id",), "bad-image-record", findings)
    annotations = _linked(
        raw.annotations, raw.annotation_places, ("image_id", "category_id"), "bad-annotation-record", findings
    )
    places = [f"categories[{number}]" for number in range(len(raw.categories))]
    categories = _linked(raw.categories, places, ("id",), "bad-category", findings)
    if on_bad_record == "error":
        raise_errors(findings, raw.source)
    for line in findings.reasons():
        print(line)
    tree: Tree = {"images": images, "annotations": annotations, "categories": categories}
    shards = {image["shard"] for image in images if "shard" in image}
    if not shards:
        return tree
    name = {path: path if files.is_remote(path) else os.path.relpath(path, folder) for path in shards}
    images = [{**image, "shard": name[image["shard"]]} if "shard" in image else image for image in images]
    return {"shards": {name[path]: files.size(path) for path in sorted(shards)}, **tree, "images": images}


def _linked(
    records: list[Any], places: list[str], keys: tuple[str, ...], code: str, findings: Findings
) -> list[dict[str, Any]]:
    """The records with integers for all keys; the others are noted."""
    good, words = [], "integers" if len(keys) > 1 else "an integer"
    for record, place in zip(records, places, strict=True):
        if isinstance(record, dict) and all(is_integer(record.get(key)) for key in keys):
            good.append(record)
        else:
            findings.add(code, place, f"needs {words} {', '.join(map(repr, keys))}")
    return good


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


def write_tree(outputs: Outputs, name: str, tree: Tree) -> None:
    """Write a COCO dict as JSON, and say so."""
    path = outputs.write_text(name, json.dumps(tree))
    print(f"{path}: {counted(len(tree['images']), 'image')}, {counted(len(tree['annotations']), 'annotation')}")
