"""Python's garbage collector, held while much is made that stays."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def held_collector() -> Iterator[None]:
    """No collection of cycles in the context, each of which would walk through all that was made so far."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """`held_collector`, after which all that there is counts as old, as if it had lived through many collections.

    TensorFlow and Keras are a million objects, through which each of the next collections would walk.
    """
    with held_collector():
        yield
        if not gc.get_freeze_count():  # what the program has frozen itself stays so
            gc.freeze()
            gc.unfreeze()
