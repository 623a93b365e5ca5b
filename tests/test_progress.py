"""Lines of progress."""

import threading

import pytest

from kmaskrcnn import progress
from kmaskrcnn.progress import Progress, listening, phase


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_short_work_is_quiet_and_long_work_tells_what_is_left(clock, capsys):
    work = Progress("images", 100)
    clock[0] = 1.0
    work.step()
    assert capsys.readouterr().out == ""
    clock[0] = 25.0
    work.step(24)
    assert capsys.readouterr().out == "25/100 images, ETA 0:01:15\n"
    clock[0] = 26.0
    work.step()
    assert capsys.readouterr().out == ""


def test_an_unknown_total_is_left_out(clock, capsys):
    work = Progress("frames", 0)
    clock[0] = 25.0
    work.step(3)
    assert capsys.readouterr().out == "3 frames\n"


def test_a_terminal_keeps_one_line(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    work = Progress("images", 10)
    clock[0] = 3.0
    work.step(5)
    clock[0] = 3.5
    work.step(1)
    work.clear()
    out = capsys.readouterr().out
    assert "\n" not in out
    assert out.startswith("\r5/10 images, ETA 0:00:03\r6/10")
    assert out.endswith("\r")


def test_a_listener_hears_all_work_that_goes_on(clock, tmp_path):
    from kmaskrcnn.data import load_coco, make_shapes

    beats = []
    with listening(lambda: beats.append(clock[0])):
        Progress("images", 3).step()
        assert len(beats) == 1
        load_coco(make_shapes(tmp_path, 4, 64, seed=0))
    heard = len(beats)
    assert heard >= 1 + 4 + 4  # each image file and each annotation, for a watchdog
    Progress("images", 3).step()
    assert len(beats) == heard


def test_a_long_phase_is_named_and_a_short_one_is_not(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.01)
    told = threading.Event()
    monkeypatch.setattr("builtins.print", lambda *words, **_: words == ("reading ...",) and told.set())
    with phase("reading"):
        assert told.wait(10)
    told.clear()
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 1e6)
    with phase("reading"):
        pass
    assert not told.is_set()
