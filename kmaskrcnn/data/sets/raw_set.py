"""What every reader makes: a data set in COCO's terms as its files say, not yet checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.data.sets.check_record import is_id
from kmaskrcnn.data.sets.defects import Finding
from kmaskrcnn.errors import DataError


@dataclasses.dataclass
class RawSet:
    """Records in COCO's terms with the words that messages call them by.

    Attributes:
        source: file or folder that messages name first.
        images_dir: folder that `file_name` starts from.
        images, annotations, categories: COCO's records, unchecked. An image inside a TFRecord shard has also "shard",
            "offset" and "length" (bytes), "by_pillow", and "turn", the EXIF orientation to undo. What a LabelMe file
            embeds is told in the same way.
        image_places, annotation_places: what a message calls each record.
        problems: what the reader itself could not use.
        named: the files give names of classes only, and the category ids were dealt out here.
    """

    source: str
    images_dir: str
    images: list[Any]
    annotations: list[Any]
    categories: list[dict]
    image_places: list[str]
    annotation_places: list[str]
    problems: list[Finding] = dataclasses.field(default_factory=list)
    named: bool = False


class SetBuilder:
    """Collects images and instances whose classes are names, and makes a RawSet of them."""

    def __init__(self, source: str, images_dir: str):
        self.raw = RawSet(source, images_dir, [], [], [], [], [], named=True)

    def image(self, file_name: str, height: int, width: int, place: str, **more: Any) -> int:
        """Add an image; returns its id, 1, 2, ..."""
        number = len(self.raw.images) + 1
        self.raw.images.append({"id": number, "file_name": file_name, "height": height, "width": width, **more})
        self.raw.image_places.append(place)
        return number

    def instance(
        self,
        image_id: int,
        name: str,
        segmentation: list[list[float]] | dict[str, Any],
        place: str,
        is_crowd: bool = False,
        bbox: list[float] | None = None,
    ) -> None:
        """Add an instance by polygons [x0, y0, x1, y1, ...] or a compressed RLE; its box follows from them."""
        self.raw.annotations.append(
            {
                "id": len(self.raw.annotations) + 1,
                "image_id": image_id,
                "category_id": name.strip(),  # typed by hand; replaced by the number in `finish`
                "iscrowd": int(is_crowd),
                "bbox": bbox or box_of(segmentation),
                "segmentation": segmentation,
            }
        )
        self.raw.annotation_places.append(place)

    def problem(self, code: str, place: str, detail: str) -> None:
        """Note a record that cannot be used; `code` is one of `defects.DEFECTS`."""
        self.raw.problems.append(Finding(code, place, detail))

    def finish(self, names: Sequence[str] = ()) -> RawSet:
        """The set, its classes numbered from 1 in the order of `names`; default: alphabetically."""
        names = names or sorted({a["category_id"] for a in self.raw.annotations})
        number = {name: i for i, name in enumerate(names, 1)}
        self.raw.categories = [{"id": i, "name": name} for name, i in number.items()]
        for annotation in self.raw.annotations:
            annotation["category_id"] = number[annotation["category_id"]]
        return self.raw


def box_of(segmentation: list[list[float]] | dict[str, Any]) -> list[float]:
    """COCO's x, y, width, height around polygons or an RLE."""
    if isinstance(segmentation, dict):
        return [float(v) for v in mask_utils.toBbox(segmentation)]
    x, y = (np.concatenate([np.asarray(p[axis::2], np.float64) for p in segmentation]) for axis in (0, 1))
    if not x.size or not y.size:
        return [0.0, 0.0, 0.0, 0.0]
    with np.errstate(over="ignore", invalid="ignore"):  # coordinates of any size are named when the set is checked
        return [float(x.min()), float(y.min()), float(np.ptp(x)), float(np.ptp(y))]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A compressed RLE, its counts as text, of a (H, W) mask."""
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def encode_part(part: np.ndarray, top: int, left: int, height: int, width: int) -> dict[str, Any]:
    """`encode_mask` of a (height, width) mask that is `part` (h, w) bool at row `top`, column `left`, else empty.

    Takes memory for the part alone; what lies outside is cut off.
    """
    part = part[max(-top, 0) : max(height - top, 0), max(-left, 0) : max(width - left, 0)]
    columns, rows = np.nonzero(part.T)
    places = (columns + max(left, 0)).astype(np.int64) * height + rows + max(top, 0)
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    if places.size:
        starts, ends = places[np.concatenate([[0], breaks])], places[np.concatenate([breaks - 1, [-1]])] + 1
        edges = np.stack([starts, ends], axis=1).reshape(-1)
    else:
        edges = np.zeros(0, np.int64)
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    counts = counts[:-1] if counts[-1] == 0 else counts
    rle = mask_utils.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def rename_classes(raw: RawSet, class_map: Mapping[str, str]) -> None:
    """Give classes other names, in place: two that get one name become one class, an empty name drops a class.

    Raises DataError where the set has none of the classes.
    """
    sound, broken = _sound_classes(raw)
    names = [c["name"] for c in sound]
    if class_map and not set(class_map) & set(names):
        raise DataError(f"{raw.source}: class_map: no class {', '.join(map(repr, class_map))} (has {', '.join(names)})")
    first: dict[str, int] = {}  # id by new name
    replaced: dict[int, int | None] = {}
    for category in sorted(sound, key=lambda c: c["id"]):
        name = class_map.get(category["name"], category["name"])
        replaced[category["id"]] = first.setdefault(name, category["id"]) if name else None
    kept = {number: name for name, number in first.items()}
    raw.categories = [{**c, "name": kept[c["id"]]} for c in sound if c["id"] in kept] + broken
    if raw.named:
        order = {c["id"]: i for i, c in enumerate(sorted(raw.categories, key=lambda c: c["name"]), 1)}
        raw.categories = [{**c, "id": order[c["id"]]} for c in raw.categories]
        replaced = {old: order.get(new) for old, new in replaced.items()}
    _renumber(raw, {old: (new, "") for old, new in replaced.items()})


def order_classes(raw: RawSet, names: Sequence[str], ids: Sequence[int] | None = None) -> None:
    """Number the classes by a list of names, in place; instances of other classes become problems of the set.

    `ids` are the category ids of the names; 1, 2, ... where they are not given.
    """
    if len(set(names)) != len(names):
        raise DataError(f"class_names: {', '.join(names)}: a name occurs twice")
    number = dict(zip(names, ids or range(1, len(names) + 1), strict=True))
    sound, broken = _sound_classes(raw)
    wanted, used_ids = ", ".join(names), {a.get("category_id") for a in raw.annotations if isinstance(a, dict)}
    used = {str(c["name"]) for c in sound if c["id"] in used_ids}
    if used and not used & number.keys():
        raise DataError(
            f"{raw.source}: no object is of the classes {wanted}: those of the data are {', '.join(sorted(used))}"
        )
    detail = f"is not among the class names {wanted}"
    change = {c["id"]: (number.get(c["name"]), f"class {c['name']!r} {detail}") for c in sound}
    raw.categories = [{"id": i, "name": name} for name, i in number.items()] + broken
    _renumber(raw, change)


def _sound_classes(raw: RawSet) -> tuple[list[dict], list]:
    """The categories with id and name, and the others, which are named when the set is checked."""

    def sound(category: Any) -> bool:
        return isinstance(category, dict) and is_id(category.get("id")) and isinstance(category.get("name"), str)

    return [c for c in raw.categories if sound(c)], [c for c in raw.categories if not sound(c)]


def _renumber(raw: RawSet, change: dict[int, tuple[int | None, str]]) -> None:
    """Give annotations new category ids; those with None are left out, as problems where a detail is given."""
    annotations, places = [], []
    for annotation, place in zip(raw.annotations, raw.annotation_places, strict=True):
        number, detail = None, ""
        known = isinstance(annotation, dict) and is_id(annotation.get("category_id"))
        known = known and annotation["category_id"] in change
        if known:
            number, detail = change[annotation["category_id"]]
        if known and number is None:
            if detail:
                raw.problems.append(Finding("unknown-class", place, detail))
            continue
        annotations.append({**annotation, "category_id": number} if known else annotation)
        places.append(place)
    raw.annotations, raw.annotation_places = annotations, places
