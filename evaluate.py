"""python evaluate.py --flagfile=...: the same as `kmaskrcnn evaluate`."""

import sys

from kmaskrcnn.programs.cli import run_command

if __name__ == "__main__":
    run_command("evaluate", sys.argv[1:], "evaluate.py")
