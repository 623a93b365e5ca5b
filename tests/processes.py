"""Python in a process of its own, as a user starts it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_python(*arguments, cwd=ROOT, timeout=600, **environment):
    """The ended process of `python ARGUMENTS`, with this checkout's package and its output as text."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)
