"""Outputs never replace what was read, or what somebody else wrote or changed."""

import os

import pytest

from kmaskrcnn.outputs import OUTPUTS_LIST, OutputError, Outputs, images_written, output_names, split_file


def test_a_program_replaces_what_it_wrote_and_nothing_else(tmp_path):
    Outputs(tmp_path / "out", "split").write_text("train.json", "1")
    Outputs(tmp_path / "out", "split").write_text("train.json", "2")
    assert (tmp_path / "out/train.json").read_text() == "2"
    with pytest.raises(OutputError, match=r"train\.json: already exists, and merge did not write it"):
        Outputs(tmp_path / "out", "merge").write_text("train.json", "3")
    (tmp_path / "out/train.json").write_text("corrected by hand")
    with pytest.raises(OutputError, match="has changed since"):
        Outputs(tmp_path / "out", "split").check(["train.json"])
    assert (tmp_path / "out/train.json").read_text() == "corrected by hand"
    assert sorted(os.listdir(tmp_path / "out")) == [OUTPUTS_LIST, "train.json"]


def test_a_file_that_was_read_is_not_replaced_even_by_its_own_program(tmp_path):
    path = Outputs(tmp_path, "split").write_text("train.json", "1")
    (tmp_path / "link.json").symlink_to(path)
    for read in (path, tmp_path, tmp_path / "link.json"):
        with pytest.raises(OutputError, match=r"train\.json: is an input"):
            Outputs(tmp_path, "split", [read]).write_text("train.json", "2")
    os.symlink(tmp_path, tmp_path / "again")
    with pytest.raises(OutputError, match="is an input"):
        Outputs(tmp_path / "again", "split", [path]).write_text("train.json", "2")
    assert (tmp_path / "train.json").read_text() == "1"


def test_an_output_through_a_link_leaves_its_target_alone(tmp_path):
    (tmp_path / "original.png").write_text("image")
    (tmp_path / "a.png").symlink_to(tmp_path / "original.png")
    (tmp_path / "dead.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.png").mkdir()
    for name in ("a.png", "folder.png"):
        with pytest.raises(OutputError):
            Outputs(tmp_path, "predict").write_text(name, "overlay")
    assert (tmp_path / "original.png").read_text() == "image"


def test_two_outputs_of_one_name_are_refused(tmp_path):
    outputs = Outputs(tmp_path, "predict")
    outputs.write_text("a.png", "1")
    for name in ("a.png", "A.PNG"):
        with pytest.raises(OutputError, match="two outputs share this name"):
            outputs.write_text(name, "2")
    with pytest.raises(OutputError, match="two outputs share this name"):
        Outputs(tmp_path, "predict").check(["b.png", "B.png"])
    assert (tmp_path / "a.png").read_text() == "1"


def test_a_file_is_whole_or_not_there(tmp_path):
    outputs = Outputs(tmp_path, "predict")
    outputs.write_text("a.txt", "old")
    with pytest.raises(RuntimeError), Outputs(tmp_path, "predict").file("a.txt") as path:
        assert path.endswith(".txt")
        with open(path, "w") as file:
            file.write("ha")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == [OUTPUTS_LIST, "a.txt"]


def test_a_killed_run_can_be_repeated(tmp_path, monkeypatch):
    Outputs(tmp_path, "predict").write_text("a.txt", "first")
    replace = os.replace

    def killed(*_):
        raise KeyboardInterrupt

    for after in (False, True):  # before the new file has its name, and right after
        monkeypatch.setattr(os, "replace", lambda *names, after=after: (replace(*names) if after else None, killed()))
        with pytest.raises(KeyboardInterrupt):
            Outputs(tmp_path, "predict").write_text("a.txt", f"second {after}")
        monkeypatch.setattr(os, "replace", replace)
        Outputs(tmp_path, "predict").write_text("a.txt", f"third {after}")
        assert (tmp_path / "a.txt").read_text() == f"third {after}"


def test_a_damaged_list_protects_more_and_not_less(tmp_path):
    Outputs(tmp_path, "predict").write_text("a.txt", "first")
    for content in (b"", b"\xff\xfe nonsense", b'{"file": "a.txt"}\n[]\n3\nnull\n', b"\x00" * 100):
        (tmp_path / OUTPUTS_LIST).write_bytes(content)
        with pytest.raises(OutputError, match="already exists"):
            Outputs(tmp_path, "predict").write_text("a.txt", "second")
    assert (tmp_path / "a.txt").read_text() == "first"


def test_folders_that_are_files_are_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="out: is a file, and outputs need a folder"):
        Outputs(tmp_path / "out", "predict")
    with pytest.raises(OutputError, match=r"out is a file"):
        Outputs(tmp_path, "predict").check(["out/a.png"])
    with pytest.raises(OutputError, match="is a folder; give the name of a file"):
        split_file(f"{tmp_path}/")
    with pytest.raises(OutputError, match="gs://bucket/x: is an address"):
        Outputs("gs://bucket/x", "predict")


def test_pattern_characters_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        Outputs("~/lr=[0.1] *?", "predict").write_text("a [1]%20.txt", "x")
    assert (tmp_path / "lr=[0.1] *?" / "a [1]%20.txt").read_text() == "x"


def test_remote_outputs_are_never_replaced():
    from kmaskrcnn.data.files import open_outputs

    assert open_outputs("ram://outputs/deep", "merge").write_text("all.json", "{}") == "ram://outputs/deep/all.json"
    with pytest.raises(OutputError, match=r"ram://outputs/deep/all\.json: already exists"):
        open_outputs("ram://outputs/deep", "merge").write_text("all.json", "{}")


def test_images_of_earlier_runs_are_known(tmp_path):
    Outputs(tmp_path, "predict").write_text("deep/a.png", "overlay")
    Outputs(tmp_path, "doctor").write_text("images/b.png", "image")
    Outputs(tmp_path, "predict").write_text("c.png", "overlay")
    (tmp_path / "c.png").write_text("an image that a user put there")
    assert images_written(str(tmp_path)) == {"deep/a.png"}


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.png", "b.jpg"], ["a", "b"]),
        (["d/a.png", "d/a.jpg", "d/b.png"], ["a_png", "a_jpg", "b"]),
        (["d/a.png", "d/A.jpg"], ["a_png", "A_jpg"]),
        (["cam1/1.png", "cam2/1.png", "cam2/2.png"], ["cam1/1", "cam2/1", "2"]),
        (["x/cam/1.png", "y/cam/1.png"], ["x/cam/1", "y/cam/1"]),
        (["cam1/1.png", "cam2/1.png", "cam2/1.jpg"], ["1", "1_png", "1_jpg"]),
        (["a.png", "a_masks.png"], ["a", "a_masks_2"]),
        (["a_masks.png", "a.png"], ["a_masks", "a_2"]),
        (["d/\u00e9.png", "d/e\u0301.jpg"], ["\u00e9_png", "e\u0301_jpg"]),
        (["d/a.png", "d/a.jpg", "d/a_png.png"], ["a_png", "a_jpg", "a_png_2"]),
    ],
)
def test_names_differ(paths, names):
    found = output_names(paths)
    assert len({name.casefold() for name in found}) == len(paths)
    assert found == names


def test_names_keep_the_folders_below_their_root():
    assert output_names(["d/x/1.png", "d/y/1.png", "d/1.png"], ["d", "d", "d"]) == ["x/1", "y/1", "1"]
    names = output_names(["d/a/b.png", "d/a__b.png"], ["d", "d"])  # LabelMe's folder is flat
    assert len({name.replace("/", "__") for name in names}) == 2
