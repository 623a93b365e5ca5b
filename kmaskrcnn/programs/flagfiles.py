"""Flagfiles: files with a flag on each line, named by `--flagfile=FILE`, also inside of another one."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Sequence
from pathlib import Path

from kmaskrcnn.config import ConfigError

_FLAG = "--flagfile"


def recipes_folder() -> Path:
    """The folder of the recipes that come with the package."""
    installed = Path(str(importlib.resources.files("kmaskrcnn"))) / "configs"
    return installed if installed.is_dir() else installed.parents[1] / "configs"


def expand_flagfiles(arguments: Sequence[str]) -> list[str]:
    """The arguments with each --flagfile replaced by the flags in it.

    A file is looked for as named (`~` and `$NAME` are expanded), then beside the flagfile that names it, then among
    the recipes of the package, with or without `configs/` before its name. Later flags override earlier ones.

    Raises:
        ConfigError: a file that is not there or cannot be read, or that includes itself.
    """
    return _expand(list(arguments), None, ())


def flagfile_names(arguments: Sequence[str]) -> set[str]:
    """The names of the flags in the flagfiles that the arguments name; of a switch also that without its `no`.

    Raises:
        ConfigError: as `expand_flagfiles`.
    """
    own, names = list(arguments), set()
    while own:
        argument = own.pop(0)
        name, equals, _ = argument.partition("=")
        if argument == "--":
            break
        if name in (_FLAG, _FLAG[1:]):
            if not equals:
                argument = f"{argument}={own.pop(0)}"
            names |= {flag.lstrip("-").partition("=")[0] for flag in expand_flagfiles([argument]) if flag[:1] == "-"}
    return names | {name.removeprefix("no") for name in names}


def _expand(arguments: list[str], folder: Path | None, open_files: tuple[Path, ...]) -> list[str]:
    result: list[str] = []
    while arguments:
        argument = arguments.pop(0)
        if argument == "--":
            return [*result, argument, *arguments]
        name, equals, value = argument.partition("=")
        if name not in (_FLAG, _FLAG[1:]):
            result.append(argument)
            continue
        if not equals:
            if not arguments:
                raise ConfigError(f"{_FLAG} needs a file")
            value = arguments.pop(0)
        path = _find(value, folder)
        if path in open_files:
            raise ConfigError(f"{_FLAG}={value}: {path} includes itself")
        result += _expand(_read(path), path.parent, (*open_files, path))
    return result


def _find(name: str, folder: Path | None) -> Path:
    path = Path(os.path.expandvars(os.path.expanduser(name)))
    places = [path, *([folder / path] if folder else []), recipes_folder() / path, recipes_folder() / path.name]
    for place in places:
        if place.is_file():
            return place.resolve()
    recipes = ", ".join(sorted(p.name for p in recipes_folder().glob("*.flags")))
    raise ConfigError(f"{_FLAG}={name}: no such file; the recipes of the package are {recipes}")


def _read(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_FLAG}={path}: cannot be read ({error})") from None
    lines = [line.strip() for line in lines]
    return [line for line in lines if line and not line.startswith(("#", "//"))]
