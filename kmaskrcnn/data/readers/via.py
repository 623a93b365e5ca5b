"""VGG Image Annotator (VIA 1 and 2): a project or an export of annotations as JSON, or the export as CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from typing import Any

from kmaskrcnn.data import files
from kmaskrcnn.data.image_files import code_of, read_header
from kmaskrcnn.data.readers.json_file import read_json
from kmaskrcnn.data.readers.outlines import circle
from kmaskrcnn.data.sets.check_record import brief, finite
from kmaskrcnn.data.sets.file_names import find_spelling, missing_detail
from kmaskrcnn.data.sets.raw_set import RawSet, SetBuilder
from kmaskrcnn.errors import DataError

# Attributes that are taken for the class, the first that a region has.
_CLASS_ATTRIBUTES = ("class", "label", "name", "type", "category", "object")
_CSV_COLUMNS = {"filename", "region_shape_attributes", "region_attributes"}


def is_via(tree: object) -> bool:
    """Whether a JSON tree is a VIA project or export."""
    if not isinstance(tree, dict):
        return False
    entries = tree.get("_via_img_metadata", tree)
    if not isinstance(entries, dict) or (not entries and "_via_img_metadata" not in tree):
        return False
    return all(isinstance(e, dict) and {"filename", "regions"} <= e.keys() for e in entries.values())


def read_via(path: str, images_dir: str, default_class: str = "object") -> RawSet:
    """Read a VIA file; sizes come from the image files, classes from the regions' attributes.

    The class is a region's attribute class, label, name, type, category or object, or its only one; a check box or
    radio button gives the option that is set. Regions without attributes get `default_class`. Points and lines are
    reported as records that cannot be used.
    """
    builder = SetBuilder(path, images_dir or os.path.dirname(path))
    for name, place, regions in _csv_entries(path) if path.lower().endswith(".csv") else _json_entries(path):
        if not isinstance(name, str) or not name:
            builder.problem("bad-image-record", place, "'filename' is not text")
            continue
        name = find_spelling(builder.raw.images_dir, name) or name
        image = os.path.join(builder.raw.images_dir, name)
        try:
            header = read_header(image)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            detail = missing_detail(builder.raw.images_dir, name) if missing else str(error)
            builder.problem(code_of(error), f"{place} ({image})", detail)
            continue
        image_id = builder.image(name, *header.upright, place)  # as browsers show it
        for position, region in regions:
            record = f"{place}: regions[{position}]"
            try:
                shape, label = region
                builder.instance(image_id, _class_of(label, default_class), [_outline(shape)], record)
            except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
                detail = f"the region's attributes are damaged ({type(error).__name__}: {str(error)[:80]})"
                builder.problem("bad-annotation-record", record, detail)
            except ValueError as error:
                builder.problem("unreadable-record", record, str(error))
    return builder.finish()


def _json_entries(path: str) -> list[tuple[str, str, list]]:
    tree = read_json(path)
    if not is_via(tree):
        raise DataError(f"{path}: not a VIA project or export: needs 'filename' and 'regions' for every image")
    result = []
    for entry in tree.get("_via_img_metadata", tree).values():
        regions = entry["regions"]
        if not isinstance(regions, dict | list):
            regions = [regions]
        pairs = regions.items() if isinstance(regions, dict) else enumerate(regions)  # VIA 1 numbers them with keys
        parts = [
            (k, (r.get("shape_attributes"), r.get("region_attributes", {})) if isinstance(r, dict) else None)
            for k, r in pairs
        ]
        result.append((entry["filename"], brief(entry["filename"]).strip("'"), parts))
    return result


def _csv_entries(path: str) -> list[tuple[str, str, list]]:
    try:
        rows = list(csv.DictReader(io.StringIO(files.read_text(path))))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if not rows or not rows[0].keys() >= _CSV_COLUMNS or not all(isinstance(row["filename"], str) for row in rows):
        raise DataError(f"{path}: not a VIA export: needs the columns {', '.join(sorted(_CSV_COLUMNS))}")
    regions: dict[str, list] = {}
    for number, row in enumerate(rows):
        parts = regions.setdefault(row["filename"], [])
        try:
            shape, label = (json.loads(row[key]) for key in ("region_shape_attributes", "region_attributes"))
        except (TypeError, ValueError, RecursionError):
            shape, label = None, {}
        if shape != {}:  # an image without regions has a row with an empty one
            parts.append((row.get("region_id") or number, (shape, label)))
    return [(name, name, parts) for name, parts in regions.items()]


def _class_of(attributes: dict[str, Any], default_class: str) -> str:
    if not attributes:
        return default_class
    key = next((k for k in _CLASS_ATTRIBUTES if k in attributes), None)
    if key is None and len(attributes) > 1:
        raise ValueError(f"which attribute is the class? {', '.join(attributes)[:80]}; call it 'class'")
    value = attributes[key or next(iter(attributes))]
    if isinstance(value, dict):  # check boxes and radio buttons: {"cat": true}
        chosen = [name for name, is_set in value.items() if is_set]
        if len(chosen) != 1:
            raise ValueError(f"{len(chosen)} classes are set, needs one")
        value = chosen[0]
    if not isinstance(value, str) or not value.strip():
        raise ValueError("the class is empty")
    return value.strip()


def _outline(shape: dict[str, Any]) -> list[float]:
    kind = shape["name"]
    if kind in ("polygon", "polyline"):
        x, y = shape["all_points_x"], shape["all_points_y"]
        if len(x) != len(y):
            raise ValueError(f"{len(x)} x and {len(y)} y coordinates")
        if kind == "polyline" and (x[0], y[0]) != (x[-1], y[-1]):
            raise ValueError("an open polyline has no area")
        return [finite(v) for point in zip(x, y, strict=True) for v in point]
    if kind == "rect":
        x, y, width, height = (finite(shape[key]) for key in ("x", "y", "width", "height"))
        return [x, y, x + width, y, x + width, y + height, x, y + height]
    if kind == "circle":
        return circle(*(finite(shape[key]) for key in ("cx", "cy", "r", "r")))
    if kind == "ellipse":
        x, y, radius_x, radius_y = (finite(shape[key]) for key in ("cx", "cy", "rx", "ry"))
        return circle(x, y, radius_x, radius_y, finite(shape.get("theta", 0.0)))
    raise ValueError(f"a region of shape {brief(kind)} has no area: polygon, rect, circle and ellipse can be used")
