"""The doctor's look at image records and files: each is decoded whole."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
import os
from collections.abc import Set
from typing import Any, NamedTuple

import numpy as np

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import ImageHeader, code_of, header_of, load_pixels, open_image, read_encoded
from kmaskrcnn.data.sets.check_set import (
    ImagePlace,
    check_image_records,
    check_same_files,
    check_size,
    settle_names,
)
from kmaskrcnn.data.sets.defects import Findings
from kmaskrcnn.data.sets.file_names import missing_detail
from kmaskrcnn.data.sets.raw_set import RawSet
from kmaskrcnn.progress import Progress

_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}


@dataclasses.dataclass
class ExaminedImage:
    """An image that is in order or can be put in order.

    Attributes:
        record: COCO's, with the size that the annotations mean.
        place: what messages call it.
        path, span: the file, and offset and length of the image in it (length -1: all of it).
        orientation: EXIF's; turn: the one to undo for what the annotations mean, 1 for the pixels as stored.
        content: hash of the pixels as annotated.
    """

    record: dict[str, Any]
    place: str
    path: str
    span: tuple[int, int]
    orientation: int = 1
    turn: int = 1
    content: str = ""

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB as the annotations mean it."""
        return load_pixels(read_encoded(self.path, *self.span), self.turn)


class _Look(NamedTuple):
    """What decoding a file told: an error, or its header, the hash of its pixels as stored, format and mode."""

    error: OSError | None = None
    header: ImageHeader | None = None
    content: str = ""
    format: str = ""
    mode: str = ""


def _look(path: str, span: tuple[int, int]) -> _Look:
    """Decode an image as training does."""
    try:
        data = read_encoded(path, *span)
        header = header_of(io.BytesIO(data))
        with open_image(io.BytesIO(data)) as image:
            kind, mode = image.format or "", "animation" if getattr(image, "n_frames", 1) > 1 else image.mode
            if kind == "MPO":  # further images of the same shot are no animation
                mode = image.mode
        pixels = load_pixels(data, 1)
    except OSError as error:
        return _Look(error)
    content = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return _Look(None, header, content, kind, mode)


def examine_images(
    raw: RawSet, findings: Findings, elsewhere: Set[str] = frozenset()
) -> tuple[list[ExaminedImage], dict[int, int]]:
    """Look at every image of a raw set.

    Args:
        raw: the set.
        findings: where defects are noted.
        elsewhere: files that another set names.

    Returns:
        The images to keep, and for each known image id the id under which its objects are kept, or -1 where
        the image cannot be kept.
    """
    places, bad = check_image_records(raw, findings)
    missing = [i for i, place in enumerate(places) if place.span[1] < 0 and not _is_there(place.path)]
    for position, name in settle_names(raw, places, missing, findings).items():
        record, path = {**places[position].record, "file_name": name}, files.join(raw.images_dir, name)
        places[position] = places[position]._replace(record=record, path=path)
    target = dict.fromkeys(bad, -1) | check_same_files(places, findings)
    firsts = [one for one in places if target[one.record["id"]] == one.record["id"]]
    candidates = [ExaminedImage(one.record, one.place, one.path, one.span) for one in firsts]
    kept, contents = [], {}
    for image, look in zip(candidates, _look_at_all(candidates), strict=True):
        number = image.record["id"]
        if not _judge(raw, image, look, findings):
            target[number] = -1
            continue
        first = contents.setdefault(image.content, image.record)
        if first is not image.record:
            findings.add("duplicate-content", image.place, f"the same pixels as {first['file_name']}")
            target[number] = -1
            continue
        kept.append(image)
    for other, first in target.items():  # objects of a second record of a file follow the first record
        if first not in (-1, other):
            target[other] = target[first]
    listed = {files.normal_path(place.path) for place in places if place.span[1] < 0}
    _find_unlisted(listed | listed_files(raw), elsewhere, findings)
    return kept, target


def _is_there(path: str) -> bool:
    try:
        return files.exists(path)
    except (OSError, ValueError):
        return True  # reading it will tell


def _look_at_all(images: list[ExaminedImage]) -> list[_Look]:
    progress, looks = Progress("images decoded", len(images)), []
    with concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        for look in pool.map(_look, [i.path for i in images], [i.span for i in images]):
            looks.append(look)
            progress.step()
    progress.clear()
    return looks


def _judge(raw: RawSet, image: ExaminedImage, look: _Look, findings: Findings) -> bool:
    """Note what a look showed, and whether the image can be kept."""
    if look.header is None:
        assert look.error is not None
        missing = isinstance(look.error, FileNotFoundError)
        detail = missing_detail(raw.images_dir, image.record["file_name"]) if missing else str(look.error)
        findings.add(code_of(look.error), image.place, detail)
        return False
    image.orientation, image.content = look.header.orientation, look.content
    turn = check_size(ImagePlace(image.record, image.place, image.path, image.span), look.header, findings.add)
    if turn is None:
        return False
    image.turn = turn
    ending = os.path.splitext(image.record["file_name"])[1].lower()
    if "shard" not in image.record and ending not in _ENDINGS.get(look.format, (ending,)):
        findings.add("wrong-file-ending", image.place, f"a {look.format} file")
    if look.mode not in ("RGB", "L", "P", "1"):
        findings.add("unusual-pixels", image.place, look.mode)
    return True


def listed_files(raw: RawSet) -> set[str]:
    """The image files that the records of a set name; none where images lie in shards."""
    images = [i for i in raw.images if isinstance(i, dict) and "shard" not in i]
    names = [i["file_name"] for i in images if isinstance(i.get("file_name"), str)]
    return {files.normal_path(files.join(raw.images_dir, name)) for name in names}


def _find_unlisted(listed: Set[str], elsewhere: Set[str], findings: Findings) -> None:
    known = elsewhere | {finding.place for finding in findings.of("unlisted-image")}  # by the reader
    for folder in sorted({os.path.dirname(path) for path in listed}):
        if not files.is_folder(folder):
            continue
        for name in files.matching(folder, *files.IMAGE_PATTERNS):
            path = os.path.join(folder, name)
            if path not in listed and path not in known:
                findings.add("unlisted-image", path, "no record names it")


def find_leaks(train: list[ExaminedImage], val: list[ExaminedImage], findings: Findings) -> set[int]:
    """Ids of the training images whose pixels are in the validation set too; they are noted."""
    held_out = {image.content: image.record["file_name"] for image in val}
    leaked = [image for image in train if image.content in held_out]
    for image in leaked:
        findings.add("leak", image.place, f"the same pixels as {held_out[image.content]} of the validation set")
    return {image.record["id"] for image in leaked}
