"""One training at a time in a folder: who has it is told, and a process that was killed does not keep it."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from kmaskrcnn.errors import LOCK, TrainingError
from kmaskrcnn.training.folder_lock import FolderLock

HOLDER = """
import pathlib, sys, time
from kmaskrcnn.training.folder_lock import FolderLock
FolderLock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(1000)
"""


def test_the_second_is_told_who_the_first_is_and_takes_over_after_a_kill(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TrainingError) as error:
            FolderLock(tmp_path)
        assert f"process {holder.pid} on {socket.gethostname()} (since 20" in str(error.value)
        assert "\n" not in str(error.value)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (tmp_path / LOCK).exists()
    lock = FolderLock(tmp_path)
    assert f'"pid": {os.getpid()}' in (tmp_path / LOCK).read_text()
    again = FolderLock(tmp_path)  # a second trainer of one process
    again.release()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_what_a_file_says_without_its_lock_keeps_nobody_out(tmp_path):
    (tmp_path / LOCK).write_text('{"host": "elsewhere", "pid": 1, "since": "2020-01-01"}')
    FolderLock(tmp_path).release()
    (tmp_path / LOCK).write_bytes(b"\xff\x00")
    FolderLock(tmp_path).release()
