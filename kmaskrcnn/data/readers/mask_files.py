"""A folder of images with instance-mask files: one indexed PNG an image, or one file an instance."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import ImageError, ImageHeader, code_of, open_image, read_header
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
    """(H, W) integers of a mask file: palette index, gray value (any integers), or RGB as r + 256 g + 65536 b.

    Raises OSError where it cannot be read, holds no whole numbers, or has smoothed edges.
    """
    try:
        with files.open_binary(path) as file, open_image(file) as image:
            indices, is_palette = _indices(image), image.mode in ("P", "PA", "1")
    except ImageError as error:
        raise ImageError("unreadable-record", f"the mask cannot be read ({error})") from None
    if not is_palette and (values := count_smooth_values(indices)):
        detail = f"{values} gray levels along the edges: a smoothed mask, not one value per object; save it unsmoothed"
        raise ImageError("smooth-mask", detail)
    return indices


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
            one_folder = not single and len(found) == 1
            sources = [(masks, "")] if one_folder else _sources(masks, name, found)
            if not sources:
                builder.problem("unreadable-record", names[name], f"no mask of this image in {masks}")
            parts = [part for source, label in sources for part in _read_masks(builder, source, label or default_class)]
            # Masks of the size of the stored pixels mean these, all others the image as EXIF turns it.
            sizes = {part.indices.shape for part in parts}
            size = next((s for s in sizes if header.turn_for(*s) is not None), header.upright)
            image_id = builder.image(names[name], size[0], size[1], names[name])
            for part in parts:
                _add_masks(builder, image_id, part, size)
    return builder.finish()


def _header(builder: SetBuilder, path: str) -> ImageHeader | None:
    try:
        return read_header(path)
    except OSError as error:
        builder.problem(code_of(error), path, str(error))
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


class _MaskFile(NamedTuple):
    """A mask file: its values, whether it is one object, and the class."""

    path: str
    indices: np.ndarray
    one_object: bool
    label: str


def _read_masks(builder: SetBuilder, source: str, label: str) -> Iterator[_MaskFile]:
    one_each = files.is_folder(source)
    paths = [os.path.join(source, n) for n in files.matching(source, *_MASK_PATTERNS)] if one_each else [source]
    for path in paths:
        try:
            yield _MaskFile(path, _read_object(path) if one_each else read_indices(path), one_each, label)
        except OSError as error:
            builder.problem(getattr(error, "code", "unreadable-record"), path, str(error))


def _read_object(path: str) -> np.ndarray:
    """(H, W) bool of a file with one object; of a smoothed one what is at least half as bright as the brightest."""
    try:
        with files.open_binary(path) as file, open_image(file) as image:
            indices, is_palette = _indices(image), image.mode in ("P", "PA", "1")
    except ImageError as error:
        raise ImageError("unreadable-record", f"the mask cannot be read ({error})") from None
    if is_palette or not count_smooth_values(indices):
        return indices > 0
    return 2 * indices >= indices.max()


def _add_masks(builder: SetBuilder, image_id: int, part: _MaskFile, size: tuple[int, int]) -> None:
    path, indices = part.path, part.indices
    if indices.shape != size:
        sizes = f"{indices.shape[1]} x {indices.shape[0]}, its image {size[1]} x {size[0]}"
        builder.problem("image-size-differs", path, f"the mask has {sizes}")
        return
    for value, rle in [(1, encode_mask(indices))] if part.one_object else indexed_masks(indices):
        builder.instance(image_id, part.label, rle, path if part.one_object else f"{path}: value {value}")
