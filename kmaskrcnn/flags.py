"""The command-line flags: one for each setting of `kmaskrcnn.config`, made from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from kmaskrcnn import config as config_lib
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.console import steady_output

FLAGS = flags.FLAGS


def define_config_flags() -> None:
    """Define `--NAME` for every setting; lists are written with commas, and flagfiles may hold any of them."""
    for name, (field, scalar, is_tuple) in config_lib.fields().items():
        default, text = field.default, field.metadata["help"]
        if is_tuple:
            flags.DEFINE_list(name, [str(v) for v in default], text)
        elif field.metadata["choices"]:
            flags.DEFINE_enum(name, default, list(field.metadata["choices"]), text)
        elif scalar is bool:
            flags.DEFINE_boolean(name, default, text)
        elif scalar is int:
            flags.DEFINE_integer(name, default, text)
        elif scalar is float:
            flags.DEFINE_float(name, default, text)
        else:
            flags.DEFINE_string(name, default, text)


def given_settings() -> dict[str, Any]:
    """The settings that the command line or a flagfile gave, by name; raises ConfigError on a list of non-numbers."""
    settings = {}
    for name, (_, scalar, is_tuple) in config_lib.fields().items():
        if not FLAGS[name].present:
            continue
        value = FLAGS[name].value
        if is_tuple:
            try:
                value = tuple(scalar(item) for item in value)
            except ValueError:
                raise ConfigError(f"--{name}={','.join(value)}: expected {scalar.__name__}s with commas") from None
        settings[name] = value
    return settings


def config_from_flags(base: Config | None = None) -> Config:
    """`base` (default: the defaults) with the given settings; raises ConfigError on an impossible one."""
    return (base or Config()).replace(**given_settings())


def run(main: Callable[[], int | None]) -> None:
    """Run a program: parse the flags, and turn an error that a user can mend into one line and exit code 2."""
    # TensorFlow's own log tells of missing GPUs and cost estimates; what goes wrong comes as exceptions.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    steady_output()

    def guarded(argv: list[str]) -> int | None:
        if len(argv) > 1:
            return _fail(f"unexpected argument {argv[1]!r}; every setting is a flag, --NAME=VALUE")
        if not FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every file it saves
        # Imported here, since --help must not wait for TensorFlow.
        from kmaskrcnn.data import DataError
        from kmaskrcnn.training.errors import EXIT_RESTART, TrainingError, WorkerLost
        from kmaskrcnn.weights import WeightsError

        try:
            code = main()
        except WorkerLost as error:
            code = _fail(str(error), EXIT_RESTART)
        except (ConfigError, DataError, TrainingError, WeightsError) as error:
            code = _fail(str(error))
        except KeyboardInterrupt:
            code = _fail("stopped by Ctrl-C", 130)
        except OSError as error:
            code = _fail(f"{error.filename or ''}: {error.strerror or error}")
        if code and "TF_CONFIG" in os.environ:
            # The other workers may be gone, and TensorFlow would wait for them.
            sys.stdout.flush()
            os._exit(code)
        return code

    app.run(guarded)


def _fail(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
