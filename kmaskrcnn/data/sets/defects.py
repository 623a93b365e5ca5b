"""The defects of data sets that loader and doctor know, and the list of those found."""

from __future__ import annotations

import collections
from typing import NamedTuple

from kmaskrcnn.errors import printable

ERROR, WARNING, NOTE = "error", "warning", "note"


class Defect(NamedTuple):
    """What a defect is: how grave (an error stops training), in words, and what a repaired copy does about it."""

    grade: str
    title: str
    repair: str


_OUT = "left out"
DEFECTS: dict[str, Defect] = {
    # Image files.
    "missing-image": Defect(ERROR, "the image file is missing", _OUT),
    "empty-image-file": Defect(ERROR, "the image file is empty", _OUT),
    "not-an-image": Defect(ERROR, "the file is not a readable image", _OUT),
    "truncated-image": Defect(ERROR, "the image file is cut short or damaged", _OUT),
    "huge-image": Defect(ERROR, "an image with more pixels than can be handled", _OUT),
    "unreadable-pixels": Defect(ERROR, "a pixel format without one clear conversion to 8-bit RGB", _OUT),
    "image-size-differs": Defect(ERROR, "the image size differs from the annotations", _OUT),
    "other-file-name": Defect(WARNING, "the file name is spelled differently on disk", "the file's name on disk"),
    "exif-rotation": Defect(WARNING, "an EXIF orientation, which only some programs apply", "stored upright"),
    "exif-rotation-ignored": Defect(
        WARNING,
        "annotated without the EXIF orientation, which prediction applies: it would rotate the image",
        "stored without the orientation",
    ),
    "duplicate-content": Defect(WARNING, "the same image under two names", "the first is kept"),
    "leak": Defect(ERROR, "a training image is in the validation set too", "left out of the training set"),
    "wrong-file-ending": Defect(NOTE, "the file format differs from the file extension", "kept"),
    "unusual-pixels": Defect(NOTE, "CMYK, 16 bits, transparency or an animation: colors change on reading", "kept"),
    "unlisted-image": Defect(NOTE, "an image file that no record names", "not copied"),
    "unlisted-mask": Defect(NOTE, "a mask file that belongs to no image", "not copied"),
    # Image records.
    "bad-image-record": Defect(ERROR, "an image record without id, size or file name", _OUT),
    "unusable-id": Defect(ERROR, "an id that is not a 64-bit integer", "a new id"),
    "duplicate-image-id": Defect(ERROR, "two image records with the same id", "the first is kept"),
    "duplicate-file-name": Defect(WARNING, "two image records of the same file", "merged into the first"),
    "image-without-objects": Defect(NOTE, "an image without objects (a valid negative)", "kept"),
    "no-objects": Defect(ERROR, "no image of the set has an object: there is nothing to learn", "kept"),
    # Classes.
    "bad-category": Defect(ERROR, "a category without id or name", _OUT),
    "duplicate-category-id": Defect(ERROR, "two categories with the same id", "the first is kept"),
    "duplicate-category-name": Defect(WARNING, "two categories with the same name", "merged"),
    "similar-category-names": Defect(WARNING, "names that differ only in case or spaces", "kept; merge with class_map"),
    "unused-category": Defect(NOTE, "a category without objects", "kept"),
    # Annotations.
    "bad-annotation-record": Defect(ERROR, "an annotation without an id, or no record at all", _OUT),
    "duplicate-annotation-id": Defect(ERROR, "two annotations with the same id", "a new id"),
    "unknown-image": Defect(ERROR, "an annotation of an image that is not listed", _OUT),
    "unknown-category": Defect(ERROR, "an annotation of a category that is not listed", _OUT),
    "unknown-class": Defect(ERROR, "an object of a class that is not among the class names", _OUT),
    "bad-iscrowd": Defect(ERROR, "iscrowd is neither 0 nor 1", "read as 0"),
    "crowd": Defect(NOTE, "a crowd region: counts neither for nor against a detection", "kept"),
    # Boxes.
    "bad-box": Defect(ERROR, "the box is not four finite numbers", "the mask's box"),
    "box-without-area": Defect(ERROR, "the box has no width or height", "the mask's box"),
    "box-outside": Defect(ERROR, "the box lies outside the image", "the mask's box"),
    "box-over-border": Defect(WARNING, "the box extends beyond the image", "clipped"),
    "box-as-corners": Defect(ERROR, "the box is x0, y0, x1, y1 instead of x, y, width, height", "the mask's box"),
    "box-as-shares": Defect(ERROR, "the box is in fractions of the image instead of pixels", "the mask's box"),
    "box-mask-differ": Defect(WARNING, "the box does not fit the mask", "the mask's box"),
    # Masks.
    "no-segmentation": Defect(ERROR, "there is no mask", _OUT),
    "odd-polygon": Defect(ERROR, "a polygon with an odd number of coordinates", "that polygon is left out"),
    "short-polygon": Defect(ERROR, "a polygon of fewer than 3 points", "that polygon is left out"),
    "bad-polygon": Defect(ERROR, "a polygon whose coordinates are not finite numbers", "that polygon is left out"),
    "flat-polygon": Defect(ERROR, "a polygon without area", "that polygon is left out"),
    "needless-polygon": Defect(
        WARNING, "a polygon without area beside others of its object", "that polygon is left out"
    ),
    "long-polygon": Defect(ERROR, "a polygon whose outline is too long to be drawn", _OUT),
    "crossing-polygon": Defect(WARNING, "a polygon that crosses itself", "stored as the mask that is drawn"),
    "polygon-over-border": Defect(
        WARNING, "a polygon that extends beyond the image", "stored as the mask that is drawn"
    ),
    "mask-outside": Defect(ERROR, "a mask that lies outside the image", _OUT),
    "rle-size-differs": Defect(ERROR, "a run-length mask whose size differs from its image", _OUT),
    "bad-rle": Defect(ERROR, "a run-length mask that cannot be read", _OUT),
    "empty-mask": Defect(ERROR, "a mask without pixels", _OUT),
    "tiny-mask": Defect(WARNING, "a mask of fewer than 4 pixels", "kept"),
    "area-differs": Defect(WARNING, "the stated area differs from that of the mask", "the mask's area"),
    "duplicate-instance": Defect(WARNING, "the same object twice", "the first is kept"),
    # What a reader could not make sense of.
    "semantic-masks": Defect(
        WARNING,
        "masks of classes, it seems: one value for several separate objects",
        "kept; with data_format=semantic_masks each part is an object",
    ),
    "smooth-mask": Defect(ERROR, "a mask file with gray edges instead of one value per object", _OUT),
    "unreadable-record": Defect(ERROR, "a record that the reader of this format cannot use", _OUT),
}


