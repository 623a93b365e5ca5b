"""Fonts for captions in every script, found through Matplotlib's font manager."""

from __future__ import annotations

import functools
import importlib
import unicodedata
import warnings
from types import ModuleType
from typing import Any, cast

from PIL import ImageFont

from ..errors import ConfigError

# Fonts of mathematics, and those that have a box for everything.
_NOT_FOR_TEXT = ("STIX", "cm", "Last Resort")


def caption_font(text: str, size: int, font: str = "") -> tuple[ImageFont.FreeTypeFont, str]:
    """A font for a caption, and the caption with characters that the font lacks as \\u escapes.

    Args:
        text: the caption.
        size: in pixels.
        font: file of the font to use (.ttf, .otf, .ttc); empty: Pillow's own for ASCII, else the installed font that
            has most of the characters.

    Raises:
        ConfigError: `font` is no font file.
    """
    text = unicodedata.normalize("NFC", text)
    if not font and text.isascii() and text.isprintable():
        return _own_font(size), text
    characters = frozenset(text)
    path = font or _installed_font(characters)
    missing = characters - _glyphs(path)
    if missing:
        _warn(path)
    shown = "".join(c.encode("unicode_escape").decode() if c in missing else c for c in text)
    return _load(path, size), shown


@functools.lru_cache(maxsize=256)
def _own_font(size: int) -> ImageFont.FreeTypeFont:
    # With a size it is never the bitmap font that the type names besides.
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))


@functools.lru_cache(maxsize=256)
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(path, size)
    except (OSError, ValueError) as error:
        raise ConfigError(f"font={path}: {error}") from None


@functools.lru_cache(maxsize=256)
def _glyphs(path: str) -> frozenset[str]:
    """The characters that a font has, other than control characters."""
    FT2Font = _matplotlib("ft2font").FT2Font
    try:
        codes = FT2Font(path).get_charmap()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"font={path}: {error}") from None
    return frozenset(c for c in map(chr, codes) if c.isprintable())


@functools.lru_cache(maxsize=4096)
def _installed_font(characters: frozenset[str]) -> str:
    """The file of the installed font with most of the characters, plain sans-serif ones before others."""
    best, most = "", -1
    for path in _font_files():
        try:
            number = len(characters & _glyphs(path))
            if number > most:
                _load(path, 16)
                best, most = path, number
        except ConfigError:  # a bitmap font, or a damaged one
            continue
        if most == len(characters):
            break
    return best


@functools.cache
def _font_files() -> list[str]:
    font_manager = _matplotlib("font_manager")

    def rank(entry: Any) -> tuple:
        plain = entry.style == "normal", str(entry.weight) in ("400", "normal", "regular"), entry.stretch == "normal"
        return entry.name != "DejaVu Sans", *(not p for p in plain), "Sans" not in entry.name, entry.name, entry.fname

    entries = [e for e in font_manager.fontManager.ttflist if not e.name.startswith(_NOT_FOR_TEXT)]
    return list(dict.fromkeys(e.fname for e in sorted(entries, key=rank)))


def _matplotlib(module: str) -> ModuleType:
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError:
        raise ModuleNotFoundError("captions beyond ASCII need a package: pip install matplotlib") from None


@functools.cache
def _warn(path: str) -> None:
    """Once for each font."""
    warnings.warn(
        f"class names have characters that {path} lacks; captions show them as escapes: install a font that has them, "
        "such as Noto Sans CJK, or name its file with `font`",
        stacklevel=4,
    )
