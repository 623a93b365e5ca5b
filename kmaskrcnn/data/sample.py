"""Draw a part of a set: python -m kmaskrcnn.data.sample --annotations=SET --count=N --output=FILE.json."""

from __future__ import annotations

import os

from absl import flags as absl_flags

from kmaskrcnn import flags
from kmaskrcnn.data.split import tree_of, write_tree
from kmaskrcnn.data.subsets import sample_coco


def main() -> int:
    """Write the part as a COCO JSON."""
    output = set_flags.OUTPUT.value
    tree = tree_of(set_flags.read_set(), os.path.dirname(output))
    write_tree(output, sample_coco(tree, _COUNT.value, set_flags.SEED.value, _EACH_CLASS.value))
    return 0


if __name__ == "__main__":
    from kmaskrcnn.data import set_flags

    absl_flags.mark_flag_as_required("output")
    _COUNT = absl_flags.DEFINE_integer("count", None, "Images to draw.", lower_bound=1, required=True)
    _EACH_CLASS = absl_flags.DEFINE_integer("each_class", 0, "Images of each class, at least, where there are so many.")
    flags.run(main)
