"""Weights of other programs, and models that people share.

kmaskrcnn weights SOURCE --output=DIR                convert a Mask R-CNN of another program, or a preset
kmaskrcnn weights pull hf://OWNER/NAME [--output=DIR]
kmaskrcnn weights push DIR hf://OWNER/NAME           share a model folder on the Hugging Face Hub
kmaskrcnn weights export DIR --to=torchvision|detectron2 --output=FILE.pth
"""

from __future__ import annotations

import sys

from absl import flags as absl_flags

from kmaskrcnn.config import ConfigError
from kmaskrcnn.programs import flags

FORMAT = absl_flags.DEFINE_enum(
    "format", "auto", ["auto", "torchvision", "detectron2", "matterport"], "The framework that wrote SOURCE."
)
OUTPUT = absl_flags.DEFINE_string(
    "output", "", "Folder for config.json, labels.json and best.weights.h5; export: the .pth file."
)
NORM_EPSILON = absl_flags.DEFINE_float(
    "norm_epsilon", None, "torchvision: epsilon of its frozen normalizations; 0 if fine-tuned from COCO_V1."
)
PRIVATE = absl_flags.DEFINE_boolean("private", False, "push: make a new repository private.")
SOURCE_CONFIG = absl_flags.DEFINE_string(
    "source_config", "", "detectron2: the config.yaml that training wrote beside the checkpoint."
)
FRESH_MASKS = absl_flags.DEFINE_boolean("fresh_masks", False, "Load a Faster R-CNN and add a new mask head to train.")
TO = absl_flags.DEFINE_enum("to", None, ["torchvision", "detectron2"], "export: the framework that will load it.")
RGB = absl_flags.DEFINE_boolean("rgb", None, "detectron2: trained on RGB pixels instead of BGR.")

ABOUT = """Convert a checkpoint of torchvision, Detectron2 or matterport, or a preset, to a model folder.
`export DIR --to=torchvision|detectron2 --output=FILE.pth` converts back.
`pull hf://OWNER/NAME` and `push DIR hf://OWNER/NAME` share model folders on the Hugging Face Hub."""
TOPICS = {
    "Checkpoint": ["format", "source_config", "norm_epsilon", "rgb", "fresh_masks", "class_names"],
    "Output": ["output", "to", "private"],
    "Network": ["offline", "mirror"],
}


def main(sources: list[str]) -> int:
    """Run one command; the settings of a converted model are told from its file, and any may be given as a flag."""
    from kmaskrcnn.weights.transfer import MisfitError

    try:
        return _run(sources)
    except MisfitError as error:
        print(f"error: {error}", file=sys.stderr)
        for title in ("missing", "left_over", "misshapen"):
            for line in getattr(error, title):
                print(f"  {title.replace('_', ' ')}: {line}", file=sys.stderr)
        return 2


def _run(arguments: list[str]) -> int:
    from kmaskrcnn.weight_files import hub

    command = arguments[0] if arguments else ""
    if command == "push":
        folder, address = _operands(arguments, "FOLDER hf://OWNER/NAME", 2)
        print(f"{folder} is at {hub.push(folder, address, PRIVATE.value)}")
    elif command == "pull":
        (address,) = _operands(arguments, "hf://OWNER/NAME", 1)
        print(f"{address} is in {hub.pull(address, OUTPUT.value or None)}")
    elif command == "export":
        (folder,) = _operands(arguments, "FOLDER --to=torchvision|detectron2 --output=FILE.pth", 1)
        _export(folder)
    else:
        return _convert(arguments)
    return 0


def _export(folder: str) -> None:
    from kmaskrcnn.model_folder import load_model
    from kmaskrcnn.weights.to_state_dict import write_state_dict

    if not OUTPUT.value or not TO.value:
        raise ConfigError("--to or --output is missing: torchvision or detectron2, and the .pth file to write")
    for line in write_state_dict(load_model(folder)[0], OUTPUT.value, TO.value, bool(RGB.value)):
        print(f"note: {line}")
    print(f"{OUTPUT.value}: a state dict of {TO.value}")


def _operands(arguments: list[str], form: str, count: int) -> list[str]:
    if len(arguments) != count + 1:
        raise ConfigError(f"write: {arguments[0]} {form}")
    return arguments[1:]


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
    imported = import_file(
        sources[0], FORMAT.value, class_names, options, SOURCE_CONFIG.value, FRESH_MASKS.value, **settings
    )
    folder = write_folder(imported, OUTPUT.value)
    config, report = imported.config.model, imported.report
    print(report)
    print(f"{config.backbone}, {config.num_classes} classes: {', '.join(imported.labels.class_names[:3])}, ...")
    for line in imported.assumptions:
        print(f"assumed: {line}" if "usual for" in line else f"set: {line}")
    for line in imported.differences:
        print(f"differs: {line}")
    print(f"{folder}: for kmaskrcnn.Predictor.from_directory and --model_dir of evaluate, predict and export")
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
