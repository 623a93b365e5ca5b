"""A folder of images with mask files: one indexed PNG an image, one file an instance, or masks of classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import ImageError, code_of, open_image, read_header
from kmaskrcnn.data.readers.components import count_scattered, label_components
from kmaskrcnn.data.sets.raw_set import RawSet, SetBuilder
from kmaskrcnn.errors import DataError, counted

_IMAGE_FOLDERS = ("images", "image", "imgs", "jpegimages", "pngimages")
_MASK_FOLDERS = ("masks", "mask", "pedmasks", "instances", "labels", "annotations")
_SUFFIXES = ("", "_mask", "_masks", "-mask", "_instances", "_label")
_MASK_PATTERNS = ("*.png", "*.tif", "*.tiff", "*.bmp", "*.gif")
_LOSSY_PATTERNS, _LOSSY_ENDINGS = ("*.jpg", "*.jpeg"), (".jpg", ".jpeg")
_CLASS = "object"
_LOSSY = "JPEG, which changes the values of a mask: save masks as PNG, TIFF, BMP or GIF"
# Masks of classes are told by so many files, of which this share of the values lies in parts far from each other.
_MOST_LOOKS, _SCATTERED = 200, 0.25


def find_images(folder: str) -> dict[str, str]:
    """Names of the image files of a folder by their names without ending; raises DataError where there is no folder."""
    try:
        return {files.stem(name): name for name in files.matching(folder, *files.IMAGE_PATTERNS)}
    except OSError:
        raise DataError(f"{folder}: no such folder of images") from None


def read_indices(path: str) -> np.ndarray:
    """(H, W) integers of a mask file: palette index, gray value (any integers), or RGB as r + 256 g + 65536 b.

    Raises OSError where it cannot be read, holds no whole numbers, or has smoothed edges.
    """
    indices, values = _values(path)
    if values:
        detail = f"{values} gray levels along the edges: a smoothed mask, not one value per object; save it unsmoothed"
        raise ImageError("smooth-mask", detail)
    return indices


def _values(path: str) -> tuple[np.ndarray, int]:
    """(H, W) integers of a mask file, and how many of them only smooth edges."""
    try:
        with files.open_binary(path) as file, open_image(file) as image:
            indices, is_palette = _indices(image), image.mode in ("P", "PA", "1")
    except ImageError as error:
        raise ImageError("unreadable-record", f"the mask cannot be read ({error})") from None
    return indices, 0 if is_palette else count_smooth_values(indices)


def _indices(image: Image.Image) -> np.ndarray:
    if image.mode in ("P", "L", "I", "1") or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min(initial=0) < 0:
            raise ImageError("unreadable-record", f"holds the negative value {values.min()}")
        return values
    if image.mode == "F":
        floats = np.asarray(image)
        if not (np.isfinite(floats).all() and (floats == np.rint(floats)).all() and floats.min(initial=0) >= 0):
            raise ImageError("unreadable-record", "holds floating-point values that are not whole numbers")
        return floats.astype(np.int64)
    if image.mode in ("LA", "PA"):
        return np.asarray(image)[..., 0].astype(np.int64)
    rgb = np.asarray(image.convert("RGB")).astype(np.int64)
    if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all():
        return rgb[..., 0]
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def count_smooth_values(indices: np.ndarray) -> int:
    """How many values of a label image only smooth its edges; 0 where values are objects.

    Such a value fills no 2 x 2 pixels and lies beside other values, as objects seldom do and rims of gray always.
    """
    values, inverse = np.unique(indices, return_inverse=True)
    if len(values) < 5:
        return 0
    inverse = inverse.reshape(indices.shape)
    corner = inverse[:-1, :-1]
    block = (corner == inverse[1:, :-1]) & (corner == inverse[:-1, 1:]) & (corner == inverse[1:, 1:])
    is_thin = np.ones(len(values), bool)
    is_thin[np.unique(corner[block])] = False
    is_thin[values == 0] = False
    if is_thin.sum() < 3 or 2 * is_thin.sum() < len(values) - 1:
        return 0
    thin = is_thin[inverse]
    touches = np.zeros(indices.shape, bool)
    for axis in (0, 1):
        a, b = (
            (slice(None, -1), slice(1, None))
            if axis == 0
            else ((slice(None), slice(None, -1)), (slice(None), slice(1, None)))
        )
        differ = (indices[a] != indices[b]) & (indices[a] > 0) & (indices[b] > 0)
        touches[a] |= differ
        touches[b] |= differ
    return int(is_thin.sum()) if (touches & thin).sum() >= 0.9 * thin.sum() else 0


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


def read_mask_files(path: str, images_dir: str) -> RawSet:
    """Read a folder with `images` and `masks`, or one whose subfolders have these, one an image.

    The masks of images/NAME.jpg are masks/NAME.png (or NAME_mask.png): each value but 0 is an instance; or the files
    of masks/NAME/, one an instance; or masks/CLASS/NAME.png. Where each image has its own folder every file of its
    masks folder is an instance. Without a folder CLASS the class is "object".
    """
    return _Reader(path, images_dir, are_semantic=False).read()


def read_semantic_masks(path: str, images_dir: str) -> RawSet:
    """Read masks of classes, laid out as for `read_mask_files`: the connected parts of a value are the instances.

    The class is the folder CLASS, else the value as text, or "object" where the set has one value alone. Smoothed masks
    are cut at half.
    """
    return _Reader(path, images_dir, are_semantic=True).read()


class _MaskFile(NamedTuple):
    """A mask file: its values, (0, 0) where it cannot be used; whether it is one object; the class, if it has one."""

    path: str
    values: np.ndarray
    one_object: bool
    label: str


class _Reader:
    """Reads a set of mask files."""

    def __init__(self, path: str, images_dir: str, are_semantic: bool):
        self.path, self.are_semantic = path, are_semantic
        self.pairs = [(images_dir, _named(path, _MASK_FOLDERS) or path)] if images_dir else list(_pairs_of(path))
        if not self.pairs:
            raise DataError(f"{path}: no folders of images and masks here; name the images' folder too")
        self.single = len(self.pairs) == 1
        self.root = self.pairs[0][0] if self.single else path
        self.builder = SetBuilder(path, self.root)
        self.masks_read, self.lossy = 0, 0
        self.used: set[str] = set()
        self.looks, self.values, self.scattered = 0, 0, 0  # files looked at, their values, those in separate parts

    def read(self) -> RawSet:
        """The set."""
        for images, masks in self.pairs:
            found = find_images(images)
            for name, file in found.items():
                one_folder = not self.single and len(found) == 1
                shown = file if self.single else os.path.relpath(os.path.join(images, file), self.root)
                sources = [(masks, "")] if one_folder else _sources(masks, name, found)
                self._read_image(os.path.join(images, file), shown, masks, sources)
                self.used |= {source for source, _ in sources}
            if self.single and os.path.normpath(images) != os.path.normpath(masks):
                self._note_unused(masks)
        if self.lossy and not self.masks_read:
            raise DataError(f"{self.pairs[0][1]}: {counted(self.lossy, 'mask file')} in {_LOSSY}")
        if self.scattered > _SCATTERED * self.values:
            self.builder.problem(
                "semantic-masks",
                self.pairs[0][1] if self.single else self.path,
                f"in {counted(self.looks, 'file')} {self.scattered} of {counted(self.values, 'value')} lie in several "
                "parts far from each other; data_format=semantic_masks makes each part an object",
            )
        values = {a["category_id"] for a in self.builder.raw.annotations}
        if self.are_semantic and len(values) == 1 and values.pop().isdecimal():  # black and white
            for annotation in self.builder.raw.annotations:
                annotation["category_id"] = _CLASS
        return self.builder.finish()

    def _read_image(self, path: str, name: str, masks: str, sources: list[tuple[str, str]]) -> None:
        """Add an image with its masks, or note why it is left out: without its mask it would pass for a negative."""
        try:
            header = read_header(path)
        except OSError as error:
            self.builder.problem(code_of(error), path, str(error))
            return
        parts = [part for source, label in sources for part in self._read_masks(source, label)]
        if not sources:
            self.builder.problem("unreadable-record", name, f"no mask of this image in {masks}")
        # Masks of the size of the stored pixels mean these, all others the image as EXIF turns it.
        sizes = {part.values.shape for part in parts if part.values.size}
        size = next((s for s in sizes if header.turn_for(*s) is not None), header.upright)
        instances = []
        is_whole = bool(sources)
        for part in parts:
            if part.values.shape == size:
                instances += list(self._instances(part))
                continue
            is_whole &= part.one_object
            if part.values.size:
                detail = f"{part.values.shape[1]} x {part.values.shape[0]}, its image {size[1]} x {size[0]}"
                self.builder.problem("image-size-differs", part.path, f"the mask has {detail}")
        if is_whole:
            image_id = self.builder.image(name, size[0], size[1], name)
            for class_name, mask, place in instances:
                self.builder.instance(image_id, class_name, mask, place)

    def _note_unused(self, masks: str) -> None:
        """Note the mask files of a folder, and those of its folders, that no image has."""
        for name in files.names_in(masks):
            place = os.path.join(masks, name)
            if place in self.used or not files.is_folder(place):
                continue
            names = files.matching(place, *_MASK_PATTERNS)
            unused = [n for n in names if os.path.join(place, n) not in self.used]
            if len(unused) == len(names) > 1:
                self.builder.problem("unlisted-mask", place, f"no image for the folder's {len(names)} files")
            else:
                self._note_files(place, unused)
        self._note_files(masks, files.matching(masks, *_MASK_PATTERNS))

    def _note_files(self, folder: str, names: list[str]) -> None:
        for name in names:
            if (path := os.path.join(folder, name)) not in self.used:
                self.builder.problem("unlisted-mask", path, f"no image for it in {self.pairs[0][0]}")

    def _read_masks(self, source: str, label: str) -> Iterator[_MaskFile]:
        """The mask files of a source, a file or a folder."""
        is_folder = files.is_folder(source)
        paths = [source]
        if is_folder:
            names = files.matching(source, *_MASK_PATTERNS) or files.matching(source, *_LOSSY_PATTERNS)
            paths = [os.path.join(source, name) for name in names]
        one_object = is_folder and not self.are_semantic
        for path in paths:
            part = _MaskFile(path, self._read(path, one_object), one_object, label)
            if not self.are_semantic and len(paths) == 1 and self.looks < _MOST_LOOKS:
                values, scattered = count_scattered(part.values)
                self.looks, self.values = self.looks + 1, self.values + values
                self.scattered += scattered
            yield part

    def _read(self, path: str, one_object: bool) -> np.ndarray:
        """(H, W) integers of a mask file; (0, 0) after a note where it cannot be used."""
        try:
            if os.path.splitext(path)[1].lower() in _LOSSY_ENDINGS:
                self.lossy += 1
                raise ImageError("unreadable-record", f"is a {_LOSSY}")
            if one_object or self.are_semantic:
                values, is_smooth = _values(path)
                values = values.max() * (2 * values >= values.max()) if is_smooth else values
            else:
                values = read_indices(path)
        except OSError as error:
            self.builder.problem(getattr(error, "code", "unreadable-record"), path, str(error))
            return np.zeros((0, 0), np.int64)
        self.masks_read += 1
        return (values > 0).astype(np.int64) if one_object else values

    def _instances(self, part: _MaskFile) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Class, RLE and name in messages of each object of a mask file."""
        if self.are_semantic:
            labels, values = label_components(part.values)
            for number, mask in indexed_masks(labels):
                value = int(values[number - 1])
                yield part.label or str(value), mask, f"{part.path}: value {value}, part {number}"
            return
        for value, mask in indexed_masks(part.values):
            yield part.label or _CLASS, mask, part.path if part.one_object else f"{part.path}: value {value}"


def _sources(masks: str, name: str, images: dict[str, str]) -> list[tuple[str, str]]:
    """(file or folder, class) of the masks of an image."""
    folder = os.path.join(masks, name)
    if files.is_folder(folder):
        return [(folder, "")]

    def file_in(place: str) -> str:
        choices = [
            os.path.join(place, f"{name}{s}{p[1:]}") for s in _SUFFIXES for p in _MASK_PATTERNS + _LOSSY_PATTERNS
        ]
        return next((choice for choice in choices if files.exists(choice)), "")

    if source := file_in(masks):
        return [(source, "")]
    labels = [n for n in files.names_in(masks) if n not in images and files.is_folder(os.path.join(masks, n))]
    return [(source, label) for label in labels if (source := file_in(os.path.join(masks, label)))]
