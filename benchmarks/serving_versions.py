"""The export in other releases of TensorFlow: `make serving-versions`, an environment for each.

    python -m benchmarks.serving_versions --write=FOLDER     with the release of requirements.txt
    python -m benchmarks.serving_versions --check=FOLDER     with another: exit code 1 where an answer differs

`--check` loads what `--write` exported, as an older server would, and then exports the same weights and runs that.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

SETTINGS = {
    "num_classes": 3,
    "backbone": "mobilenet_v2",
    "fpn_channels": 32,
    "box_fc_channels": (64,),
    "mask_conv_channels": (32,),
    "max_detections": 20,
    "score_threshold": 0.0,
}
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
TOLERANCE = 1e-4


def images() -> list[bytes]:
    """One file of each kind that is read, and one that is not."""
    from tests.export.images import encode, picture, with_exif

    kinds = [encode(picture(), kind) for kind in KINDS]
    return [*kinds, with_exif(picture(50, 90), 6), b"junk"]


def build(weights: Path | None):
    """The model and its settings."""
    import keras

    from kmaskrcnn.config import Config
    from kmaskrcnn.model_folder import build_model

    keras.utils.set_random_seed(0)
    config = Config().replace(**SETTINGS, min_size=64, max_size=128)
    model = build_model(config)
    if weights is not None:
        with np.load(weights) as stored:
            for index, variable in enumerate(model.weights):
                variable.assign(stored[str(index)])
    return model, config


def run(path: Path) -> dict[str, np.ndarray]:
    """What a SavedModel answers for the images."""
    import tensorflow as tf

    outputs = tf.saved_model.load(str(path)).signatures["serving_default"](image_bytes=tf.constant(images()))
    return {name: value.numpy() for name, value in outputs.items()}


def export(model, config, folder: Path) -> Path:
    """Export into the next version of a folder."""
    from kmaskrcnn.export.saved_model import export_saved_model
    from kmaskrcnn.results.labels import Labels

    return export_saved_model(model, config, Labels(("a", "b", "c"), (1, 2, 3)), folder)


def difference(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest of any output, and the kinds of files that this release refuses in words and the other reads.

    Infinite where texts, numbers of objects or classes differ otherwise. Older releases decode no WebP.
    """
    refused = [i for i, kind in enumerate(KINDS) if found["image_errors"][i] and kind == "WEBP"]
    found, expected = ({n: np.delete(v, refused, axis=0) for n, v in tree.items()} for tree in (found, expected))
    return _largest(found, expected), ", ".join(KINDS[i] for i in refused) or "none"


def _largest(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    exact = ("image_errors", "num_detections", "detection_classes")
    if set(found) != set(expected) or any((found[name] != expected[name]).any() for name in exact):
        return float("inf")
    numbers = [name for name in expected if name != "image_errors"]
    return max(float(np.abs(found[name] - expected[name]).max()) for name in numbers)


def main() -> int:
    """Write the reference, or compare with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--check", type=Path)
    options = parser.parse_args()
    import keras
    import tensorflow as tf

    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}, NumPy {np.__version__}"
    if options.write:
        options.write.mkdir(parents=True, exist_ok=True)
        model, config = build(None)
        np.savez(options.write / "weights.npz", **{str(i): np.asarray(v) for i, v in enumerate(model.weights)})
        outputs = run(export(model, config, options.write / "model"))
        np.savez(options.write / "outputs.npz", **outputs)
        print(f"| {versions} | the reference | the reference | none |")
        return 0
    with np.load(options.check / "outputs.npz", allow_pickle=True) as stored:
        expected = dict(stored)
    loaded, refused = difference(run(options.check / "model" / "1"), expected)
    folder = options.check / f"by-{tf.__version__}"
    exported, _ = difference(run(export(*build(options.check / "weights.npz"), folder)), expected)
    print(f"| {versions} | {loaded:.1e} | {exported:.1e} | {refused} |")
    return 0 if max(loaded, exported) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
