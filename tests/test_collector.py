"""The garbage collector is held while much is made, and left as it was."""

import gc
import subprocess
import sys
import weakref

import pytest

from kmaskrcnn.collector import held_collector, importing


def test_it_is_held_and_goes_on_even_after_an_error():
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), held_collector():
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


def test_one_that_was_off_stays_off():
    gc.disable()
    try:
        with held_collector(), held_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_first_use_of_the_predictor_is_not_interrupted():
    code = (
        "import gc, kmaskrcnn; before = sum(s['collections'] for s in gc.get_stats()); kmaskrcnn.Predictor; "
        "print(sum(s['collections'] for s in gc.get_stats()) - before, gc.isenabled(), gc.get_freeze_count())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) <= 5 and found[1:] == ["True", "0"]  # without, 800


class Cycle:
    """An object that the collector alone can free."""

    def __init__(self):
        self.own = self


def test_what_the_program_froze_stays_frozen():
    cycle = Cycle()
    kept = weakref.ref(cycle)
    gc.collect()
    gc.freeze()
    try:
        with importing():
            pass
        del cycle
        gc.collect()
        assert kept() is not None  # the collector passes over what is frozen
    finally:
        gc.unfreeze()
    gc.collect()
    assert kept() is None


def test_what_goes_after_an_import_is_collected():
    cycle = Cycle()
    gone = weakref.ref(cycle)
    with importing():
        pass
    del cycle
    gc.collect()
    assert gone() is None
