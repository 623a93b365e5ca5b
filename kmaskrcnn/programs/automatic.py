"""What the programs do where there is no flagfile: name the classes, keep images for validation, make a recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kmaskrcnn.config import Config
from kmaskrcnn.errors import counted
from kmaskrcnn.outputs import Outputs

if TYPE_CHECKING:
    from kmaskrcnn.cluster import Cluster
    from kmaskrcnn.data import CocoDataset
    from kmaskrcnn.data.sets.raw_set import RawSet
    from kmaskrcnn.recipe import Recipe

# Share of the images that are kept for validation where no set is given, and their least and most number.
_VAL_SHARE, _VAL_LEAST, _VAL_MOST = 0.2, 2, 200
_SPLIT = "split"
_PLACES = ("train_annotations", "train_images", "val_annotations", "val_images")
_OF_READING = ("data_format", "class_names", "class_map")


def settings_to_go_on(config: Config, given: Mapping[str, Any]) -> Config | None:
    """The settings of a run that stopped, under those that were given; None where the model folder is new.

    A recipe is made once for a model folder: what it follows from (memory, weights at hand, images) may have changed.
    """
    from kmaskrcnn.model_folder import read_config

    model_dir = Path(config.train.model_dir)
    if not (model_dir / "config.json").is_file():
        return None
    saved = read_config(model_dir)
    own = dict(given)
    if saved.data.train_annotations == _split_path(model_dir, "train"):
        own = {name: value for name, value in own.items() if name not in (*_PLACES, *_OF_READING)}
    return saved.replace(**own)


def name_classes(config: Config, raw: RawSet) -> Config:
    """Ask once for the name of the class where the files of a set name none; not on a terminal, say what is assumed."""
    if config.data.class_names or not raw.named or [c["name"] for c in raw.categories] != ["object"]:
        return config
    if sys.stdin.isatty() and sys.stdout.isatty():
        name = input(f"{raw.source} names no classes. What is one object called? [object] ").strip()
        return config.replace(class_names=(name or "object",))
    print(f"{raw.source} names no classes: all objects are of one class, 'object'; --class_names=NAME names it")
    return config.replace(class_names=("object",))


def use_own_validation(config: Config) -> Config:
    """Evaluate on the val split that a YOLO set has, where no validation set is given; says so."""
    from kmaskrcnn.data.readers.yolo import own_validation
    from kmaskrcnn.errors import DataError

    data = config.data
    if data.val_annotations or data.data_format not in ("auto", "yolo"):
        return config
    try:
        path = own_validation(data.train_annotations.rstrip("/"))
    except DataError as error:
        print(f"{error}; the val split is not used")
        return config
    if path:
        print(f"no validation set is given: {path}, the val split of the set, is used")
    return config.replace(val_annotations=path)


def keep_validation_images(config: Config, raw: RawSet) -> Config:
    """Split a set in two files in the model folder where no validation set is given; says so."""
    from kmaskrcnn.data.sets.subsets import split_coco, tree_of, write_tree

    if config.data.val_annotations or not raw.annotations:  # without objects nothing is trained, as reading will tell
        return config
    count = len(raw.images)
    if count < 2 * _VAL_LEAST:
        print(
            f"no validation set is given, and {counted(count, 'image')} "
            f"{'is' if count == 1 else 'are'} too few to keep some for it: there is no evaluation"
        )
        return config
    model_dir = Path(config.train.model_dir)
    outputs = Outputs(model_dir / _SPLIT, "train", [config.data.train_annotations])
    outputs.check(["train.json", "val.json"])
    tree = tree_of(raw, outputs.folder, config.data.on_bad_record)
    count = len(tree["images"])
    kept = min(max(round(_VAL_SHARE * count), _VAL_LEAST), _VAL_MOST)
    print(f"no validation set is given: {kept} of {count} images, drawn by --seed, are kept for it")
    for name, part in zip(("train", "val"), split_coco(tree, kept, config.train.seed), strict=True):
        write_tree(outputs, f"{name}.json", part)
    return config.replace(
        train_annotations=_split_path(model_dir, "train"),
        train_images=raw.images_dir or ".",
        val_annotations=_split_path(model_dir, "val"),
        val_images=raw.images_dir or ".",
        data_format="coco",
        class_names=(),
        class_map=(),
    )


def _split_path(model_dir: Path, name: str) -> str:
    return os.path.join(model_dir, _SPLIT, f"{name}.json")


def recipe_for(config: Config, given: Mapping[str, Any], train_set: CocoDataset, devices: int = 1) -> Recipe:
    """The recipe for a training set, with the given settings as they are."""
    from kmaskrcnn.recipe import facts_of, find_start, make_recipe, this_machine

    machine = this_machine(devices)
    start = find_start(str(given.get("init_weights", "")), str(given.get("backbone", "")), machine)
    return make_recipe(facts_of(train_set), machine, start, config, given, bool(config.data.val_annotations))


def settings_of_chief(config: Config, given: Mapping[str, Any], cluster: Cluster) -> Config:
    """The settings that the first worker's recipe chose, for machines differ; names of files stay each worker's own."""
    own = {**given, **{name: getattr(config.data, name) for name in _PLACES}}
    return Config.from_json(cluster.gather(config.to_json().encode())[0].decode()).replace(**own)