class Finding(NamedTuple):
    """A defect of one record: `place` says which, `detail` what was found."""

    code: str
    place: str
    detail: str


_MOST_CHARACTERS = 600
_WORDS = {ERROR: "left out", WARNING: "taken all the same", NOTE: "note"}
# So many findings of one defect are shown whole where defects are counted.
_MOST_SHOWN = 2


def _one_line(text: str) -> str:
    """Text of one line that no name or value of a file makes longer than a screen."""
    text = printable(text).replace("\n", "\\n")
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:400]} ... {text[-100:]}"


class Findings:
    """What was found in a set, in order."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(self, code: str, place: str, detail: str) -> None:
        """Note a defect, one of DEFECTS."""
        assert code in DEFECTS, code
        self.all.append(Finding(code, _one_line(place), _one_line(detail)))

    def counts(self) -> dict[str, int]:
        """Number of each defect that was found, in the order of DEFECTS."""
        found = collections.Counter(f.code for f in self.all)
        return {code: found[code] for code in DEFECTS if found[code]}

    def errors(self) -> list[Finding]:
        """The findings that stop training."""
        return [f for f in self.all if DEFECTS[f.code].grade == ERROR]

    def of(self, code: str) -> list[Finding]:
        """The findings of one defect."""
        return [f for f in self.all if f.code == code]

    def number(self, grade: str) -> int:
        """How many there are of a grade."""
        return sum(DEFECTS[f.code].grade == grade for f in self.all)

    def reasons(self) -> list[str]:
        """A line for each defect with what a loader did about it; where there are few findings, these too."""
        lines = []
        for grade, words in _WORDS.items():
            for code, count in self.counts().items():
                if DEFECTS[code].grade == grade:
                    found = self.of(code) if count <= _MOST_SHOWN else []
                    shown = _one_line("; ".join(f"{f.place}: {f.detail}" for f in found))
                    lines.append(f"{words}: {count} x {code}: {DEFECTS[code].title}" + f" ({shown})" * bool(shown))
        return lines

    def text(self, examples: int = 3) -> str:
        """Lines with counts and examples, the gravest first."""
        lines = []
        for grade in (ERROR, WARNING, NOTE):
            for code, count in self.counts().items():
                if DEFECTS[code].grade == grade:
                    lines.append(f"{grade:7} {count:6} x {code}: {DEFECTS[code].title}")
                    shown = self.of(code)[:examples]
                    lines += [f"{'':18}{f.place}: {f.detail}" for f in shown]
                    if count > len(shown):
                        lines.append(f"{'':18}... and {count - len(shown)} more")
        return "\n".join(lines)
