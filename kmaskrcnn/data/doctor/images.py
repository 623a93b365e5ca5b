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
from PIL import Image, ImageOps

from kmaskrcnn.data import files
from kmaskrcnn.data.doctor.defects import Findings
from kmaskrcnn.data.image_files import header_of
from kmaskrcnn.data.sets.check_record import is_integer
from kmaskrcnn.data.sets.check_set import image_path, image_record_problem
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
        orientation: EXIF's; turn: whether the annotations mean the picture as EXIF turns it.
        content: hash of the pixels as annotated.
    """

    record: dict[str, Any]
    place: str
    path: str
    span: tuple[int, int]
    orientation: int = 1
    turn: bool = False
    content: str = ""

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB as the annotations mean it."""
        with Image.open(io.BytesIO(files.read_bytes(self.path, *self.span))) as image:
            image = ImageOps.exif_transpose(image) if self.turn else image
            return np.asarray(image.convert("RGB"))


class _Look(NamedTuple):
    """What decoding a file told: a defect, or its size, orientation, hash, format and mode."""

    code: str = ""
    detail: str = ""
    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    content: str = ""
    format: str = ""
    mode: str = ""


def _look(path: str, span: tuple[int, int]) -> _Look:
    try:
        data = files.read_bytes(path, *span)
    except FileNotFoundError:
        return _Look("missing-image", "there is no such file")
    except OSError as error:
        return _Look("truncated-image", str(error))
    try:
        header = header_of(io.BytesIO(data))
        with Image.open(io.BytesIO(data)) as image:
            kind, mode = image.format or "", "animation" if getattr(image, "n_frames", 1) > 1 else image.mode
            if kind == "MPO":  # further pictures of the same shot are no animation
                mode = image.mode
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        codes = {"the file is empty": "empty-image-file", "not an image in a format that can be read": "not-an-image"}
        return _Look(codes.get(str(error), "truncated-image"), str(error))
    content = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    return _Look("", "", (header.height, header.width), header.orientation, content, kind, mode)


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
    candidates: list[ExaminedImage] = []
    target: dict[int, int] = {}
    by_path: dict[tuple[str, int], int] = {}
    for image, place in zip(raw.images, raw.image_places, strict=True):
        if detail := image_record_problem(image):
            findings.add("bad-image-record", place, detail)
            if isinstance(image, dict) and is_integer(image.get("id")):
                target.setdefault(image["id"], -1)
            continue
        if target.get(image["id"], -1) != -1:
            detail = f"id {image['id']}, {image['file_name']}"
            findings.add("duplicate-image-id", place, detail)
            continue
        span = (image["offset"], image["length"]) if "shard" in image else (0, -1)
        path = image_path(raw, image)
        first = by_path.setdefault((_normal(path), span[0]), image["id"])
        target[image["id"]] = first
        if first != image["id"]:
            findings.add("duplicate-file-name", place, f"{image['file_name']} is image {first} already")
            continue
        candidates.append(ExaminedImage(image, f"{place} ({image['file_name']})", path, span))
    kept, contents = [], {}
    for image, look in zip(candidates, _look_at_all(candidates), strict=True):
        number = image.record["id"]
        if not _judge(image, look, findings):
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
    _find_unlisted(raw, elsewhere, findings)
    return kept, target


def _look_at_all(images: list[ExaminedImage]) -> list[_Look]:
    progress, looks = Progress("images decoded", len(images)), []
    with concurrent.futures.ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        for look in pool.map(_look, [i.path for i in images], [i.span for i in images]):
            looks.append(look)
            progress.step()
    progress.clear()
    return looks


def _judge(image: ExaminedImage, look: _Look, findings: Findings) -> bool:
    """Note what a look showed, and whether the image can be kept."""
    if look.code:
        findings.add(look.code, image.place, look.detail)
        return False
    stated = (image.record["height"], image.record["width"])
    turned = look.size[::-1] if look.orientation >= 5 else look.size
    image.orientation, image.content = look.orientation, look.content
    if look.orientation != 1:
        image.turn = turned == stated and (turned != look.size or look.orientation < 5)
        meant = "as turned" if image.turn else "as stored"
        detail = f"orientation {look.orientation}, stored as {look.size[1]} x {look.size[0]}; "
        findings.add("exif-rotation", image.place, f"{detail}the annotations mean it {meant}")
    if stated != (turned if image.turn else look.size):
        detail = f"the file has {look.size[1]} x {look.size[0]}, the annotations {stated[1]} x {stated[0]}"
        findings.add("image-size-differs", image.place, detail)
        return False
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
    return {_normal(files.join(raw.images_dir, name)) for name in names}


def _normal(path: str) -> str:
    return path if files.is_remote(path) else os.path.normpath(path)


def _find_unlisted(raw: RawSet, elsewhere: Set[str], findings: Findings) -> None:
    listed = listed_files(raw)
    for folder in sorted({os.path.dirname(path) for path in listed}):
        if not files.is_folder(folder):
            continue
        for name in files.matching(folder, *files.IMAGE_PATTERNS):
            path = os.path.join(folder, name)
            if path not in listed and path not in elsewhere:
                findings.add("unlisted-image", path, "no record names it")


def find_leaks(train: list[ExaminedImage], val: list[ExaminedImage], findings: Findings) -> set[int]:
    """Ids of the training images whose pixels are in the validation set too; they are noted."""
    held_out = {image.content: image.record["file_name"] for image in val}
    leaked = [image for image in train if image.content in held_out]
    for image in leaked:
        findings.add("leak", image.place, f"the same pixels as {held_out[image.content]} of the validation set")
    return {image.record["id"] for image in leaked}
