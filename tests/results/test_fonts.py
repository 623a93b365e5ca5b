"""Captions in every script: drawn by a font that has the letters, and never as boxes."""

import warnings

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from kmaskrcnn.config import ConfigError
from kmaskrcnn.results import fonts
from kmaskrcnn.results.draw import draw_instances
from kmaskrcnn.results.fonts import caption_font


@pytest.fixture
def bundled(monkeypatch):
    """Only the fonts that Matplotlib brings, whatever is installed."""
    folder = font_manager.get_data_path() if hasattr(font_manager, "get_data_path") else "mpl-data"
    files = [f for f in fonts._font_files() if folder in f or "mpl-data" in f]
    monkeypatch.setattr(fonts, "_font_files", lambda: files)
    fonts._installed_font.cache_clear()
    fonts._warn.cache_clear()
    yield
    fonts._installed_font.cache_clear()


def _drawn(caption, **keywords):
    image = np.zeros((640, 640, 3), np.uint8)
    boxes = np.array([[200, 100, 500, 600]], np.float32)
    return np.asarray(draw_instances(image, boxes, np.zeros((1, 28, 28), np.float32), [caption], **keywords))


@pytest.mark.parametrize("pair", [("né", "nè"), ("Bär", "Bör"), ("кот", "пёс"), ("β", "π"), ("قط", "كل")])
def test_letters_are_drawn(pair, bundled):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (_drawn(name) for name in pair)
        assert caption_font(pair[0], 20)[1] == pair[0]
    assert (first != second).any()


def test_one_letter_in_two_forms_of_unicode_is_drawn_alike(bundled):
    np.testing.assert_array_equal(_drawn("n\u00e9"), _drawn("ne\u0301"))


def test_letters_that_no_font_has_are_escapes_and_one_warning(bundled):
    with pytest.warns(UserWarning, match="lacks") as caught:
        images = [_drawn(name) for name in ("猫", "狗", "a\nb", "a\tb")]
    assert len(caught) == 1
    assert all((a != b).any() for i, a in enumerate(images) for b in images[:i])
    assert caption_font("猫 0.90", 20)[1] == "\\u732b 0.90"


def test_a_font_may_be_named(tmp_path, bundled):
    serif = font_manager.findfont("DejaVu Serif")
    assert (_drawn("cat") != _drawn("cat", font=serif)).any()
    (tmp_path / "no.ttf").write_bytes(b"no font")
    for path in (tmp_path / "no.ttf", tmp_path / "none.ttf"):
        with pytest.raises(ConfigError, match=f"font={path}"):
            caption_font("é", 20, str(path))


def test_ascii_needs_no_search(monkeypatch):
    monkeypatch.setattr(fonts, "_font_files", lambda: pytest.fail("searched"))
    assert isinstance(_drawn("cat 0.90"), np.ndarray)
    assert Image.fromarray(_drawn("cat 0.90")).size == (640, 640)
