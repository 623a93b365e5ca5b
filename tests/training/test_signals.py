"""A signal before there is anything to save ends a program at once, with the code that a scheduler restarts on."""

import signal
import subprocess
import sys
import threading

import pytest

from kmaskrcnn.errors import EXIT_INTERRUPTED
from kmaskrcnn.training.signals import StopSignals

# Within one long call of C, as TensorFlow's collectives are, Python's own handlers do not run.
PROGRAM = """
import ctypes, sys, time
from kmaskrcnn.training.signals import SignalWatch, StopSignals
watch = SignalWatch()
if sys.argv[1] == "early":
    print("ready", flush=True)
    mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)  # for ever, whatever signals come
watch.unsaved = lambda: True
with StopSignals() as stop:
    print("ready", flush=True)
    while stop.number is None:
        time.sleep(0.01)
    print("saving", stop.number, flush=True)
    time.sleep(0 if sys.argv[1] == "once" else 1000)
sys.exit(3)
"""


@pytest.fixture
def start():
    """Starts the program, and ends it after the test."""
    started = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_the_first_step(start, number):
    process = start("early")
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    name = signal.Signals(number).name
    assert error == f"{name} before a step was taken: nothing to save, the same command starts again\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_within_a_run_the_first_is_a_wish(start, number):
    process = start("once")
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output, error) == (3, f"saving {int(number)}\n", "")


def test_a_second_ctrl_c_ends_at_once_in_one_line(start):
    process = start("twice")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline().startswith("saving")
    process.send_signal(signal.SIGTERM)  # a launcher and a scheduler may both send one
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == EXIT_INTERRUPTED
    assert error == "a second Ctrl-C: stopped at once; the same command resumes from the newest checkpoint\n"


def test_outside_the_main_thread_no_handler_is_set():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def run():
        with StopSignals() as stop:
            found.append((stop.number, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [(None, before)]
