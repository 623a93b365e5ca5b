"""Pascal VOC with instance masks: Annotations/*.xml, JPEGImages and SegmentationObject/*.png."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree

from kmaskrcnn.data import files
from kmaskrcnn.data.readers.mask_files import find_images, indexed_masks, read_indices
from kmaskrcnn.data.sets.raw_set import RawSet, SetBuilder
from kmaskrcnn.errors import DataError

_VOID = 255  # the rim around objects that belongs to none
_MASKS, _IMAGES, _RECORDS = "SegmentationObject", "JPEGImages", "Annotations"


def is_voc(folder: str) -> bool:
    """Whether a folder is laid out as VOC with instance masks."""
    return all(files.is_folder(os.path.join(folder, name)) for name in (_MASKS, _RECORDS))


def list_root(path: str) -> str:
    """The folder of the set that a list below its ImageSets belongs to; empty where it is no such list."""
    match = re.fullmatch(r"(.*/)?ImageSets/.+\.txt", path)
    return (match[1] or ".") if match else ""


def read_voc(path: str, images_dir: str) -> RawSet:
    """Read a VOC folder, or of it the images that a list such as ImageSets/Segmentation/train.txt names.

    Pixel value i of an instance PNG is object i of the XML, 255 belongs to none; difficult objects become crowds, so
    that they count neither way. Objects without pixels and pixels without an object are bad records.
    """
    root, wanted = path, None
    if path.endswith(".txt"):
        root = list_root(path) or path
        try:
            wanted = {line.split()[0] for line in files.read_text(path).splitlines() if line.strip()}
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error})") from None
    if not is_voc(root):
        raise DataError(f"{path}: not a VOC set: needs the folders {_RECORDS} and {_MASKS}")
    images_dir = images_dir or os.path.join(root, _IMAGES)
    images = find_images(images_dir)
    builder = SetBuilder(path, images_dir)
    found = {files.stem(name): name for name in files.matching(os.path.join(root, _MASKS), "*.png")}
    for name in sorted(wanted if wanted is not None else found):
        if name not in found:
            builder.problem("unreadable-record", name, f"{_MASKS}/{name}.png is missing")
        elif name not in images:
            builder.problem("missing-image", name, f"no image {name}.* in {images_dir}")
        else:
            _read_image(builder, root, name, images[name])
    return builder.finish()


def _read_image(builder: SetBuilder, root: str, name: str, image: str) -> None:
    mask_path = os.path.join(root, _MASKS, f"{name}.png")
    try:
        tree = ElementTree.fromstring(files.read_bytes(os.path.join(root, _RECORDS, f"{name}.xml")))
        objects = [((o.findtext("name") or "").strip(), o.findtext("difficult") == "1") for o in tree.iter("object")]
    except FileNotFoundError:
        builder.problem("unreadable-record", name, f"{_RECORDS}/{name}.xml is missing")
        return
    except (OSError, ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        builder.problem("unreadable-record", f"{_RECORDS}/{name}.xml", f"not XML ({error})")
        return
    try:
        indices = read_indices(mask_path)
    except OSError as error:
        builder.problem(getattr(error, "code", "unreadable-record"), f"{_MASKS}/{name}.png", str(error))
        return
    height, width = indices.shape
    image_id = builder.image(image, height, width, f"{_MASKS}/{name}.png")
    masks = dict(indexed_masks(indices, void=_VOID))
    for number, (label, difficult) in enumerate(objects, 1):
        place = f"{_RECORDS}/{name}.xml: object {number} ({label})"
        if not label:
            builder.problem("bad-annotation-record", place, "the object has no name")
        elif number not in masks:
            builder.problem("unreadable-record", place, f"{_MASKS}/{name}.png has no pixel of value {number}")
        else:
            builder.instance(image_id, label, masks[number], place, is_crowd=difficult)
    for number in sorted(masks.keys() - set(range(1, len(objects) + 1))):
        builder.problem(
            "unreadable-record",
            f"{_MASKS}/{name}.png: value {number}",
            f"{_RECORDS}/{name}.xml has {len(objects)} objects",
        )
