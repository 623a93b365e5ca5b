"""A folder of images with instance-mask files: one indexed PNG an image, or one file an instance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import read_header
from kmaskrcnn.data.sets.raw_set import RawSet, SetBuilder, encode_mask
from kmaskrcnn.errors import DataError

_IMAGE_FOLDERS = ("images", "image", "imgs", "jpegimages", "pngimages")
_MASK_FOLDERS = ("masks", "mask", "pedmasks", "instances", "labels", "annotations")
_SUFFIXES = ("", "_mask", "_masks", "-mask", "_instances", "_label")
_MASK_PATTERNS = ("*.png", "*.tif", "*.tiff", "*.bmp", "*.gif")


def find_images(folder: str) -> dict[str, str]:
    """Names of the image files of a folder by their names without ending; raises DataError where there is no folder."""
    try:
        return {files.stem(name): name for name in files.matching(folder, *files.IMAGE_PATTERNS)}
    except OSError:
        raise DataError(f"{folder}: no such folder of images") from None


def read_indices(path: str) -> np.ndarray:
    """(H, W) integers of a mask file: palette index, gray value (8 or 16 bits), or RGB as r + 256 g + 65536 b.

    Raises OSError where it cannot be read.
    """
    try:
        with files.open_binary(path) as file, Image.open(file) as image:
            if image.mode in ("P", "L", "I", "I;16", "I;16B", "1"):
                return np.asarray(image).astype(np.int64)
            if image.mode == "LA":
                return np.asarray(image)[..., 0].astype(np.int64)
            rgb = np.asarray(image.convert("RGB")).astype(np.int64)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise OSError(f"the mask cannot be read ({error})") from None
    if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all():
        return rgb[..., 0]
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def indexed_masks(indices: np.ndarray, void: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """(value, RLE) of every value of an indexed mask but 0 and `void`, in order."""
    height, width = indices.shape
    values, inverse = np.unique(indices, return_inverse=True)
    # All runs of the image column by column; the runs of one value, and the gaps between them, are its RLE.
    flat = inverse.reshape(height, width).T.reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    ends = np.concatenate([starts[1:], [flat.size]])
    owner = flat[starts]
    for number, value in enumerate(values.tolist()):
        if value in (0, void):
            continue
        mine = owner == number
        edges = np.stack([starts[mine], ends[mine]], axis=1).reshape(-1)
        counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
        counts = counts[:-1] if counts[-1] == 0 else counts
        rle = mask_utils.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
        yield value, {"size": [height, width], "counts": rle["counts"].decode()}


def is_mask_folder(folder: str) -> bool:
    """Whether a folder is laid out as images with mask files."""
    return any(_pairs_of(folder))


def _named(folder: str, choices: tuple[str, ...]) -> str:
    """The subfolder with one of these names, whatever its case; empty if none."""
    found = {n.lower(): n for n in files.names_in(folder) if files.is_folder(os.path.join(folder, n))}
    return next((os.path.join(folder, found[c]) for c in choices if c in found), "")


def _pairs_of(folder: str) -> Iterator[tuple[str, str]]:
    """(images folder, masks folder) of the set, or of each of its images (the 2018 Data Science Bowl)."""
    images, masks = _named(folder, _IMAGE_FOLDERS), _named(folder, _MASK_FOLDERS)
    if images and masks:
        yield images, masks
        return
    for name in files.names_in(folder):
        child = os.path.join(folder, name)
        if files.is_folder(child):
            images, masks = _named(child, _IMAGE_FOLDERS), _named(child, _MASK_FOLDERS)
            if images and masks:
                yield images, masks


def read_mask_files(path: str, images_dir: str, default_class: str = "object") -> RawSet:
    """Read a folder with `images` and `masks`, or one whose subfolders have these, one an image.

    The masks of images/NAME.jpg are masks/NAME.png (or NAME_mask.png): each value but 0 is an instance; or the files
    of masks/NAME/, one an instance; or masks/CLASS/NAME.png. Where each image has its own folder every file of its
    masks folder is an instance. Without a folder CLASS the class is `default_class`.
    """
    pairs = [(images_dir, path)] if images_dir else list(_pairs_of(path))
    if not pairs:
        raise DataError(f"{path}: no folders of images and masks here; name the images' folder too")
    single = len(pairs) == 1
    root = pairs[0][0] if single else path
    builder = SetBuilder(path, root)
    for images, masks in pairs:
        found = find_images(images)
        names = {name: os.path.relpath(os.path.join(images, f), root) if not single else f for name, f in found.items()}
        for name in found:
            header = _header(builder, os.path.join(images, found[name]))
            if header is None:
                continue
            image_id = builder.image(names[name], header.height, header.width, names[name])
            one_folder = not single and len(found) == 1
            sources = [(masks, "")] if one_folder else _sources(masks, name, found)
            if not sources:
                builder.problem("missing mask", names[name], f"no mask of this image in {masks}")
            for source, label in sources:
                _read_masks(builder, image_id, source, label or default_class, (header.height, header.width))
    return builder.finish()


def _header(builder: SetBuilder, path: str) -> Any:
    try:
        return read_header(path)
    except OSError as error:
        builder.problem("unreadable image", path, str(error))
        return None


def _sources(masks: str, name: str, images: dict[str, str]) -> list[tuple[str, str]]:
    """(file or folder, class) of the masks of an image."""
    folder = os.path.join(masks, name)
    if files.is_folder(folder):
        return [(folder, "")]

    def file_in(place: str) -> str:
        choices = [os.path.join(place, f"{name}{s}{p[1:]}") for s in _SUFFIXES for p in _MASK_PATTERNS]
        return next((choice for choice in choices if files.exists(choice)), "")

    if source := file_in(masks):
        return [(source, "")]
    labels = [n for n in files.names_in(masks) if n not in images and files.is_folder(os.path.join(masks, n))]
    return [(source, label) for label in labels if (source := file_in(os.path.join(masks, label)))]


def _read_masks(builder: SetBuilder, image_id: int, source: str, label: str, size: tuple[int, int]) -> None:
    one_each = files.is_folder(source)
    paths = [os.path.join(source, n) for n in files.matching(source, *_MASK_PATTERNS)] if one_each else [source]
    for path in paths:
        try:
            indices = read_indices(path)
        except OSError as error:
            builder.problem("unreadable mask", path, str(error))
            continue
        if indices.shape != size:
            sizes = f"{indices.shape[1]} x {indices.shape[0]}, its image {size[1]} x {size[0]}"
            builder.problem("image size differs", path, f"the mask has {sizes}")
            continue
        parts = [(1, encode_mask(indices > 0))] if one_each else indexed_masks(indices)
        for value, rle in parts:
            place = path if one_each else f"{path}: value {value}"
            builder.instance(image_id, label, rle, place)
