"""The `kmaskrcnn` command: `kmaskrcnn COMMAND [--NAME=VALUE ...]`."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

import kmaskrcnn
from kmaskrcnn import onednn
from kmaskrcnn.console import steady_output
from kmaskrcnn.progress import phase
from kmaskrcnn.quiet import quiet_tensorflow

# Command -> (module, function in it that takes the command's name and its arguments, what it does)
COMMANDS = {
    "train": ("train", "program", "train a model on your images"),
    "evaluate": ("evaluate", "program", "COCO metrics (AP) of a trained model, with a report"),
    "predict": ("predict", "program", "find objects in images and videos"),
    "export": ("export", "program", "export to SavedModel (TensorFlow Serving) or .tflite (LiteRT)"),
    "doctor": ("doctor", "program", "inspect and repair a data set"),
    "split": ("data_tools", "split", "split a data set into training and validation sets"),
    "sample": ("data_tools", "sample", "draw a subset of a data set"),
    "merge": ("data_tools", "merge", "merge data sets"),
    "convert": ("data_tools", "convert", "convert a data set to TFRecord"),
    "weights": ("convert_weights", "program", "convert a torchvision, Detectron2 or matterport checkpoint"),
    "serve": ("serve", "program", "serve an exported model over REST, with a page to try it"),
    "batch": ("batch", "program", "predict many images with Apache Beam"),
}
# Those that only run a model that is there.
_FROZEN_WEIGHTS = ("evaluate", "predict", "serve", "batch")


def run_command(command: str, arguments: Sequence[str], name: str = "") -> None:
    """Run a command with its arguments and exit with its code.

    Args:
        command: a key of COMMANDS.
        arguments: what follows it on the command line.
        name: how the user called it, for help and messages; default: "kmaskrcnn COMMAND".
    """
    quiet_tensorflow(lambda: phase("starting TensorFlow"))
    steady_output()
    onednn.set_up(frozen_weights=command in _FROZEN_WEIGHTS)
    module, function, _ = COMMANDS[command]
    try:
        program = getattr(importlib.import_module(f"kmaskrcnn.programs.{module}"), function)
        sys.exit(program(name or f"kmaskrcnn {command}", list(arguments)))
    except KeyboardInterrupt:  # while modules are imported
        print("error: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)


def main() -> None:
    """The console command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        steady_output()
        print(_usage())
    elif arguments[0] == "--version":
        print(f"kmaskrcnn {kmaskrcnn.__version__}")
    elif arguments[0] in COMMANDS:
        run_command(arguments[0], arguments[1:])
    else:
        near = difflib.get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"error: no command {arguments[0]!r}{hint} Commands: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {command:<{width}}  {text}" for command, (_, _, text) in COMMANDS.items()]
    head = f"kmaskrcnn {kmaskrcnn.__version__}: Mask R-CNN for TensorFlow and Keras 3"
    tail = "kmaskrcnn COMMAND --help shows the main flags of a command, --helpfull all of them."
    return "\n".join([head, "", "usage: kmaskrcnn COMMAND [--NAME=VALUE ...]", "", *lines, "", tail])
