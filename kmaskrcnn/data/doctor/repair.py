"""The repaired copy of an examined set: COCO JSON and images, which load without a word."""

from __future__ import annotations

import io
import json
import os

from PIL import Image

from kmaskrcnn.data import files
from kmaskrcnn.data.doctor.examine import Examined
from kmaskrcnn.data.doctor.images import ExaminedImage
from kmaskrcnn.data.image_files import read_encoded
from kmaskrcnn.data.readers.opening import load_coco
from kmaskrcnn.progress import Progress

_QUALITY = 95  # of a JPEG that has to be written anew since its EXIF orientation is carried out


def write_repaired(examined: Examined, folder: str) -> str:
    """Write `instances.json` and the images into a folder, and load them once.

    Images are copied byte by byte but for those with an EXIF orientation, which are written upright or, where the
    annotations mean the pixels as stored, without it.

    Returns:
        The path of the JSON; file names in it start from its folder.

    Raises:
        OutputError: a file is in the way that an earlier repair did not write.
    """
    outputs = files.open_outputs(folder, "doctor", [examined.source, *dict.fromkeys(i.path for i in examined.images)])
    used: set[str] = set()
    names = [_name(image, used) for image in examined.images]
    outputs.check(["instances.json", *(f"images/{name}" for name in names)])
    progress = Progress("images copied", len(examined.images))
    images = []
    for image, name in zip(examined.images, names, strict=True):
        outputs.write_bytes(f"images/{name}", _contents(image))
        record = {k: v for k, v in image.record.items() if k not in ("shard", "offset", "length", "by_pillow", "turn")}
        images.append({**record, "file_name": f"images/{name}"})
        progress.step()
    progress.clear()
    tree = {
        "images": images,
        "annotations": [a.record for a in examined.annotations],
        "categories": examined.categories,
    }
    path = outputs.write_text("instances.json", json.dumps(tree))
    if images and tree["annotations"]:
        load_coco(path)
    return path


def _name(image: ExaminedImage, used: set[str]) -> str:
    """A file name inside the copy, of which no other image has it."""
    parts = os.path.normpath(image.record["file_name"]).split(os.sep)
    name = "/".join(part for part in parts if part not in ("..", ""))
    stem, ending = os.path.splitext(name)
    if "shard" in image.record and not ending:
        ending = ".png" if read_encoded(image.path, *image.span).startswith(b"\x89PNG") else ".jpg"
    number, unique = 1, stem + ending
    while unique.casefold() in used:
        number, unique = number + 1, f"{stem}_{number + 1}{ending}"
    used.add(unique.casefold())
    return unique


def _contents(image: ExaminedImage) -> bytes:
    data = read_encoded(image.path, *image.span)
    if image.orientation == 1:
        return data
    if data.startswith(b"\xff\xd8") and image.turn == 1:
        return _without_exif(data)
    buffer = io.BytesIO()
    if data.startswith(b"\xff\xd8"):
        Image.fromarray(image.pixels()).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    else:
        kind = "WEBP" if data.startswith(b"RIFF") else "PNG"
        Image.fromarray(image.pixels()).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def _without_exif(data: bytes) -> bytes:
    """A JPEG without its EXIF segments, the image itself as it was."""
    kept, position = [data[:2]], 2
    while data[position : position + 1] == b"\xff" and data[position + 1] != 0xDA:  # up to the start of the scan
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if not (data[position + 1] == 0xE1 and data[position + 4 : position + 8] == b"Exif"):
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])
