"""What a variation of the model costs in inference.

    python -m benchmarks.variation_inference --flagfile=configs/nuclei.flags

Random weights, so that each image has exactly --max_detections objects; masks are pasted. One core, the variations in
turns; seconds of the processor, medians, and their ratio to the plain model. Flags are those of `kmaskrcnn train`.
"""

from __future__ import annotations

import os
import statistics
import time

import numpy as np
from absl import app
from absl import flags as absl_flags

from benchmarks.model_variations import VARIATIONS
from kmaskrcnn import onednn
from kmaskrcnn.programs.flags import config_from_flags, define_config_flags

_SIDES = absl_flags.DEFINE_list("sides", ["256", "512"], "Heights and widths of the images.")
absl_flags.register_validator(
    "sides",
    lambda sides: bool(sides) and all(s.isdecimal() and int(s) >= 32 for s in sides),
    "whole numbers from 32 on",
)
_REPEATS = absl_flags.DEFINE_integer("repeats", 7, "Predictions of each variation.", lower_bound=1)
MORE = {
    "PointRend, masks of 56 x 56": {"mask_point_rend": True, "mask_subdivisions": 3},
    "cascade and PointRend, masks of 56 x 56": {
        "cascade_ious": (0.5, 0.6, 0.7),
        "mask_point_rend": True,
        "mask_subdivisions": 3,
    },
}


def main(argv: list[str]) -> None:
    """Print the table."""
    onednn.set_up(frozen_weights=True)  # as in `kmaskrcnn predict`
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from kmaskrcnn import MaskRCNN, Predictor
    from kmaskrcnn.results.labels import Labels

    config = config_from_flags().replace(num_classes=1, score_threshold=0.0)
    predictors = {}
    for name, settings in (VARIATIONS | MORE).items():
        own = config.replace(**settings)
        predictors[name] = Predictor(MaskRCNN(**vars(own.model)), own, Labels(("object",), (1,)))
    rows: dict[str, list[str]] = {name: [] for name in predictors}
    for side in map(int, _SIDES.value):
        image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        times: dict[str, list[float]] = {name: [] for name in predictors}
        for repeat in range(_REPEATS.value + 1):
            for name, predictor in predictors.items():
                begin = time.process_time()
                found = predictor.predict(image)
                for i in range(len(found)):
                    found.mask(i)
                if repeat:  # the first one traces
                    times[name].append(time.process_time() - begin)
                elif len(found) != config.model.max_detections:
                    raise SystemExit(f"{name}: {len(found)} objects, not {config.model.max_detections}")
        plain = statistics.median(times["plain"])
        for name, values in times.items():
            middle = statistics.median(values)
            rows[name] += [f"{1000 * middle:.0f} ms", f"{middle / plain:.2f}"]
    heading = ["variation", *(text for side in _SIDES.value for text in (f"{side} x {side}", "of plain"))]
    print(f"| {' | '.join(heading)} |\n|{' --- |' * len(heading)}")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    define_config_flags()
    app.run(main)
