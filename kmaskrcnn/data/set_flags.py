"""The flags that name a data set, for the programs of this folder."""

from __future__ import annotations

from absl import flags

from kmaskrcnn.data.class_names import parse_class_map, parse_class_names
from kmaskrcnn.data.coco import CocoDataset, dataset_of
from kmaskrcnn.data.raw import RawSet
from kmaskrcnn.data.readers import FORMATS, read_raw

ANNOTATIONS = flags.DEFINE_string("annotations", None, "The set: COCO JSON, or another form of docs/data.md.")
IMAGES = flags.DEFINE_string("images", "", "Folder of its images; empty: where the form has them.")
DATA_FORMAT = flags.DEFINE_enum("data_format", "auto", ["auto", *FORMATS], "Form of the set; auto tells it.")
CLASS_NAMES = flags.DEFINE_list("class_names", [], "Names of the classes in order, or a file of them.")
CLASS_MAP = flags.DEFINE_list("class_map", [], "OLD=NEW,... or a file of such lines: renames and joins classes.")
ON_BAD_RECORD = flags.DEFINE_enum("on_bad_record", "error", ["error", "skip"], "Stop at bad records or leave them out.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write into; made if need be.")
SEED = flags.DEFINE_integer("seed", 0, "The same seed makes the same draw.")
flags.mark_flag_as_required("annotations")


def read_set(path: str | None = None, images_dir: str | None = None) -> RawSet:
    """The set of the flags, or another one with the same settings, not checked yet."""
    return read_raw(
        path or ANNOTATIONS.value,
        IMAGES.value if images_dir is None else images_dir,
        DATA_FORMAT.value,
        parse_class_names(CLASS_NAMES.value),
        parse_class_map(CLASS_MAP.value),
    )


def load_set() -> CocoDataset:
    """The set of the flags, checked."""
    return dataset_of(read_set(), ON_BAD_RECORD.value)
