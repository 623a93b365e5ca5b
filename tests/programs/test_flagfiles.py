"""Flagfiles: where they are looked for, and what stands in them."""

from types import SimpleNamespace

import pytest

from kmaskrcnn.config import ConfigError
from kmaskrcnn.programs import flags
from kmaskrcnn.programs.flagfiles import expand_flagfiles, flagfile_names, recipes_folder


def test_flags_stand_in_order_and_comments_are_left_out(tmp_path):
    path = tmp_path / "a.flags"
    path.write_text("# a comment\n--steps=1\n\n  --seed=2\n// another\n")
    assert expand_flagfiles(["--steps=3", f"--flagfile={path}", "--seed=4", "photo.jpg"]) == [
        *("--steps=3", "--steps=1", "--seed=2", "--seed=4", "photo.jpg")
    ]
    assert expand_flagfiles(["--flagfile", str(path)]) == ["--steps=1", "--seed=2"]


def test_a_byte_order_mark_is_no_part_of_the_first_flag(tmp_path):
    path = tmp_path / "a.flags"
    path.write_bytes(b"\xef\xbb\xbf--steps=1\r\n--seed=2\r\n")
    assert expand_flagfiles([f"--flagfile={path}"]) == ["--steps=1", "--seed=2"]


def test_home_and_variables_are_expanded(tmp_path, monkeypatch):
    (tmp_path / "a.flags").write_text("--steps=1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/a.flags", "$HOME/a.flags"):
        assert expand_flagfiles([f"--flagfile={name}"]) == ["--steps=1"]


def test_a_flagfile_in_a_flagfile_is_found_beside_it(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "base.flags").write_text("--steps=1\n")
    (tmp_path / "recipes" / "mine.flags").write_text("--flagfile=base.flags\n--seed=2\n")
    monkeypatch.chdir(tmp_path)
    assert expand_flagfiles(["--flagfile=recipes/mine.flags"]) == ["--steps=1", "--seed=2"]


@pytest.mark.parametrize("name", ["nuclei.flags", "configs/nuclei.flags"])
def test_recipes_are_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = (recipes_folder() / "nuclei.flags").read_text().splitlines()
    assert expand_flagfiles([f"--flagfile={name}"]) == [line for line in lines if line.startswith("--")]


def test_a_file_of_ones_own_goes_before_a_recipe(tmp_path, monkeypatch):
    (tmp_path / "nuclei.flags").write_text("--steps=7\n")
    monkeypatch.chdir(tmp_path)
    assert expand_flagfiles(["--flagfile=nuclei.flags"]) == ["--steps=7"]


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--flagfile=none.flags: no such file; the recipes .*nuclei.flags"):
        expand_flagfiles(["--flagfile=none.flags"])
    with pytest.raises(ConfigError, match="needs a file"):
        expand_flagfiles(["--flagfile"])
    circle = tmp_path / "circle.flags"
    circle.write_text("--flagfile=circle.flags\n")
    with pytest.raises(ConfigError, match="includes itself"):
        expand_flagfiles([f"--flagfile={circle}"])
    binary = tmp_path / "binary.flags"
    binary.write_bytes(b"\xff\xfe\x00-")
    with pytest.raises(ConfigError, match="cannot be read"):
        expand_flagfiles([f"--flagfile={binary}"])


@pytest.mark.parametrize("recipe", sorted(path.name for path in recipes_folder().glob("*.flags")))
def test_a_flagfile_with_settings_of_its_own_is_no_place_for_a_recipe(recipe, monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", SimpleNamespace(recipe=None))
    monkeypatch.setattr(flags, "_arguments", [f"--flagfile={recipe}"])
    assert not flags.makes_recipe()


def test_a_flagfile_of_files_and_minutes_leaves_the_rest_to_the_recipe(tmp_path, monkeypatch):
    path = tmp_path / "mine.flags"
    path.write_text("--train_annotations=a.json\n--max_minutes=20\n--nodeterministic\n")
    names = flagfile_names(["--steps=3", "--flagfile", str(path)])
    assert names == {"train_annotations", "max_minutes", "nodeterministic", "deterministic"}
    monkeypatch.setattr(flags, "FLAGS", SimpleNamespace(recipe=None))
    monkeypatch.setattr(flags, "_arguments", ["--crop_size=64", f"--flagfile={path}"])
    assert flags.makes_recipe()
    path.write_text("--train_annotations=a.json\n--norotate90\n")
    assert not flags.makes_recipe()
