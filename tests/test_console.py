"""A program goes on where nobody reads what it prints, and where what it prints has no room."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from kmaskrcnn.console import steady_output
steady_output()
for number in range(2000):
    print("line", number, "\\u5b57", flush=number % 2 == 0)
print("written", file=sys.stderr)
open(sys.argv[1], "w").write("done")
"""


def _run(tmp_path, stdout, **environment):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "result")]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def test_a_reader_that_goes_away(tmp_path):
    process = _run(tmp_path, subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 0
    assert (tmp_path / "result").read_text() == "done"
    assert error == "stdout can no longer be written to (Broken pipe): going on without it\nwritten\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk(tmp_path):
    with open("/dev/full", "w") as full:
        process = _run(tmp_path, full)
    error = process.stderr.read()
    assert process.wait() == 0
    assert (tmp_path / "result").read_text() == "done"
    assert error == "stdout can no longer be written to (No space left on device): going on without it\nwritten\n"


def test_letters_that_the_terminal_does_not_know(tmp_path):
    process = _run(tmp_path, subprocess.PIPE, PYTHONIOENCODING="ascii")
    output, _ = process.communicate()
    assert process.returncode == 0
    assert output.startswith("line 0 \\u5b57\nline 1 ")
