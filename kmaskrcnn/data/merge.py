"""Join sets: python -m kmaskrcnn.data.merge --annotations=SET --with=SET2 [--with=SET3 ...] --output=FILE.json."""

from __future__ import annotations

import os

from absl import flags as absl_flags

from kmaskrcnn import flags
from kmaskrcnn.config import ConfigError
from kmaskrcnn.data.coco import dataset_of
from kmaskrcnn.data.split import write_tree
from kmaskrcnn.data.subsets import merge_coco


def main() -> int:
    """Write the joint set as a COCO JSON whose file names start from its own folder."""
    others, folders = _WITH.value, _WITH_IMAGES.value or [""] * len(_WITH.value)
    if len(folders) != len(others):
        raise ConfigError(f"--with_images is given {len(folders)} times, --with {len(others)} times")
    raws = [set_flags.read_set(), *(set_flags.read_set(*pair) for pair in zip(others, folders, strict=True))]
    datasets = [dataset_of(raw, set_flags.ON_BAD_RECORD.value) for raw in raws]
    output = set_flags.OUTPUT.value
    write_tree(output, merge_coco(datasets, os.path.dirname(output) or "."))
    return 0


if __name__ == "__main__":
    from kmaskrcnn.data import set_flags

    absl_flags.mark_flag_as_required("output")
    _WITH = absl_flags.DEFINE_multi_string("with", None, "A further set; give it again for each.", required=True)
    _WITH_IMAGES = absl_flags.DEFINE_multi_string("with_images", [], "Image folder of each --with, in their order.")
    flags.run(main)
