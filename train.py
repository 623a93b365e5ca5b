"""python train.py --flagfile=...: the same as `kmaskrcnn train`."""

import sys

from kmaskrcnn.programs.cli import run_command

if __name__ == "__main__":
    run_command("train", sys.argv[1:], "train.py")
