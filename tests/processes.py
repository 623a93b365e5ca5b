"""Python in a process of its own, as a user starts it, and our programs in processes that have TensorFlow already."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_python(*arguments, cwd=ROOT, timeout=600, **environment):
    """The ended process of `python ARGUMENTS`, with this checkout's package and its output as text."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)


def run_program(*arguments, cwd=ROOT, timeout=600):
    """As `run_python` of train.py and the like, or of `-m kmaskrcnn COMMAND`, without waiting for TensorFlow.

    A process that has imported it and run nothing is forked; each program is also started by `run_python` in a test.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        streams = [multiprocessing.reduction.DupFd(file.fileno()) for file in (output, errors)]
        process = context.Process(target=_program, args=(list(map(str, arguments)), str(cwd), *streams))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired(arguments, timeout)
        texts = [(file.seek(0), file.read())[1] for file in (output, errors)]
    return subprocess.CompletedProcess(arguments, process.exitcode, *texts)


def _program(arguments, cwd, output, errors):
    os.dup2(output.detach(), 1)
    os.dup2(errors.detach(), 2)
    os.chdir(cwd)
    # Their own streams: those that this process came with may have been swapped.
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    from kmaskrcnn.programs import cli

    try:
        if arguments[0] == "-m":
            sys.argv = ["kmaskrcnn", *arguments[2:]]
            cli.main()
        else:
            sys.argv = arguments
            cli.run_command(arguments[0].removesuffix(".py"), arguments[1:], arguments[0])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
