"""The start of every program: flags made from the settings of `kmaskrcnn.config`, flagfiles, help, and errors."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags, logging

from kmaskrcnn import config as config_lib
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.programs.flagfiles import expand_flagfiles, flagfile_names

FLAGS = flags.FLAGS
_arguments: list[str] = []  # as the user gave them, flagfiles not yet replaced by what they hold
_OFFLINE = flags.DEFINE_boolean("offline", False, "Do not use the network: take weights from the cache only.")
_MIRROR = flags.DEFINE_string("mirror", "", "Base URL to download weights from, instead of the publishers' servers.")
# Topic -> names of flags, as --help shows them.
Topics = Mapping[str, Sequence[str]]


def define_config_flags() -> None:
    """Define `--NAME` for every setting; lists are written with commas, and flagfiles may hold any of them."""
    for name, (field, scalar, is_tuple) in config_lib.fields().items():
        default: Any = field.default
        text = field.metadata["help"]
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
        if name not in FLAGS or not FLAGS[name].present:
            continue
        value = FLAGS[name].value
        if is_tuple:
            try:
                value = tuple(scalar(item) for item in value)
            except ValueError:
                raise ConfigError(f"--{name}={','.join(value)}: expected comma-separated {scalar.__name__}s") from None
        settings[name] = value
    return settings


def _set_network() -> None:
    """Make --offline and --mirror known to what downloads, in this process and those that it starts."""
    if _OFFLINE.value:
        os.environ["KMASKRCNN_OFFLINE"] = "1"
    if _MIRROR.value:
        os.environ["KMASKRCNN_MIRROR"] = _MIRROR.value


def config_from_flags(base: Config | None = None) -> Config:
    """`base` (default: the defaults) with the given settings; raises ConfigError on an impossible one."""
    return (base or Config()).replace(**given_settings())


# Settings that say where and how long to train, not what: a flagfile of these alone leaves the rest to the recipe.
_BESIDE_RECIPE = {
    *("train_annotations", "train_images", "val_annotations", "val_images", "data_format", "class_names", "class_map"),
    *("num_classes", "on_bad_record", "data_threads", "model_dir", "init_weights", "epochs", "max_minutes", "dtype"),
    *("strategy", "num_devices", "num_local_workers", "stall_timeout", "deterministic", "on_nonfinite"),
    *("profile_steps", "seed", "log_every", "logger", "keep_checkpoints"),
}


def makes_recipe() -> bool:
    """Whether settings that are not given are made from the data: as --recipe says, or unless a flagfile has them."""
    if FLAGS.recipe is not None:
        return FLAGS.recipe
    in_files = {name for name in flagfile_names(_arguments) if name in config_lib.fields()}
    return in_files <= _BESIDE_RECIPE


def run(
    main: Callable[..., int | None],
    name: str,
    arguments: Sequence[str],
    about: str,
    topics: Topics,
    positional: str = "",
) -> int:
    """Run a program: read the flags, show the help, turn an error that a user can act on into one line and code 2.

    Args:
        main: the program, called without arguments, or with the list of positional ones.
        name: how the user called it.
        arguments: the command line after that name.
        about: what the program does, for the help.
        topics: the flags that --help shows, by topic.
        positional: what positional arguments are; empty: there are none.

    Returns:
        The exit code.
    """
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every file it saves
    if any(argument in ("-h", "--help", "--helpshort", "--helpfull") for argument in arguments):
        print(_help(name, about, topics, positional, "--helpfull" in arguments))
        return 0
    try:
        rest = FLAGS([name, *expand_flagfiles(arguments)])[1:]
        _arguments[:] = arguments
    except (ConfigError, flags.Error) as error:
        return _fail(f"{' '.join(str(error).split())} ({name} --help shows the flags)")
    if rest and not positional:
        return _fail(f"unexpected argument {rest[0]!r}; every setting is a flag, --NAME=VALUE")
    _set_network()
    code = _guarded((lambda: main(rest)) if positional else main)
    if code and "TF_CONFIG" in os.environ:
        # The other workers may be gone, and TensorFlow would wait for them.
        sys.stdout.flush()
        os._exit(code)
    return code


def _guarded(main: Callable[[], int | None]) -> int:
    # Imported here, since --help must not wait for TensorFlow.
    from kmaskrcnn.errors import EXIT_RESTART, DataError, TrainingError, WeightsError, WorkerLost

    try:
        return main() or 0
    except WorkerLost as error:
        return _fail(str(error), EXIT_RESTART)
    except (ConfigError, DataError, TrainingError, WeightsError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", 130)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _help(name: str, about: str, topics: Topics, positional: str, full: bool) -> str:
    usage = f"usage: {name}{f' [{positional} ...]' if positional else ''} [--flagfile=FILE] [--NAME=VALUE ...]"
    lines = [about, "", usage]
    shown: dict[str, Sequence[str]] = dict(topics)
    if full:
        listed = {flag for names in topics.values() for flag in names}
        for group, settings in config_lib.groups().items():
            shown[f"Other {group} settings"] = [n for n in settings if n in FLAGS and n not in listed]
    for topic, names in shown.items():
        if names:
            lines += ["", f"{topic}:", *(line for flag in names for line in _flag_help(FLAGS[flag]))]
    if not full and any(name in FLAGS for name in config_lib.fields()):
        lines += ["", f"{name} --helpfull shows every setting."]
    return "\n".join(lines)


def _flag_help(flag: flags.Flag) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 120)
    default = flag.default
    if isinstance(default, list):
        default = ",".join(map(str, default))
    told = f" (default: {default})" if default not in (None, "", False) else ""
    head = f"  --{'[no]' if flag.boolean else ''}{flag.name}"
    text = flag.help.replace("|", ", ") if isinstance(flag, flags.EnumFlag) else flag.help
    return [head, *textwrap.wrap(text + told, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
