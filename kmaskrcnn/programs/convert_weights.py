"""Convert a Mask R-CNN of another program: `kmaskrcnn weights SOURCE --output=DIR`."""

from __future__ import annotations

import sys

from absl import flags as absl_flags

from kmaskrcnn.config import ConfigError
from kmaskrcnn.programs import flags

FORMAT = absl_flags.DEFINE_enum(
    "format", "auto", ["auto", "torchvision", "detectron2", "matterport"], "The program that wrote SOURCE."
)
OUTPUT = absl_flags.DEFINE_string("output", "", "Folder for config.json, labels.json and best.weights.h5.")
NORM_EPSILON = absl_flags.DEFINE_float(
    "norm_epsilon", None, "torchvision: epsilon of its frozen normalisations; 0 if fine-tuned from COCO_V1."
)
RGB = absl_flags.DEFINE_boolean("rgb", None, "detectron2: trained on RGB pixels instead of BGR.")


ABOUT = "Convert a checkpoint of torchvision, Detectron2 or matterport to a model folder."
TOPICS = {
    "Checkpoint": ["format", "norm_epsilon", "rgb", "class_names"],
    "Output": ["output"],
}


def main(sources: list[str]) -> int:
    """Convert one file; the settings of the model are told from it, and any may be given as a flag."""
    from kmaskrcnn.weights.transfer import MisfitError

    try:
        return _convert(sources)
    except MisfitError as error:
        print(f"error: {error}", file=sys.stderr)
        for title in ("missing", "left_over", "misshapen"):
            for line in getattr(error, title):
                print(f"  {title.replace('_', ' ')}: {line}", file=sys.stderr)
        return 2


def _convert(sources: list[str]) -> int:
    from kmaskrcnn.data.sets.class_names import parse_class_names
    from kmaskrcnn.weights.convert import import_file, write_folder
    from kmaskrcnn.weights.presets import PRESETS

    if len(sources) != 1:
        raise ConfigError(f"give one SOURCE, a file or the name of a preset ({', '.join(PRESETS)}), not {len(sources)}")
    if not OUTPUT.value:
        raise ConfigError("--output is missing: the folder for the converted model")
    options = {"norm_epsilon": NORM_EPSILON.value, "rgb": RGB.value}
    options = {name: value for name, value in options.items() if value is not None}
    settings = flags.given_settings()
    class_names = parse_class_names(settings.pop("class_names", ()))
    imported = import_file(sources[0], FORMAT.value, class_names, options, **settings)
    folder = write_folder(imported, OUTPUT.value)
    config, report = imported.config.model, imported.report
    print(report)
    print(f"{config.backbone}, {config.num_classes} classes: {', '.join(imported.labels.class_names[:3])}, ...")
    for line in imported.differences:
        print(f"differs: {line}")
    print(f"{folder}: open it with kmaskrcnn.Predictor.from_directory, or give it to evaluate.py and predict.py")
    return 0


def program(name: str, arguments: list[str]) -> int:
    """Run with these arguments; returns the exit code."""
    flags.define_config_flags()
    return flags.run(
        main,
        name,
        arguments,
        ABOUT,
        TOPICS,
        "SOURCE",
    )
