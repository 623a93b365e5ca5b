"""What the programs do where there is no flagfile: name the classes, keep images for validation, make a recipe."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.errors import counted
from kmaskrcnn.outputs import Outputs

if TYPE_CHECKING:
    from kmaskrcnn.cluster import Cluster
    from kmaskrcnn.data import CocoDataset
    from kmaskrcnn.data.sets.raw_set import RawSet
    from kmaskrcnn.recipe import Recipe

# Share of the images that are kept for validation where no set is given, and their least and most number.
_VAL_SHARE, _VAL_LEAST, _VAL_MOST = 0.2, 2, 200
_SPLIT, _SOURCE = "split", "source.json"
_PLACES = ("train_annotations", "train_images", "val_annotations", "val_images")
_OF_READING = ("data_format", "class_names", "class_map")
# What sets the length of a run; each counts where those before it are 0.
LENGTHS = ("max_minutes", "epochs", "steps")


def settings_to_go_on(config: Config, given: Mapping[str, Any]) -> Config | None:
    """The settings of a run that stopped, under those that were given; None where the model folder is new.

    A recipe is made once for a model folder: what it follows from (memory, weights at hand, images) may have changed.

    Of the settings of its length, one that is given now comes before the saved ones, which is said.

    Raises:
        ConfigError: the run trains on a part of a set that has changed since, or of another one, or is to be evaluated
            on other images than those that it kept.
    """
    from kmaskrcnn.model_folder import is_started, read_config

    model_dir = Path(config.train.model_dir)
    if not (model_dir / "config.json").is_file() or not is_started(model_dir):
        return None
    saved = read_config(model_dir)
    own = {**_without_other_lengths(saved, given), **given}
    # Within config.json, for the folder may have another name now.
    if saved.data.train_annotations == _split_path(Path(saved.train.model_dir), "train"):
        places = _places_of_split(model_dir, _source_again(config))
        _check_validation(config, places)
        own = {**{name: value for name, value in own.items() if name not in _OF_READING}, **places}
    return saved.replace(**own)


def _without_other_lengths(saved: Config, given: Mapping[str, Any]) -> dict[str, float]:
    """Zeros for the saved settings that would keep the length that is given now from counting; says so."""
    now = next((name for name in LENGTHS if given.get(name)), LENGTHS[0])
    others = [name for name in LENGTHS[: LENGTHS.index(now)] if name not in given and getattr(saved.train, name)]
    for name in others:
        print(
            f"--{now}={given[now]:g} sets the length of the run from here on, in place of "
            f"--{name}={getattr(saved.train, name):g} before"
        )
    return dict.fromkeys(others, 0.0)


def classes_without_objects(train_set: CocoDataset) -> list[str]:
    """The classes that no object of a training set has."""
    counts = np.bincount(train_set.classes[~train_set.is_crowd], minlength=len(train_set.class_names) + 1)
    return [name for name, count in zip(train_set.class_names, counts[1:], strict=True) if not count]


def _source_again(config: Config) -> RawSet:
    """The set that a split was made of, where it lies now."""
    from kmaskrcnn.data import open_raw

    raw = open_raw(config, "train")
    path = Path(config.train.model_dir) / _SPLIT / _SOURCE
    try:
        known = json.loads(path.read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):  # of a release that did not write it
        return raw
    if known != _digest(raw):
        raise ConfigError(
            f"--train_annotations={config.data.train_annotations} is not the set that the run in "
            f"{config.train.model_dir} was started on: {_another_run(config)}"
        )
    return raw


def _check_validation(config: Config, places: Mapping[str, str]) -> None:
    """Raise ConfigError where other validation images are given than those that a run kept."""
    for name in ("val_annotations", "val_images"):
        given = getattr(config.data, name)
        if given and not _same_place(given, places[name]):
            raise ConfigError(
                f"--{name}={given}: the run in {config.train.model_dir} is evaluated on the images that it kept for "
                f"validation, --{name}={places[name]}: leave --{name} out, or {_another_run(config)}"
            )


def _another_run(config: Config) -> str:
    folder = config.train.model_dir
    return f"choose another --model_dir; --init_weights={folder} starts it from the weights of that run"


def _same_place(first: str, second: str) -> bool:
    return os.path.realpath(first) == os.path.realpath(second)


def _digest(raw: RawSet) -> str:
    """What tells a set from another, wherever its images lie."""
    records = [image if isinstance(image, dict) else {"file_name": image} for image in raw.images]
    images = [{**image, "file_name": os.path.basename(str(image.get("file_name")))} for image in records]
    text = json.dumps([images, raw.annotations, raw.categories], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def split_taken_back_on_error(config: Config) -> Iterator[None]:
    """Leave the model folder as it was where a command is refused."""
    model_dir = Path(config.train.model_dir)
    folder, was_there, had_model_dir = model_dir / _SPLIT, (model_dir / _SPLIT).exists(), model_dir.exists()
    try:
        yield
    except BaseException:
        if not was_there and folder.is_dir() and not (model_dir / "config.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            if not had_model_dir:
                with contextlib.suppress(OSError):  # something else is in it
                    model_dir.rmdir()
        raise


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
    from kmaskrcnn.data.sets.subsets import part_without, sample_coco, split_coco, tree_of, write_tree
    from kmaskrcnn.errors import DataError

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
    places, val_images = _places_of_split(model_dir, raw), config.data.val_images
    if val_images and not _same_place(val_images, places["val_images"]):
        raise ConfigError(
            f"--val_images={val_images} needs --val_annotations beside it: "
            "without, images of the training set are kept for validation"
        )
    outputs = Outputs(model_dir / _SPLIT, "train", [config.data.train_annotations])
    outputs.check(["train.json", "val.json", _SOURCE])
    source = json.dumps({"sha256": _digest(raw)}) + "\n"
    tree = tree_of(raw, outputs.folder, config.data.on_bad_record)
    count = len(tree["images"])
    kept = min(max(round(_VAL_SHARE * count), _VAL_LEAST), _VAL_MOST)
    print(f"no validation set is given: {kept} of {count} images, drawn by --seed, are kept for it")
    parts = split_coco(tree, kept, config.train.seed)
    if _classes_of(parts[0]) != _classes_of(tree):
        with contextlib.suppress(DataError):  # more classes than images to train on
            train = sample_coco(tree, count - kept, config.train.seed, each_class=1)
            parts = train, part_without(tree, train)
    for name, part in zip(("train", "val"), parts, strict=True):
        write_tree(outputs, f"{name}.json", part)
    outputs.write_text(_SOURCE, source)
    return config.replace(**places, data_format="coco", class_names=(), class_map=())


def _classes_of(tree: dict[str, Any]) -> set[Any]:
    return {annotation["category_id"] for annotation in tree["annotations"]}


def _places_of_split(model_dir: Path, raw: RawSet) -> dict[str, str]:
    """The settings of `_PLACES` for the split of a set."""
    images = raw.images_dir or "."
    return {
        "train_annotations": _split_path(model_dir, "train"),
        "train_images": images,
        "val_annotations": _split_path(model_dir, "val"),
        "val_images": images,
    }


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
