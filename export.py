"""python export.py --flagfile=...: the same as `kmaskrcnn export`."""

import sys

from kmaskrcnn.programs.cli import run_command

if __name__ == "__main__":
    run_command("export", sys.argv[1:], "export.py")
