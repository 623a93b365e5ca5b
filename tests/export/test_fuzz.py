"""Mutated image files do not bring the model's process down, and the watch over it notices one that is."""

import re
import sys

import pytest

from kmaskrcnn.export.encoded_images import NOT_AN_IMAGE, TOO_LARGE, UNDECODABLE
from tests.export import fuzz
from tests.processes import run_python


def run(*arguments):
    return run_python("-m", "tests.export.fuzz", *arguments, timeout=1800)


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_end_as_they_should(count):
    result = run(f"--count={count}")
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{count} mutated files" in result.stdout
    for outcome in ("decoded", NOT_AN_IMAGE, UNDECODABLE, TOO_LARGE):
        assert re.search(rf"[1-9]\d* {outcome}", result.stdout), outcome


CRASH = "import os; print('begin 7', flush=True); os.abort()"
GROW = "x = []\nfor n in range(100): print(f'begin {n}', flush=True); x.append(b'x' * 20_000_000)"
HANG = "import threading; print('begin 5', flush=True); threading.Event().wait()"


@pytest.mark.parametrize(
    ("program", "words"),
    [(CRASH, "batch 7 ended the process"), (GROW, r"batch \d+ took \d+ MB"), (HANG, "batch 5 took more than 1 s")],
    ids=["crash", "leak", "hang"],
)
def test_a_crash_a_leak_and_a_hang_are_seen(program, words, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS_A_BATCH", 1)
    _, problem, _ = fuzz.watch([sys.executable, "-c", program], max_growth=100)
    assert re.search(words, problem)
