"""One look at a whole set: what is wrong with it, and what of it can be kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Set

from kmaskrcnn.data.doctor.annotations import ExaminedAnnotation, examine_annotations
from kmaskrcnn.data.doctor.images import ExaminedImage, examine_images, find_leaks, listed_files
from kmaskrcnn.data.doctor.usable_ids import with_usable_ids
from kmaskrcnn.data.sets.check_set import check_categories
from kmaskrcnn.data.sets.defects import Findings
from kmaskrcnn.data.sets.raw_set import RawSet
from kmaskrcnn.results.labels import Labels


@dataclasses.dataclass
class Examined:
    """What of a set can be kept, and the findings.

    Attributes:
        source: its file or folder.
        images, annotations, categories: in order or mended.
        findings: what was wrong.
        counts: images and annotations that the set has by its files.
    """

    source: str
    images: list[ExaminedImage]
    annotations: list[ExaminedAnnotation]
    categories: list[dict]
    findings: Findings
    counts: tuple[int, int]

    def without(self, image_ids: Iterable[int]) -> Examined:
        """The set less some images and their objects."""
        out = set(image_ids)
        return dataclasses.replace(
            self,
            images=[i for i in self.images if i.record["id"] not in out],
            annotations=[a for a in self.annotations if a.record["image_id"] not in out],
        )


def examine(raw: RawSet, elsewhere: Set[str] = frozenset()) -> Examined:
    """Look at every record and every pixel of a set that a reader made; `elsewhere`: image files of another set."""
    findings = Findings()
    findings.all += raw.problems
    raw = with_usable_ids(raw, findings)
    categories, category_target = check_categories(raw, findings)
    images, image_target = examine_images(raw, findings, elsewhere)
    annotations = examine_annotations(raw, images, image_target, category_target, findings)
    return Examined(raw.source, images, annotations, categories, findings, (len(raw.images), len(raw.annotations)))


def usable_labels(raw: RawSet) -> Labels | None:
    """The classes that `examine` keeps of a set, with their ids; None where there are none."""
    unsaid = Findings()  # what is wrong is told when the set is examined
    categories, _ = check_categories(with_usable_ids(raw, unsaid), unsaid)
    categories.sort(key=lambda c: c["id"])
    if not categories:
        return None
    return Labels(tuple(c["name"] for c in categories), tuple(c["id"] for c in categories))


def examine_pair(train: RawSet, val: RawSet | None) -> tuple[Examined, Examined | None]:
    """Examine a training set and its validation set; training images that leak are left out of the first."""
    first = examine(train, listed_files(val) if val else frozenset())
    if val is None:
        return first, None
    second = examine(val, listed_files(train))
    return first.without(find_leaks(first.images, second.images, first.findings)), second
