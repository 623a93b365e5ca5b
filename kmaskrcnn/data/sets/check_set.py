"""The one set of checks of a raw data set: the doctor collects what they find, the loader raises it.

Every function takes `findings` and goes on after what it finds, as far as anything can be used.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import ImageHeader, code_of, read_header
from kmaskrcnn.data.sets.check_mask import CheckedMask, Note, check_area, check_mask
from kmaskrcnn.data.sets.check_record import brief, is_id, parse_box, size_flaw
from kmaskrcnn.data.sets.defects import DEFECTS, ERROR, Finding, Findings
from kmaskrcnn.data.sets.file_names import find_moved, find_spelling, missing_detail
from kmaskrcnn.data.sets.raw_set import RawSet
from kmaskrcnn.errors import DataError, Flaw, counted
from kmaskrcnn.progress import Progress

# More lines than this help nobody; the total is stated besides.
_MAX_LINES = 20
# What is wrong with a class is wrong with each of its objects, and said once.
_OF_A_CLASS = ("unknown-class", "unknown-category")
# Sides of a box may differ from the mask's by this many pixels, or this share of its longer side.
_BOX_PIXELS, _BOX_SHARE = 3.0, 0.05
_PARTS = ("offset", "length")


def raise_errors(findings: Findings, source: str) -> None:
    """Raise DataError with a line for each error, up to a limit, if there are any."""
    errors = findings.errors()
    if errors:
        count, them = counted(len(errors), "bad record"), "it" if len(errors) == 1 else "them"
        last = f"{count}; on_bad_record=skip leaves {them} out"
        raise DataError("\n".join([*error_lines(findings, source), last]))


def error_lines(findings: Findings, source: str) -> list[str]:
    """The first errors, a line each, and how many more there are; one line stands for all objects of a wrong class."""
    alike: dict[tuple[str, str], list[Finding]] = {}
    for number, finding in enumerate(findings.errors()):
        key = finding.detail if finding.code in _OF_A_CLASS else str(number)
        alike.setdefault((finding.code, key), []).append(finding)
    lines = [
        f"{source}: {first.place}: {first.detail}" + f" (and {len(rest)} more of it)" * bool(rest)
        for first, *rest in alike.values()
    ]
    more = [f"... and {len(lines) - _MAX_LINES} more"] if len(lines) > _MAX_LINES else []
    return [*lines[:_MAX_LINES], *more]


def no_objects(images: int) -> str:
    """That a set has nothing to train on."""
    return "its image has no object" if images == 1 else f"none of its {images} images has an object"


# Classes


def check_categories(raw: RawSet, findings: Findings) -> tuple[list[dict], dict[int, int]]:
    """Look at the classes; returns those to keep, and the id to keep for each known id.

    Categories of one name are one class, under the id that has objects: exports often carry an unused root category.
    """
    used = {a.get("category_id") for a in raw.annotations if isinstance(a, dict) and is_id(a.get("category_id"))}
    sound: list[tuple[str, dict]] = []
    seen: set[int] = set()
    for position, category in enumerate(raw.categories):
        place = f"categories[{position}]"
        name = category.get("name") if isinstance(category, dict) else None
        if not isinstance(name, str) or not is_id(category.get("id")):
            findings.add("bad-category", place, f"needs an integer 'id' and a text 'name', is {brief(category)}")
        elif category["id"] in seen:
            detail = f"duplicate category id {category['id']}: {brief(name)} and one before"
            findings.add("duplicate-category-id", place, detail)
        else:
            seen.add(category["id"])
            sound.append((place, category))
    kept: dict[str, dict] = {}
    for _, category in sorted(sound, key=lambda item: item[1]["id"] not in used):
        kept.setdefault(category["name"], category)
    loose: dict[str, str] = {}
    for place, category in sound:
        name, first = category["name"], kept[category["name"]]["id"]
        if first != category["id"]:
            findings.add("duplicate-category-name", place, f"{name!r} has the ids {first} and {category['id']}")
            continue
        other = loose.setdefault("".join(name.lower().split()), name)
        if other != name:
            findings.add("similar-category-names", place, f"{name!r} and {other!r}")
    target = {category["id"]: kept[category["name"]]["id"] for _, category in sound}
    return [category for _, category in sound if target[category["id"]] == category["id"]], target


# Images


class ImagePlace(NamedTuple):
    """An image record in order: what messages call it, and where the image lies (length -1: all of the file)."""

    record: dict[str, Any]
    place: str
    path: str
    span: tuple[int, int]


def check_image_records(raw: RawSet, findings: Findings) -> tuple[list[ImagePlace], set[int]]:
    """Look at the image records; returns those in order, and the ids of those that are not."""
    good: list[ImagePlace] = []
    bad: set[int] = set()
    seen: set[int] = set()
    for image, place in zip(raw.images, raw.image_places, strict=True):
        try:
            _check_image_record(image)
        except Flaw as flaw:
            findings.add(flaw.code, place, str(flaw))
            if isinstance(image, dict) and is_id(image.get("id")):
                bad.add(image["id"])
            continue
        if image["id"] in seen:
            detail = f"duplicate image id {image['id']} ({image['file_name']})"
            findings.add("duplicate-image-id", place, detail)
            continue
        seen.add(image["id"])
        path = image["shard"] if "shard" in image else files.join(raw.images_dir, image["file_name"])
        span = (image["offset"], image["length"]) if "shard" in image else (0, -1)
        good.append(ImagePlace(image, f"{place} ({path})", path, span))
    return good, bad - seen


def _check_image_record(image: Any) -> None:
    if not isinstance(image, dict):
        raise Flaw("bad-image-record", f"not an image record: {brief(image)}")
    if not is_id(image.get("id")):
        known = isinstance(image.get("id"), int | float | str) and not isinstance(image["id"], bool)
        raise Flaw(
            "unusable-id" if known else "bad-image-record", f"'id' {brief(image.get('id'))} is not an integer id"
        )
    if flaw := size_flaw(image.get("height"), image.get("width")):
        raise Flaw("bad-image-record", flaw)
    if not isinstance(image.get("file_name"), str) or not image["file_name"]:
        raise Flaw("bad-image-record", f"'file_name' {brief(image.get('file_name'))} is not text")
    if "shard" in image and not (isinstance(image["shard"], str) and all(is_id(image.get(k)) for k in _PARTS)):
        raise Flaw("bad-image-record", f"needs 'shard', {', '.join(map(repr, _PARTS))} as they were written")


def settle_names(
    raw: RawSet, images: Sequence[ImagePlace], missing: Sequence[int], findings: Findings
) -> dict[int, str]:
    """Look for images that are not where their names say; returns file names by position, as they are on disk.

    Args:
        raw: the set.
        images: all of its images.
        missing: positions of those that are missing.
        findings: where other spellings are noted.
    """
    taken = {image.path for image in images}
    found: dict[int, str] = {}
    owners: dict[str, list[int]] = {}
    for position in missing:
        name = images[position].record["file_name"]
        other = find_spelling(raw.images_dir, name) or find_moved([raw.images_dir], name)
        if other is not None and (path := files.join(raw.images_dir, other)) not in taken:
            owners.setdefault(path, []).append(position)
            found[position] = other
    for positions in owners.values():
        for position in positions:
            if len(positions) > 1:  # which of them is it?
                del found[position]
            else:
                findings.add("other-file-name", images[position].place, f"the file {found[position]} is taken for it")
    return found


def check_same_files(images: Iterable[ImagePlace], findings: Findings) -> dict[int, int]:
    """Look for records of one image file; returns, by image id, the id of the first record of its file."""
    owners: dict[tuple[str, int], int] = {}
    first: dict[int, int] = {}
    for image in images:
        number = image.record["id"]
        first[number] = owners.setdefault((files.normal_path(image.path), image.span[0]), number)
        if first[number] != number:
            detail = f"{image.record['file_name']} is image {first[number]} already"
            findings.add("duplicate-file-name", image.place, detail)
    return first


class CheckedImages(NamedTuple):
    """Images in order: records, headers, EXIF orientations to undo, paths; and ids of those that are not."""

    records: list[dict]
    headers: list[ImageHeader]
    turns: list[int]
    paths: list[str]
    dropped: set[int]


def check_images(raw: RawSet, findings: Findings) -> CheckedImages:
    """Look at every image record and the header and end of every image file."""
    images, dropped = check_image_records(raw, findings)
    progress, headers = Progress("image files checked", len(images)), []
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for header in pool.map(_header, images, chunksize=64):
            headers.append(header)
            progress.step()
    progress.clear()
    missing = [i for i, header in enumerate(headers) if isinstance(header, FileNotFoundError)]
    for position, name in settle_names(raw, images, missing, findings).items():
        record, path = {**images[position].record, "file_name": name}, files.join(raw.images_dir, name)
        images[position] = images[position]._replace(record=record, path=path)
        headers[position] = _header(images[position])
    kept = CheckedImages([], [], [], [], dropped)
    for image, header in zip(images, headers, strict=True):
        if isinstance(header, FileNotFoundError):
            findings.add("missing-image", image.place, missing_detail(raw.images_dir, image.record["file_name"]))
        elif isinstance(header, OSError):
            findings.add(code_of(header), image.place, str(header))
        else:
            in_shard = "shard" in image.record
            turn = image.record.get("turn", 1) if in_shard else check_size(image, header, findings.add)
            if turn is not None:
                kept.records.append(image.record)
                kept.headers.append(header)
                kept.turns.append(turn)
                kept.paths.append(image.path)
                continue
        dropped.add(image.record["id"])
    check_same_files((image for image in images if image.record["id"] not in dropped), findings)
    return kept


def check_size(image: ImagePlace, header: ImageHeader, add: Callable[[str, str, str], None]) -> int | None:
    """The EXIF orientation to undo so that an image has its stated size; None, after a note, where it never has."""
    height, width = image.record["height"], image.record["width"]
    turn = header.turn_for(height, width)
    if turn is None:
        seen = f"the file has {header.width} x {header.height}, the annotations {width} x {height}"
        add("image-size-differs", image.place, seen)
    elif header.orientation != 1:
        stored = f"orientation {header.orientation}, stored as {header.width} x {header.height}"
        if turn != 1:
            add("exif-rotation", image.place, f"{stored}; the annotations mean it upright")
        else:
            add("exif-rotation-ignored", image.place, f"{stored}; the annotations mean it as stored")
    return turn


def _header(image: ImagePlace) -> ImageHeader | OSError:
    record = image.record
    if "shard" in record:  # looked at when the shard was read or written
        return ImageHeader(record["height"], record["width"], 1, bool(record.get("by_pillow")))
    try:
        return read_header(image.path)
    except OSError as error:
        return error


# Annotations


class CheckedAnnotation(NamedTuple):
    """An annotation of a kept image: as its file says with links and crowd mended, what its mask is, the box and area
    to use (x, y, width, height; pixels), its name in messages, and whether an error was found in it."""

    record: dict[str, Any]
    mask: CheckedMask
    bbox: list[float]
    area: float
    place: str
    bad: bool


def check_annotations(
    raw: RawSet,
    images: dict[int, dict],
    image_target: dict[int, int],
    category_target: dict[int, int],
    findings: Findings,
    thorough: bool = False,
) -> Iterator[CheckedAnnotation]:
    """Look at every annotation, in order.

    Args:
        raw: the set.
        images: records of the kept images by id.
        image_target: for each known image id the id under which its objects are kept; -1: the image was left out.
        category_target: for each known category id the id to keep.
        findings: where defects are noted.
        thorough: as for `check_mask`.

    Yields:
        Those of kept images that have a mask.
    """
    seen: set[int] = set()
    next_id = 1 + max((a["id"] for a in raw.annotations if isinstance(a, dict) and is_id(a.get("id"))), default=0)
    progress = Progress("annotations checked", len(raw.annotations))
    for annotation, place in zip(raw.annotations, raw.annotation_places, strict=True):
        progress.step()
        number = annotation.get("id") if isinstance(annotation, dict) else None
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if is_id(image_id) and image_target.get(image_id) == -1:
            continue  # the image was named already
        if not is_id(number):
            known = isinstance(number, int | float | str) and not isinstance(number, bool)
            detail = f"'id' {brief(number)} is not an integer id" if isinstance(annotation, dict) else "not a record"
            findings.add("unusable-id" if known else "bad-annotation-record", place, detail)
            continue
        if not raw.named:
            place = f"{place} (id {number})"
        if not is_id(image_id) or image_id not in image_target:
            findings.add("unknown-image", place, f"unknown image id {brief(image_id)}")
            continue
        record, image = dict(annotation), images[image_target[image_id]]
        if not raw.named:
            place = f"{place[:-1]}, {image['file_name']})"
        bad = False

        def note(code: str, detail: str, place: str = place) -> None:
            nonlocal bad
            bad |= DEFECTS[code].grade == ERROR
            findings.add(code, place, detail)

        if number in seen:
            note("duplicate-annotation-id", f"duplicate annotation id {number}")
            record["id"], next_id = next_id, next_id + 1
        seen.add(record["id"])
        category = record.get("category_id")
        if not is_id(category) or category not in category_target:
            note("unknown-category", f"unknown category id {brief(category)}")
            continue
        record["image_id"], record["category_id"] = image["id"], category_target[category]
        if record.get("iscrowd", 0) not in (0, 1):
            note("bad-iscrowd", f"iscrowd is {brief(record['iscrowd'])}, needs 0 or 1")
            record["iscrowd"] = 0
        record["iscrowd"] = int(record.get("iscrowd", 0))
        mask = check_mask(record.get("segmentation"), image["height"], image["width"], note, thorough)
        if mask is None:
            continue
        bbox = check_box(record.get("bbox"), mask, image["height"], image["width"], note)
        area = check_area(record.get("area"), mask, note, thorough)
        yield CheckedAnnotation(record, mask, bbox, area, place, bad)
    progress.clear()


def _clipped(x0: float, y0: float, x1: float, y1: float, height: int, width: int) -> tuple[float, float, float, float]:
    return min(max(x0, 0.0), width), min(max(y0, 0.0), height), min(max(x1, 0.0), width), min(max(y1, 0.0), height)


def check_box(bbox: Any, mask: CheckedMask, height: int, width: int, note: Note) -> list[float]:
    """The box to keep, x, y, width, height; that of the mask where the given one is wrong."""
    # Plain numbers: NumPy's calls take longer than all there is to do for four.
    left, top, right, bottom = wanted = mask.bounds
    tight = [left, top, right - left, bottom - top]
    try:
        x, y, w, h = parse_box(bbox)
    except Flaw as flaw:
        note(flaw.code, str(flaw))
        return tight
    allowed = max(_BOX_PIXELS, _BOX_SHARE * max(tight[2:]))

    def fits(x0: float, y0: float, x1: float, y1: float) -> bool:
        inside = _clipped(x0, y0, x1, y1, height, width)
        return max(abs(a - b) for a, b in zip(inside, wanted, strict=True)) <= allowed

    sides = x, y, x + w, y + h
    if w > 0 and h > 0 and fits(*sides):
        if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
            note("box-over-border", f"bbox {bbox} in an image of {width} x {height}")
        x0, y0, x1, y1 = _clipped(*sides, height, width)
        return list(bbox) if (x0, y0, x1, y1) == sides else [x0, y0, x1 - x0, y1 - y0]
    mask_box = f"the mask's is {[round(v, 1) for v in tight]}"
    as_pixels = [v * side for v, side in zip(sides, (width, height) * 2, strict=True)]
    if max(map(abs, (x, y, w, h))) <= 1 and fits(*as_pixels):
        note("box-as-shares", f"bbox {bbox} is in fractions of the image; {mask_box}")
    elif fits(x, y, w, h):
        note("box-as-corners", f"bbox {bbox} is x0, y0, x1, y1; {mask_box}")
    elif w <= 0 or h <= 0:
        note("box-without-area", f"bbox {bbox} has no area; {mask_box}")
    elif x >= width or y >= height or x + w <= 0 or y + h <= 0:
        note("box-outside", f"bbox {bbox} lies outside the image of {width} x {height}")
    else:
        note("box-mask-differ", f"bbox {[round(v, 1) for v in (x, y, w, h)]}; {mask_box}")
    return tight
