"""Libraries without noise: what TensorFlow logs while it is imported, but for GPUs that it cannot use, and LiteRT."""

from __future__ import annotations

import atexit
import contextlib
import glob
import importlib.abc
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.machinery import ModuleSpec
from types import ModuleType

from kmaskrcnn.collector import importing

# In TensorFlow's log, what tells why a GPU is not used.
_GPU_FAULT = re.compile(
    r"could not load dynamic library|cannot dlopen|dlerror|failed call to cu|cannot open shared", re.I
)


def quiet_tensorflow(while_importing: Callable[[], AbstractContextManager] = contextlib.nullcontext) -> None:
    """From now on importing TensorFlow prints nothing, but a warning where a GPU is there that it cannot use.

    Part of its log does not heed TF_CPP_MIN_LOG_LEVEL before TensorFlow has started, so stderr is held meanwhile.

    Args:
        while_importing: makes a context for the import, which takes seconds.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "tensorflow" not in sys.modules and not any(isinstance(f, _QuietFinder) for f in sys.meta_path):
        sys.meta_path.insert(0, _QuietFinder(while_importing))


class _QuietFinder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow once, with a loader that holds stderr."""

    def __init__(self, while_importing: Callable[[], AbstractContextManager]):
        self._while_importing = while_importing

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def held(module: ModuleType) -> None:
            with self._while_importing(), held_stderr(), importing():
                run(module)
                gpus = module.config.list_physical_devices("GPU")  # opens the libraries of GPUs
            if not gpus and _gpu_driver():
                _tell_why()

        spec.loader.exec_module = held  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def held_stderr() -> Iterator[None]:
    """Keep what C++ writes to stderr, and let it go only where an exception follows."""
    sys.stderr.flush()
    own = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(own, 2)
            held.seek(0)
            os.write(2, held.read())
            raise
        finally:
            os.dup2(own, 2)
            os.close(own)


@contextlib.contextmanager
def quiet_litert() -> Iterator[None]:
    """LiteRT's log, which nothing turns off, is held; also what it says when the process ends."""
    atexit.unregister(_drop_stderr)
    atexit.register(_drop_stderr)
    with held_stderr():
        yield


def _drop_stderr() -> None:
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _gpu_driver() -> bool:
    """Whether this machine has a GPU with a driver that was not hidden on purpose."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    return not hidden and bool(glob.glob("/dev/nvidia[0-9]*"))


def _tell_why() -> None:
    """Print what TensorFlow says of a GPU that it does not use; its log can only be had from a fresh process."""
    code = "import tensorflow; tensorflow.config.list_physical_devices('GPU')"
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    log = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment).stderr
    lines = [line.strip() for line in log.splitlines() if _GPU_FAULT.search(line)]
    reason = "\n  ".join(dict.fromkeys(lines)) or "its log gives no reason"
    print(
        f"warning: this machine has a GPU that TensorFlow cannot use, so the CPU is used:\n  {reason}\n"
        "  pip install 'tensorflow[and-cuda]' installs the libraries",
        file=sys.stderr,
        flush=True,
    )
