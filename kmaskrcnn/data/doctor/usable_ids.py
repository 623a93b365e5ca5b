"""New ids in place of those that are no integers of 64 bits, so that a repaired copy loses nothing for their sake."""

from __future__ import annotations

import dataclasses
from typing import Any

from kmaskrcnn.data.sets.check_record import brief, is_id
from kmaskrcnn.data.sets.defects import Findings
from kmaskrcnn.data.sets.raw_set import RawSet


def _is_unusable(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool) and not is_id(value)


def with_usable_ids(raw: RawSet, findings: Findings) -> RawSet:
    """The set with integers of 64 bits in place of other numbers and texts that tell its records apart."""
    categories = _renumber(raw.categories, [f"categories[{i}]" for i in range(len(raw.categories))], findings)
    images = _renumber(raw.images, raw.image_places, findings)
    own = _renumber(raw.annotations, raw.annotation_places, findings)
    if not (categories or images or own):
        return raw

    def change(record: Any, **ids: dict[Any, int]) -> Any:
        if not isinstance(record, dict):
            return record
        changed = {k: new[record[k]] for k, new in ids.items() if _is_unusable(record.get(k)) and record[k] in new}
        return {**record, **changed}

    return dataclasses.replace(
        raw,
        categories=[change(c, id=categories) for c in raw.categories],
        images=[change(i, id=images) for i in raw.images],
        annotations=[change(a, id=own, image_id=images, category_id=categories) for a in raw.annotations],
    )


def _renumber(records: list[Any], places: list[str], findings: Findings) -> dict[Any, int]:
    """A new id for each unusable one, from above the good ones."""
    ids: list[Any] = [record.get("id") for record in records if isinstance(record, dict)]
    free = 1 + max((i for i in ids if is_id(i) and i < 2**62), default=0)
    new: dict[Any, int] = {}
    for record, place in zip(records, places, strict=True):
        if isinstance(record, dict) and _is_unusable(record.get("id")):
            number = new.setdefault(record["id"], free + len(new))
            findings.add("unusable-id", place, f"id {brief(record['id'])} becomes {number}")
    return new
