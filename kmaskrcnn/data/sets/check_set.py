"""What of a raw data set can be trained on: every record and image file is looked at, and what is wrong is named."""

from __future__ import annotations

import concurrent.futures
from typing import Any

from pycocotools import mask as mask_utils

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import ImageHeader, read_header
from kmaskrcnn.data.sets.check_record import Problems, is_integer, parse_box, parse_segmentation
from kmaskrcnn.data.sets.masks import Segmentation, mask_frame
from kmaskrcnn.data.sets.raw_set import RawSet
from kmaskrcnn.errors import DataError
from kmaskrcnn.progress import Progress


def check_categories(path: str, categories: list) -> None:
    """Raise DataError on the first category that has no integer id and text name, or an id seen before."""
    seen = set()
    for position, category in enumerate(categories):
        good = isinstance(category, dict) and is_integer(category.get("id")) and isinstance(category.get("name"), str)
        if not good:
            raise DataError(f"{path}: categories[{position}]: needs an integer 'id' and a text 'name'")
        if category["id"] in seen:
            raise DataError(f"{path}: categories[{position}]: duplicate category id {category['id']}")
        seen.add(category["id"])


def image_record_problem(image: Any) -> str:
    """What is wrong with a COCO image record; empty if nothing."""
    keys = ("id", "height", "width")
    good = isinstance(image, dict) and all(is_integer(image.get(k)) for k in keys) and image.get("file_name")
    if not good or not isinstance(image["file_name"], str) or min(image["height"], image["width"]) < 1:
        return "needs integers 'id', 'height', 'width' and a text 'file_name'"
    return ""


def image_path(raw: RawSet, image: dict) -> str:
    """The file that holds an image: its own, or the TFRecord shard it lies in."""
    return image["shard"] if "shard" in image else files.join(raw.images_dir, image["file_name"])


def _header(path: str, image: dict) -> ImageHeader | OSError:
    if "shard" in image:  # looked at when the shard was read or written
        return ImageHeader(image["height"], image["width"], 1, bool(image["by_pillow"]))
    try:
        return read_header(path)
    except OSError as error:
        return error


def keep_images(raw: RawSet, problems: Problems) -> tuple[list[dict], list[ImageHeader], list[str], set[int]]:
    """Images whose record and file are in order, with their headers and paths, and the ids of those left out."""
    candidates, names, seen, dropped = [], [], set(), set()
    for image, place in zip(raw.images, raw.image_places, strict=True):
        if detail := image_record_problem(image):
            problems.add("bad image record", place, detail)
            if isinstance(image, dict) and is_integer(image.get("id")):
                dropped.add(image["id"])
        elif image["id"] in seen:
            problems.add("duplicate image id", f"{place} ({image['file_name']})", f"duplicate image id {image['id']}")
        else:
            seen.add(image["id"])
            candidates.append(image)
            names.append(place)
    paths = [image_path(raw, image) for image in candidates]
    progress, headers = Progress("image files looked at", len(paths)), []
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for header in pool.map(_header, paths, candidates, chunksize=64):
            headers.append(header)
            progress.step()
    progress.clear()
    kept: tuple[list, list, list] = [], [], []
    for image, header, path, place in zip(candidates, headers, paths, names, strict=True):
        record, reason = f"image {image['id']} ({path})" if not raw.named else f"{place} ({path})", ""
        if isinstance(header, FileNotFoundError):
            reason, detail = "missing image", "the file is missing"
        elif isinstance(header, OSError):
            reason, detail = "unreadable image", str(header)
        elif (header.height, header.width) != (image["height"], image["width"]):
            reason = "image size differs"
            stated = f"{image['width']} x {image['height']}"
            detail = f"the file has {header.width} x {header.height}, the annotations {stated}"
            if header.orientation >= 5:
                detail += "; its EXIF orientation turns it, store it upright"
        if reason:
            problems.add(reason, record, detail)
            dropped.add(image["id"])
        else:
            for column, value in zip(kept, (image, header, path), strict=True):
                column.append(value)
    return *kept, dropped - {image["id"] for image in kept[0]}


def _check_links(annotation: Any, seen: set, index_of: dict, class_of: dict) -> tuple[str, str] | None:
    """(reason, detail) if ids of an annotation are missing, repeated or unknown."""
    if not isinstance(annotation, dict) or not is_integer(annotation.get("id")):
        return "bad annotation record", "needs an integer 'id'"
    if annotation["id"] in seen:
        return "duplicate annotation id", f"duplicate annotation id {annotation['id']}"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return "bad annotation record", f"iscrowd is {annotation['iscrowd']!r}, needs 0 or 1"
    for key, known, reason in (("image_id", index_of, "unknown image"), ("category_id", class_of, "unknown category")):
        if not is_integer(annotation.get(key)) or annotation[key] not in known:
            return reason, f"{reason} id {annotation.get(key)!r}"
    return None


def keep_annotations(raw: RawSet, images: list[dict], dropped: set[int], problems: Problems) -> list[tuple]:
    """Rows (image index, class, crowd, box, frame, COCO bbox, id, area, segmentation) of the annotations in order.

    Annotations of images in `dropped` are left out; they are counted only where bad records are skipped.
    """
    index_of = {image["id"]: index for index, image in enumerate(images)}
    class_of = {number: i for i, number in enumerate(sorted(c["id"] for c in raw.categories), 1)}
    seen, rows = set(), []
    progress = Progress("annotations looked at", len(raw.annotations))
    for annotation, place in zip(raw.annotations, raw.annotation_places, strict=True):
        progress.step()
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if is_integer(image_id) and image_id in dropped:
            if problems.skip:  # in error mode the image itself is the one line to read
                problems.add("annotation of an image left out", place, "its image was left out")
            continue
        record = place
        if isinstance(annotation, dict) and not raw.named:
            record += f" (id {annotation.get('id')}, image {image_id})"
        if problem := _check_links(annotation, seen, index_of, class_of):
            problems.add(problem[0], record, problem[1])
            continue
        seen.add(annotation["id"])
        index = index_of[image_id]
        if not raw.named:
            record = f"{place} (id {annotation['id']}, {images[index]['file_name']})"
        height, width = images[index]["height"], images[index]["width"]
        try:
            reason = "bad segmentation"
            segmentation = parse_segmentation(annotation.get("segmentation"), height, width)
            reason = "bad box"
            box = parse_box(annotation.get("bbox"), height, width)
        except ValueError as error:
            problems.add(reason, record, str(error))
            continue
        area = annotation.get("area")
        if not isinstance(area, int | float):
            area = area_of(segmentation, height, width)
        frame = mask_frame(segmentation, box, height, width)
        crowd, number = bool(annotation.get("iscrowd", 0)), class_of[annotation["category_id"]]
        rows.append((index, number, crowd, box, frame, annotation["bbox"], annotation["id"], area, segmentation))
    progress.clear()
    return rows


def area_of(segmentation: Segmentation, height: int, width: int) -> float:
    """Pixels of a parsed segmentation, as pycocotools draws it."""
    if isinstance(segmentation, list):
        segmentation = mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))
    return float(mask_utils.area(segmentation))
