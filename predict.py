"""python predict.py --flagfile=...: the same as `kmaskrcnn predict`."""

import sys

from kmaskrcnn.programs.cli import run_command

if __name__ == "__main__":
    run_command("predict", sys.argv[1:], "predict.py")
