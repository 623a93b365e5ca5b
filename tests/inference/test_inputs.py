"""What files, folders and globs name, and what of it is an output of an earlier run."""

import os
import unicodedata

import pytest
from PIL import Image

from kmaskrcnn.config import ConfigError
from kmaskrcnn.data import load_image
from kmaskrcnn.inference.inputs import find_inputs
from kmaskrcnn.outputs import Outputs


def _touch(folder, *names):
    for name in names:
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()


def _found(folder, *inputs, **keywords):
    return [os.path.relpath(path, folder) for path, _ in find_inputs([str(i) for i in inputs], **keywords)]


def test_one_input_need_not_be_a_list(tmp_path):
    _touch(tmp_path, "a.png")
    assert find_inputs(str(tmp_path / "a.png")) == [(str(tmp_path / "a.png"), "a")]


def test_every_spelling_of_a_name_is_found(tmp_path):
    decomposed, composed = (unicodedata.normalize(form, "é (1)#.png") for form in ("NFD", "NFC"))
    _touch(tmp_path, "my photo.png", "100%20.png", decomposed, "lr=[0.1]/x[1].png", "lr=[0.1]/a.png", "a*/b.png")
    _touch(tmp_path, "a_other/c.png")
    url = "file://" + str(tmp_path).replace(" ", "%20") + "/my%20photo.png"
    for item, names in {
        "my%20photo.png": ["my photo.png"],
        url: ["my photo.png"],
        "100%20.png": ["100%20.png"],  # a file of exactly this name comes first
        composed: [decomposed],
        decomposed: [decomposed],
        "lr=[0.1]\\x[1].png": ["lr=[0.1]/x[1].png"],
        "lr=[0.1]/x[1].png": ["lr=[0.1]/x[1].png"],
        "lr=[0.1]": ["lr=[0.1]/a.png", "lr=[0.1]/x[1].png"],
        "lr=[0.1]/*.png": ["lr=[0.1]/a.png", "lr=[0.1]/x[1].png"],
        "lr=[0.1]/[ab].png": ["lr=[0.1]/a.png"],
        "a*": ["a*/b.png"],
        "a*/*": ["a*/b.png"],
        "a?o*/*": ["a_other/c.png"],
    }.items():
        assert _found(tmp_path, item if item == url else tmp_path / item) == names, item


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    _touch(tmp_path, "a.png")
    assert _found(tmp_path, "~/a.png") == _found(tmp_path, "~") == ["a.png"]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("none.png", "no such file or folder"),
        ("no/such/", "no such file or folder"),
        ("none%20.png", "no such file or folder"),
        ("a\0b.png", "no such file or folder"),
        ("{'a': 1}", "no such file or folder"),
        ("empty", "no image there"),
        ("pipe", "no image there"),
        ("*.png", "no file matches this pattern"),
        ("[", "no file matches this pattern"),
    ],
)
def test_a_missing_input_is_one_line(item, words, tmp_path):
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=words) as error:
        find_inputs([os.path.join(tmp_path, item)])
    assert "\n" not in str(error.value)


def test_what_telephones_and_cameras_write_does_not_vanish(tmp_path):
    _touch(tmp_path, "a.HEIC", "b.heif", "c.NEF", "d.dng", "note.txt")
    assert _found(tmp_path, tmp_path) == ["a.HEIC", "b.heif", "c.NEF", "d.dng"]
    for name, words in {"a.HEIC": "HEIC, which", "c.NEF": r"a RAW file \(\.nef\), which", "d.dng": "RAW"}.items():
        with pytest.raises(OSError, match=f"{name}: {words}.*convert it to JPEG" if words != "RAW" else words):
            load_image(str(tmp_path / name))


def test_a_photograph_with_the_wrong_ending_is_read_and_a_thumbnail_is_not(tmp_path):
    """Some telephones send JPEG as .heic; of a RAW file Pillow would read a small TIFF inside."""
    picture = Image.new("RGB", (40, 30), (200, 10, 10))
    picture.save(tmp_path / "a.heic", "JPEG")
    picture.save(tmp_path / "b.dng", "TIFF")
    assert load_image(str(tmp_path / "a.heic")).shape == (30, 40, 3)
    with pytest.raises(OSError, match=r"b\.dng: a RAW file"):
        load_image(str(tmp_path / "b.dng"))


def test_an_output_folder_below_the_input_is_left_out(tmp_path):
    _touch(tmp_path, "a.png", "out/a.png", "outer/b.png")
    left_out = []
    assert _found(tmp_path, tmp_path, output=str(tmp_path / "out"), left_out=left_out) == ["a.png", "outer/b.png"]
    assert left_out == [str(tmp_path / "out/a.png")]
    assert _found(tmp_path, tmp_path / "**/*.png", output=str(tmp_path / "out")) == ["a.png", "outer/b.png"]
    os.symlink(tmp_path / "out", tmp_path / "link")
    assert _found(tmp_path, tmp_path, output=str(tmp_path / "link")) == ["a.png", "outer/b.png"]
    # The input's own folder as output: nothing is left out, and the outputs are refused later where they collide.
    assert len(_found(tmp_path, tmp_path / "outer", output=str(tmp_path / "outer"))) == 1
    assert len(_found(tmp_path, tmp_path / "out/a.png", output=str(tmp_path / "out"))) == 1  # named outright


def test_overlays_of_any_earlier_run_are_left_out(tmp_path):
    _touch(tmp_path, "a.png", "deep/b.png")
    Outputs(tmp_path / "first", "predict").write_text("a.png", "overlay")
    Outputs(tmp_path, "predict").write_text("deep/b_masks.png", "masks")
    Outputs(tmp_path / "scores", "evaluate").write_text("a.png", "overlay")
    Outputs(tmp_path / "fixed", "doctor").write_text("images/c.png", "an image")
    expected = ["a.png", "deep/b.png", "fixed/images/c.png"]
    assert _found(tmp_path, tmp_path) == expected
    assert _found(tmp_path, tmp_path, output=str(tmp_path / "second")) == expected
    assert _found(tmp_path, tmp_path / "**/*.png") == expected
    assert _found(tmp_path, tmp_path / "deep", output=str(tmp_path)) == ["deep/b.png"]
    with pytest.raises(ConfigError, match=r"first: no image there but outputs of earlier runs \(1 files\)"):
        _found(tmp_path, tmp_path / "first")


def test_links_in_circles_end(tmp_path):
    _touch(tmp_path, "deep/a.png")
    os.symlink(tmp_path, tmp_path / "deep/up")
    assert _found(tmp_path, tmp_path) == ["deep/a.png"]


def test_each_file_has_a_name_of_its_own(tmp_path):
    _touch(tmp_path, "cam1/1.png", "cam2/1.png", "cam2/1.jpg", "cam1/clip.mp4")
    for inputs in (
        ["cam1", "cam2"],
        ["."],
        ["cam*/1.*", "cam1/clip.mp4"],
        ["cam1/1.png", "cam2/1.png", "cam2", "cam1"],
    ):
        found = find_inputs([str(tmp_path / item) for item in inputs])
        assert len(found) == 4
        assert len({name for _, name in found}) == 4
        assert dict(found)[str(tmp_path / "cam2/1.jpg")].endswith("1_jpg")
