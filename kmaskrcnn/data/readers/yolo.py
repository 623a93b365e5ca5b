"""YOLO segmentation sets (Ultralytics): data.yaml, images, and one text file of outlines for each image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import yaml

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import code_of, read_header
from kmaskrcnn.data.sets.check_record import brief, finite, plain_integer
from kmaskrcnn.data.sets.raw_set import RawSet, SetBuilder
from kmaskrcnn.errors import DataError

_YAML = (".yaml", ".yml")
_SPLITS = ("train", "val", "test")


def is_yolo(path: str) -> bool:
    """Whether a path names a data.yaml or a folder that holds one, alone or with @SPLIT."""
    source, _ = _parts(path)
    return source.lower().endswith(_YAML) or (files.is_folder(source) and bool(files.matching(source, "data.y*ml")))


def with_split(path: str, split: str) -> str:
    """A YOLO set's path with the name of the split to read, unless it names one; any other path as it is."""
    names_one = _parts(path)[0] != path
    return path if names_one or not is_yolo(path) else f"{path.rstrip('/')}@{split}"


def own_validation(path: str) -> str:
    """The path of the val split that a YOLO set names beside the train split that `path` means; empty: it has none.

    A val split of the same images as the train split is none. Raises DataError where its images are missing.
    """
    source, split = _parts(path)
    if split != "train" or not is_yolo(path):
        return ""
    yaml_path = _yaml_path(source)
    tree = _read_yaml(yaml_path)
    if not tree.get("val") or _image_places(yaml_path, tree, "val") == _image_places(yaml_path, tree, "train"):
        return ""
    return f"{yaml_path}@val"


def _yaml_path(source: str) -> str:
    if not files.is_folder(source):
        return source
    if not (names := files.matching(source, "data.y*ml")):
        raise DataError(f"{source}: not a YOLO set: it holds no data.yaml")
    return os.path.join(source, names[0])


def _parts(path: str) -> tuple[str, str]:
    """The YAML file or folder, and the split."""
    match = re.fullmatch(rf"(.+)@({'|'.join(_SPLITS)})", path)
    if match and not files.exists(path):  # a folder may be called cats@val
        return match.group(1), match.group(2)
    return path, "train"


def read_yolo(path: str, images_dir: str) -> RawSet:
    """Read a split of a set: data.yaml or its folder, or either with @val; `labels` lies where `images` lies.

    A line of a label file is a class number from 0 and the corners x y x y ... in shares of the sides. Lines of four
    numbers are boxes, which have no mask and are bad records. Images without a label file are negatives. The class
    numbers become the category ids 1, 2, ... in their order.
    """
    source, split = _parts(path)
    source = _yaml_path(source)
    tree = _read_yaml(source)
    names = _class_names(source, tree)
    places = [images_dir] if images_dir else _image_places(source, tree, split)
    builder = SetBuilder(path, images_dir or os.path.dirname(source))
    for image in _images(places):
        _read_image(builder, image, names)
    return builder.finish(names)


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(files.read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path}: not a YOLO data.yaml: needs 'names' and the folders of images")
    return tree


def _class_names(path: str, tree: dict[str, Any]) -> list[str]:
    """Names in the order of their numbers, which start from 0."""
    names = tree.get("names")
    if isinstance(names, dict):
        numbered = {plain_integer(number): name for number, name in names.items()}
        names = [numbered.get(i) for i in range(len(numbered))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str | int) for name in names):
        raise DataError(f"{path}: 'names' {brief(tree.get('names'))} is not a list of class names from number 0 on")
    names = [str(name).strip() for name in names]
    if len(set(names)) != len(names):
        raise DataError(f"{path}: 'names' has a name twice")
    return names


def _image_places(path: str, tree: dict[str, Any], split: str) -> list[str]:
    """Folders and lists of images of a split."""
    given = tree.get(split)
    given = given if isinstance(given, list) else [given]
    if not all(isinstance(part, str) and part for part in given):
        has = ", ".join(name for name in _SPLITS if tree.get(name)) or "none"
        raise DataError(f"{path}: no images of the split {split!r} (has {has})")
    folder, root = os.path.dirname(path), tree.get("path") or ""
    roots = [files.join(folder, root) if isinstance(root, str) else folder, folder]
    result = []
    for part in given:
        # Exports name folders from where they were made: ../train/images lies beside data.yaml then.
        choices = [files.join(r, name) for name in (part, re.sub(r"^(\.\./)+", "", part)) for r in roots]
        found = next((choice for choice in choices if files.exists(choice)), None)
        if found is None:
            raise DataError(f"{path}: {split}: there is no {choices[0]}")
        result.append(found)
    return result


def _images(places: list[str]) -> Iterator[str]:
    """The image files of folders, with those below them, and of lists."""
    for place in places:
        if not files.is_folder(place):
            try:
                lines = files.read_text(place).splitlines()
            except (OSError, ValueError) as error:
                raise DataError(f"{place}: cannot be read ({error})") from None
            yield from (files.join(os.path.dirname(place), line.strip()) for line in lines if line.strip())
            continue
        yield from (os.path.join(place, name) for name in files.matching(place, *files.IMAGE_PATTERNS))
        folders = (os.path.join(place, name) for name in files.names_in(place))
        yield from _images([folder for folder in folders if files.is_folder(folder)])


def _label_path(image: str) -> str:
    """labels/.../NAME.txt of images/.../NAME.jpg, or the text file beside the image."""
    # In the working folder the path starts with images/.
    match = re.fullmatch(r"(.*/)?images/(.+)", image, re.DOTALL)
    return os.path.splitext(f"{match[1] or ''}labels/{match[2]}" if match else image)[0] + ".txt"


def _read_image(builder: SetBuilder, image: str, names: list[str]) -> None:
    try:
        header = read_header(image)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        builder.problem(code_of(error), image, "the file is missing" if missing else str(error))
        return
    height, width = header.upright  # as Ultralytics reads it
    path = image if files.is_remote(image) else os.path.relpath(image, builder.raw.images_dir or ".")
    image_id = builder.image(path, height, width, path)
    label = _label_path(image)
    if not files.exists(label):
        return
    try:
        lines = files.read_text(label).splitlines()
    except (OSError, ValueError) as error:
        builder.problem("unreadable-record", label, f"cannot be read ({error})")
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{label}: line {number}"
        try:
            name, polygon = _parse_line(line, names, height, width)
        except ValueError as error:
            builder.problem("unreadable-record", place, str(error))
            continue
        builder.instance(image_id, name, [polygon], place)


def _parse_line(line: str, names: list[str], height: int, width: int) -> tuple[str, list[float]]:
    """The class and the polygon in pixels; raises ValueError saying what is wrong."""
    first, *rest = line.split()
    number = plain_integer(finite(first))
    if number not in range(len(names)):
        raise ValueError(f"class {brief(first)} is none of 0..{len(names) - 1}")
    values = [finite(text) for text in rest]
    if len(values) == 4:
        raise ValueError("a box x, y, width, height without an outline")
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(values)} numbers are not an outline x y x y x y ...")
    if not all(-0.5 <= value <= 1.5 for value in values):
        raise ValueError("the numbers are not fractions of the sides, 0..1")
    return names[number], [
        value * side for value, side in zip(values, (width, height) * (len(values) // 2), strict=True)
    ]
