"""TensorFlow starts without noise; what is wrong with a GPU is told."""

import subprocess

from tests.processes import run_python


def _run(code):
    return run_python("-c", f"from kmaskrcnn import quiet; {code}")


def test_nothing_is_printed_but_the_faults_of_a_gpu():

    code = """
import contextlib, os
@contextlib.contextmanager
def told():
    print("starting")
    yield
    print("started")
quiet.quiet_tensorflow(told)
print("not yet")
import keras
import tensorflow as tf
assert keras.ops.ones(3).numpy().sum() == tf.ones(3).numpy().sum()
os.write(2, b"stderr is back\\n")
"""
    result = _run(code)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "stderr is back\n"
    assert result.stdout == "not yet\nstarting\nstarted\n"


def test_faults_of_a_gpu_are_told(monkeypatch, capsys):
    from kmaskrcnn import quiet

    log = """I0000 00:00:1 1 cudart_stub.cc:31] Could not find cuda drivers on your machine, GPU will not be used.
W0000 00:00:1 1 dso_loader.cc:59] Could not load dynamic library 'libcudnn.so.9'; dlerror: libcudnn.so.9: cannot open
W0000 00:00:1 1 gpu_device.cc:2430] Cannot dlopen some GPU libraries. Please make sure the missing libraries mentioned
Skipping registering GPU devices...
"""

    def run(command, **keywords):
        assert keywords["env"]["TF_CPP_MIN_LOG_LEVEL"] == "0"
        return subprocess.CompletedProcess(command, 0, "", log)

    monkeypatch.setattr(quiet.subprocess, "run", run)
    quiet._tell_why()
    told = capsys.readouterr().err
    assert told.startswith("warning: this machine has a GPU that TensorFlow cannot use, so the CPU is used:\n")
    assert "libcudnn.so.9: cannot open" in told
    assert "Cannot dlopen some GPU libraries" in told
    assert "cudart_stub" not in told


def test_a_hidden_gpu_is_no_fault(monkeypatch):
    from kmaskrcnn import quiet

    monkeypatch.setattr(quiet.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert quiet._gpu_driver()
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not quiet._gpu_driver()


def test_an_import_that_fails_shows_all_that_was_held():
    code = """
import os
try:
    with quiet.held_stderr():
        os.write(2, b"the reason\\n")
        raise ImportError("broken")
except ImportError as error:
    print(error)
"""
    result = _run(code)
    assert (result.stdout, result.stderr) == ("broken\n", "the reason\n")


def test_the_log_of_litert_is_held_to_the_end_of_the_process():
    code = """
import os
import atexit
atexit.register(lambda: os.write(2, b"DestroyAccelerator\\n"))
with quiet.quiet_litert():
    os.write(2, b"INFO: Created\\n")
os.write(2, b"ours\\n")
"""
    result = _run(code)
    assert result.returncode == 0 and result.stderr == "ours\n"
