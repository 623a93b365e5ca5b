"""YOLO segmentation sets, read as Ultralytics lays them out and written from any other form."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.config import Config
from kmaskrcnn.data import DataError, load_coco, load_dataset, make_shapes, open_dataset
from kmaskrcnn.data.readers import recognize
from kmaskrcnn.data.readers.write_yolo import write_yolo
from kmaskrcnn.outputs import OutputError
from tests.processes import run_program

HEIGHT, WIDTH = 40, 80
SQUARE = "0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"


def _set(folder, labels, names=None, **changes):
    for split, text in labels.items():
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / split / "a.jpg")
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / split / "negative.jpg")
        (folder / "labels" / split / "a.txt").write_text(text)
    tree = {"path": ".", **{split: f"images/{split}" for split in labels}, "names": names or ["cat", "dog"], **changes}
    (folder / "data.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "data.yaml")


def test_a_set_is_read_by_its_splits(tmp_path):
    path = _set(tmp_path, {"train": f"1 {SQUARE}\n0 {SQUARE}\n\n", "val": f"1 {SQUARE}\n"}, ["zebra", "ant"])
    assert recognize(path) == recognize(str(tmp_path)) == "yolo"
    train = load_dataset(path)
    assert (len(train), train.class_names, train.classes.tolist()) == (2, ["zebra", "ant"], [2, 1])
    np.testing.assert_allclose(train.boxes[0], [10, 20, 30, 40])
    assert load_dataset(f"{path}@val").classes.tolist() == [2]
    config = Config()
    config = type(config)(**{**vars(config), "data": type(config.data)(train_annotations=path, val_annotations=path)})
    assert len(open_dataset(config, "train").classes) == 2
    assert len(open_dataset(config, "val").classes) == 1


def _classes(config, split):
    return open_dataset(config, split).classes.tolist()


def test_a_folder_is_read_by_the_split_of_its_flag(tmp_path):
    _set(tmp_path, {"train": f"0 {SQUARE}\n", "val": f"1 {SQUARE}\n1 {SQUARE}\n"})
    for place in (f"{tmp_path}", f"{tmp_path}/"):
        config = Config().replace(train_annotations=place, val_annotations=place)
        for form in ("auto", "yolo"):
            own = config.replace(data_format=form)
            assert (_classes(own, "train"), _classes(own, "val")) == ([1], [2, 2])
    config = Config().replace(train_annotations=f"{tmp_path}@val", val_annotations=f"{tmp_path}@train")
    assert (_classes(config, "train"), _classes(config, "val")) == ([2, 2], [1])
    assert recognize(f"{tmp_path}@val") == "yolo"


def test_a_folder_whose_name_ends_like_a_split_is_that_folder(tmp_path):
    for name, number in (("cats", 0), ("cats@val", 1)):
        _set(tmp_path / name, {"train": f"{number} {SQUARE}\n", "val": f"{number} {SQUARE}\n" * 2})
    config = Config().replace(train_annotations=f"{tmp_path}/cats@val", val_annotations=f"{tmp_path}/cats@val")
    assert (_classes(config, "train"), _classes(config, "val")) == ([2], [2, 2])


def test_a_data_yaml_in_a_folder_of_another_format_changes_nothing(tmp_path):
    _set(tmp_path, {"train": f"0 {SQUARE}\n", "val": f"1 {SQUARE}\n"})
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.jpg")
    shape = {"label": "fox", "points": [[5, 5], [14, 12]], "shape_type": "rectangle"}
    tree = {"shapes": [shape], "imagePath": "a.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    (tmp_path / "a.json").write_text(json.dumps(tree))
    config = Config().replace(val_annotations=str(tmp_path), data_format="labelme")
    assert open_dataset(config, "val").class_names == ["fox"]


@pytest.mark.parametrize("changes", [{"path": ""}, {"path": "", "train": "list.txt"}, {}])
@pytest.mark.parametrize("place", ["data.yaml", "."])
def test_a_set_in_the_working_folder_has_its_labels(tmp_path, monkeypatch, place, changes):
    _set(tmp_path, {"train": f"0 {SQUARE}\n"}, **changes)
    (tmp_path / "list.txt").write_text("images/train/a.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert load_dataset(place).classes.tolist() == [1]


@pytest.mark.parametrize(
    "changes",
    [
        {"names": {0: "cat", 1: "dog"}},
        {"path": "/gone/elsewhere"},
        {"path": "", "train": "../images/train"},
        {"train": ["images/train"]},
        {"train": "list.txt"},
    ],
)
def test_ways_to_name_classes_and_images(tmp_path, changes):
    path = _set(tmp_path, {"train": f"0 {SQUARE}\n"}, **changes)
    (tmp_path / "list.txt").write_text("./images/train/a.jpg\n")
    dataset = load_dataset(path)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.classes.tolist() == [1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2 " + SQUARE, "class '2' is none of 0..1"),
        ("x " + SQUARE, "could not convert|not a number"),
        ("0 0.5 0.5 0.2 0.2", "a box x, y, width, height without an outline"),
        ("0 0.1 0.1 0.5 0.5 0.2", "5 numbers are not an outline"),
        ("0 10 10 20 10 20 20", "not fractions of the sides"),
        ("0 nan 0.1 0.2 0.1 0.2 0.2", "not finite"),
    ],
)
def test_lines_that_are_no_outlines_are_named(tmp_path, line, words):
    path = _set(tmp_path, {"train": f"0 {SQUARE}\n{line}\n"})
    with pytest.raises(DataError, match=words) as error:
        load_dataset(path)
    assert "labels/train/a.txt: line 2: " in str(error.value)
    assert len(load_dataset(path, on_bad_record="skip").classes) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [", "cannot be read"),
        ("- 1", "not a YOLO data.yaml"),
        ("train: images", "'names'"),
        ("names: [a, a]\ntrain: x", "twice"),
        ("names: [a]\nval: images", "no images of the split 'train' \\(has val\\)"),
        ("names: [a]\ntrain: nowhere", "there is no .*nowhere"),
        ("names: !!python/object/apply:os.system [id]", "cannot be read"),
    ],
)
def test_damaged_yaml_is_named(tmp_path, text, words):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=words) as error:
        load_dataset(tmp_path / "data.yaml")
    assert str(error.value).startswith(str(tmp_path / "data.yaml"))


def _iou(dataset, row, other, other_row, size):
    masks = []
    for one, r in ((dataset, row), (other, other_row)):
        rle = one.segmentations[r]
        rle = mask_utils.merge(mask_utils.frPyObjects(rle, *size)) if isinstance(rle, list) else rle
        masks.append(mask_utils.decode(rle).astype(bool))
    return (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()


def test_a_set_that_was_written_comes_back(tmp_path):
    dataset = load_coco(make_shapes(tmp_path / "shapes", 4, 96, seed=2))
    path = write_yolo({"train": dataset, "val": dataset}, str(tmp_path / "yolo"))
    for split in ("train", "val"):
        again = load_dataset(f"{path}@{split}")
        assert again.class_names == dataset.class_names
        assert again.classes.tolist() == dataset.classes.tolist()
        for row in range(len(dataset.classes)):
            assert _iou(dataset, row, again, row, (96, 96)) > 0.9
        np.testing.assert_array_equal(again.image(1), dataset.image(1))
    assert "path" not in yaml.safe_load(Path(path).read_text())  # Ultralytics would read it from the current folder
    assert write_yolo({"train": dataset}, str(tmp_path / "yolo")) == path  # what it wrote itself it may replace


def test_a_set_is_not_written_over_what_is_there(tmp_path):
    path = _set(tmp_path, {"train": f"0 {SQUARE}\n"})
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(OutputError):
        write_yolo({"train": load_dataset(path)}, str(tmp_path))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_another_set_is_not_mixed_with_what_a_split_has(tmp_path):
    """A YOLO set is all that its folders hold, so what an earlier run drew would be trained on and scored on too."""
    annotations = make_shapes(tmp_path / "shapes", 8, 64, seed=2)

    def split(seed):
        places = (f"--annotations={annotations}", f"--output={tmp_path}/a")
        return run_program("-m", "kmaskrcnn", "split", *places, "--to=yolo", "--val_images=3", f"--seed={seed}")

    assert split(0).returncode == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    again = split(1)
    assert again.returncode == 2
    assert re.search(r"a/(images|labels)/(train|val)/.*: is of another set", again.stderr)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert split(0).returncode == 0  # the same set may be written again


def test_bad_records_are_left_out_of_a_split_on_request(tmp_path):
    annotations = Path(make_shapes(tmp_path / "shapes", 8, 64, seed=2))
    tree = json.loads(annotations.read_text())
    tree["images"][0]["height"] = 0
    tree["images"].append({"file_name": "none.png"})
    annotations.write_text(json.dumps(tree))
    places = (f"--annotations={annotations}", f"--output={tmp_path}/a")
    command = ["-m", "kmaskrcnn", "split", *places, "--to=yolo", "--val_images=3"]
    assert run_program(*command).returncode == 2
    done = run_program(*command, "--on_bad_record=skip")
    assert done.returncode == 0, done.stderr
    assert [len(load_dataset(f"{tmp_path}/a/data.yaml@{part}")) for part in ("train", "val")] == [4, 3]


def test_a_folder_without_a_yaml_is_named(tmp_path):
    with pytest.raises(DataError, match=r"not a YOLO set: it holds no data\.yaml"):
        load_dataset(tmp_path, data_format="yolo")
