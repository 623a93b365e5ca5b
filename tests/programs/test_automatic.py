"""Training without a flagfile: class names, a split, a recipe, and going on with it."""

import base64
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kmaskrcnn import model_folder
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.data import DataError, load_coco, make_shapes, open_dataset, open_raw
from kmaskrcnn.programs import automatic, train
from kmaskrcnn.results.labels import Labels


@pytest.fixture
def via(tmp_path):
    """A VIA project of twelve images whose regions have no attributes."""
    rng = np.random.default_rng(0)
    tree = {}
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(tmp_path / f"{i}.png")
        shape = {"name": "rect", "x": 5 + i, "y": 8, "width": 30, "height": 20}
        regions = [{"shape_attributes": shape, "region_attributes": {}}]
        tree[f"{i}.png"] = {"filename": f"{i}.png", "size": 1, "regions": regions, "file_attributes": {}}
    (tmp_path / "via.json").write_text(json.dumps(tree))
    return Config().replace(train_annotations=str(tmp_path / "via.json"), model_dir=str(tmp_path / "model"))


def test_a_set_without_class_names_is_told_or_asked_for_once(via, monkeypatch, capsys):
    named = automatic.name_classes(via, open_raw(via, "train"))
    assert named.data.class_names == ("object",)
    line = capsys.readouterr().out
    assert "names no classes" in line
    assert "--class_names=NAME" in line
    assert line.count("\n") == 1

    asked = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda text: asked.append(text) or "balloon")
    named = automatic.name_classes(via, open_raw(via, "train"))
    assert named.data.class_names == ("balloon",)
    assert open_dataset(named, "train").class_names == ["balloon"]
    assert automatic.name_classes(named, open_raw(named, "train")) is named
    assert len(asked) == 1


def test_a_split_is_made_and_said_and_is_the_same_each_time(via, capsys):
    config = automatic.name_classes(via, open_raw(via, "train"))
    split = automatic.keep_validation_images(config, open_raw(config, "train"))
    assert "2 of 12 images, drawn by --seed, are kept" in capsys.readouterr().out
    parts = [open_dataset(split, part) for part in ("train", "val")]
    assert [len(part) for part in parts] == [10, 2]
    assert not set(parts[0].file_names) & set(parts[1].file_names)
    assert parts[0].class_names == parts[1].class_names == ["object"]
    again = automatic.keep_validation_images(config, open_raw(config, "train"))
    assert open_dataset(again, "val").file_names == parts[1].file_names
    given = via.replace(val_annotations="other.json")
    assert automatic.keep_validation_images(given, open_raw(via, "train")) is given


def test_what_is_left_out_before_a_split_is_said_once(via, tmp_path, capsys):
    tree = json.loads((tmp_path / "via.json").read_text())
    for name, shape in (("0.png", {"name": "point", "cx": 3, "cy": 4}), ("5.png", {"name": "point", "cx": 5, "cy": 4})):
        tree[name]["regions"].append({"shape_attributes": shape, "region_attributes": {}})
    (tmp_path / "via.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="2 bad records; on_bad_record=skip") as error:
        automatic.keep_validation_images(via, open_raw(via, "train"))
    assert "0.png: regions[1]: a region of shape 'point'" in str(error.value)
    config = via.replace(on_bad_record="skip")
    split = automatic.keep_validation_images(config, open_raw(config, "train"))
    for part in ("train", "val"):
        open_dataset(split, part).summary()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert line.startswith("left out: 2 x unreadable-record: ")
    assert "0.png: regions[1]: a region of shape 'point'" in line


def test_records_without_ids_are_left_out_before_a_split(tmp_path, capsys):
    path = Path(make_shapes(tmp_path / "set", 8, 64, seed=0))
    config = Config().replace(train_annotations=str(path), model_dir=str(tmp_path / "model"))
    tree = json.loads(path.read_text())
    del tree["annotations"][0]["category_id"]
    tree["images"].append({"file_name": "none.png"})
    path.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"needs integers 'image_id', 'category_id'"):
        automatic.keep_validation_images(config, open_raw(config, "train"))
    config = config.replace(on_bad_record="skip")
    split = automatic.keep_validation_images(config, open_raw(config, "train"))
    assert len(open_dataset(split, "train")) + len(open_dataset(split, "val")) == 8
    assert capsys.readouterr().out.count("left out: 1 x ") == 2


def test_a_set_without_objects_is_not_split(via, tmp_path):
    tree = {name: {**entry, "regions": []} for name, entry in json.loads((tmp_path / "via.json").read_text()).items()}
    (tmp_path / "via.json").write_text(json.dumps(tree))
    assert automatic.keep_validation_images(via, open_raw(via, "train")) is via
    with pytest.raises(DataError, match=r"via\.json: none of its 12 images has an object"):
        open_dataset(via, "train")


def test_a_set_in_the_working_folder_is_split(via, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = via.replace(train_annotations="via.json")
    split = automatic.keep_validation_images(config, open_raw(config, "train"))
    assert [len(open_dataset(split, part)) for part in ("train", "val")] == [10, 2]


def test_labelme_files_with_and_without_images_are_split(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (20, 20), (i, i, i)).save(folder / f"{i}.png")
        data = base64.b64encode((folder / f"{i}.png").read_bytes()).decode() if i % 2 else None
        shape = {"label": "a", "points": [[2, 2], [12, 12]], "shape_type": "rectangle"}
        tree = {"imagePath": f"{i}.png", "imageData": data, "imageHeight": 20, "imageWidth": 20, "shapes": [shape]}
        (folder / f"{i}.json").write_text(json.dumps(tree))
        if data:
            (folder / f"{i}.png").unlink()
    config = Config().replace(train_annotations=str(folder), model_dir=str(tmp_path / "model"))
    split = automatic.keep_validation_images(config, open_raw(config, "train"))
    parts = [open_dataset(split, part) for part in ("train", "val")]
    assert sorted(part.image(i)[0, 0, 0] for part in parts for i in range(len(part))) == list(range(6))


def test_the_val_split_of_a_yolo_set_is_used(tmp_path, capsys):
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (tmp_path / kind / split).mkdir(parents=True)
        for i in range(3 if split == "train" else 2):
            Image.new("RGB", (20, 20)).save(tmp_path / "images" / split / f"{i}.png")
            (tmp_path / "labels" / split / f"{i}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    path = tmp_path / "data.yaml"
    text = "names: [a]\ntrain: images/train\n"
    path.write_text(text + "val: images/val\n")
    for given in (path, tmp_path, f"{path}@train", f"{tmp_path}/"):
        config = automatic.use_own_validation(Config().replace(train_annotations=str(given)))
        assert "the val split of the set, is used" in capsys.readouterr().out
        assert [len(open_dataset(config, part)) for part in ("train", "val")] == [3, 2]
        assert automatic.use_own_validation(config) is config
    plain = Config().replace(train_annotations=str(path))
    for other in ("", "val: images/train\n", "test: images/val\n"):
        path.write_text(text + other)
        assert automatic.use_own_validation(plain) == plain
        assert not capsys.readouterr().out
    path.write_text(text + "val: images/gone\n")
    assert automatic.use_own_validation(plain) == plain
    assert "images/gone; the val split is not used" in capsys.readouterr().out
    for given in ("shapes", f"{path}@test"):
        config = Config().replace(train_annotations=given)
        assert automatic.use_own_validation(config) == config


def test_too_few_images_are_not_split(via, capsys):
    raw = open_raw(via, "train")
    raw.images = raw.images[:3]
    assert automatic.keep_validation_images(via, raw) is via
    assert "too few" in capsys.readouterr().out


def test_a_run_goes_on_with_its_recipe_and_its_split(via):
    config = automatic.keep_validation_images(via, open_raw(via, "train")).replace(num_classes=1)
    assert automatic.settings_to_go_on(via, {}) is None
    train_set = open_dataset(config, "train")
    labels = Labels(tuple(train_set.class_names), tuple(train_set.category_ids))
    recipe = automatic.recipe_for(config, {"init_weights": "none", "crop_size": 64}, train_set)
    folder = model_folder.prepare_directory(config.train.model_dir, recipe.config, labels)
    given = {"train_annotations": via.data.train_annotations, "model_dir": via.train.model_dir, "steps": 7}
    assert automatic.settings_to_go_on(via.replace(steps=7), given) is None  # it took no step, so all is made anew
    (folder / model_folder.LAST).touch()
    found = automatic.settings_to_go_on(via.replace(steps=7), given)
    assert found == recipe.config.replace(steps=7)
    assert len(open_dataset(found, "train")) == 10

    path = Path(via.data.train_annotations)
    tree = json.loads(path.read_text())
    tree["3.png"]["regions"][0]["shape_attributes"]["width"] = 31  # a label was corrected
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=r"is not the set that the run in .*--init_weights="):
        automatic.settings_to_go_on(via.replace(steps=7), given)


def start_run(config, **settings):
    """A model folder as a run leaves it that kept validation images and took a step; returns what was given."""
    split = automatic.keep_validation_images(config, open_raw(config, "train"))
    saved = split.replace(num_classes=1, crop_size=64, **settings)
    folder = model_folder.prepare_directory(config.train.model_dir, saved, Labels(("object",), (1,)))
    (folder / model_folder.LAST).touch()
    return {"train_annotations": config.data.train_annotations, "model_dir": config.train.model_dir, **settings}


def go_on(given):
    """The settings with which a run goes on that is given these flags."""
    return automatic.settings_to_go_on(Config().replace(**given), given)


@pytest.mark.parametrize("spelling", ["run", "./run/", "{here}/run", "link", "../x/run", "{here}/x/../run", "moved"])
def test_a_run_goes_on_with_its_split_whatever_its_folder_is_called(spelling, via, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    given = start_run(via.replace(train_annotations="via.json", model_dir="x/run" if "../x" in spelling else "run"))
    if spelling == "link":
        (tmp_path / "link").symlink_to("run")
    elif spelling == "moved":
        (tmp_path / "run").rename("moved")
    elif spelling == "../x/run":
        monkeypatch.chdir(tmp_path / "x")
        given["train_annotations"] = "../via.json"
    given["model_dir"] = spelling.format(here=tmp_path)
    found = go_on(given)
    assert os.path.samefile(Path(found.data.train_annotations).parents[1], given["model_dir"])
    parts = [open_dataset(found, part) for part in ("train", "val")]
    assert [len(part) for part in parts] == [10, 2]
    names = [{os.path.basename(name) for name in part.file_names} for part in parts]
    assert not names[0] & names[1]
    # What this run writes into the folder leads the next one to the split, too.
    model_folder.prepare_directory(given["model_dir"], found, Labels(("object",), (1,)))
    assert go_on({**given, "model_dir": os.path.abspath(given["model_dir"])}).data.crop_size == 64

    path = tmp_path / "via.json"
    path.write_text(path.read_text().replace('"width": 30', '"width": 31'))
    with pytest.raises(ConfigError, match="is not the set that the run in"):
        go_on(given)


def test_a_run_that_kept_its_validation_images_takes_no_others(via, tmp_path):
    given = start_run(via)
    split = f"{tmp_path}/model/split"
    for flags in ({"val_annotations": f"{split}/../split/val.json"}, {"val_images": f"{tmp_path}/"}):
        assert go_on({**given, **flags}).data.val_annotations == f"{split}/val.json"
    for name in ("val_annotations", "val_images"):
        with pytest.raises(ConfigError, match=rf"--{name}=other: .*leave --{name} out, or choose another --model_dir"):
            go_on({**given, name: "other"})


def test_a_folder_of_validation_images_is_not_left_out_in_silence(via, tmp_path):
    config = via.replace(val_images="other")
    with pytest.raises(ConfigError, match="--val_images=other needs --val_annotations"):
        automatic.keep_validation_images(config, open_raw(config, "train"))
    assert not Path(via.train.model_dir).exists()
    same = via.replace(val_images=str(tmp_path))
    assert automatic.keep_validation_images(same, open_raw(same, "train")).data.val_annotations


@pytest.mark.parametrize(
    ("saved", "flags", "length", "said"),
    [
        ({"epochs": 3.0}, {"steps": 5000}, (0, 0, 5000), ["--steps=5000 sets", "--epochs=3 before"]),
        ({"max_minutes": 20.0}, {"steps": 5000}, (0, 0, 5000), ["--steps=5000 sets", "--max_minutes=20 before"]),
        ({"max_minutes": 20.0}, {"epochs": 4.0}, (0, 4, 90000), ["--epochs=4 sets", "--max_minutes=20 before"]),
        ({"max_minutes": 20.0}, {"max_minutes": 0.0, "epochs": 4.0}, (0, 4, 90000), []),
        ({"epochs": 3.0}, {"epochs": 3.0, "steps": 5000}, (0, 3, 5000), []),  # main says that steps is not used
        ({"steps": 700}, {"max_minutes": 5.0}, (5, 0, 700), []),
        ({"epochs": 3.0}, {"epochs": 0.0}, (0, 0, 90000), []),
        ({"epochs": 3.0}, {}, (0, 3, 90000), []),
    ],
)
def test_the_length_that_is_given_now_sets_that_of_a_run_that_goes_on(saved, flags, length, said, via, capsys):
    given = start_run(via, **saved)
    capsys.readouterr()
    found = go_on({**{name: given[name] for name in ("train_annotations", "model_dir")}, **flags}).train
    assert (found.max_minutes, found.epochs, found.steps) == length
    output = capsys.readouterr().out
    assert all(text in output for text in said)
    assert output.count("\n") == bool(said)


@pytest.fixture
def preview(monkeypatch):
    """`train --preview_augmentations=1` with settings that are given, in this process."""
    monkeypatch.setattr("kmaskrcnn.training.signals.SignalWatch", lambda: None)
    monkeypatch.setattr(train, "PREVIEW", SimpleNamespace(value=1))
    monkeypatch.setattr(train.flags, "makes_recipe", lambda: True)

    def run(**given):
        monkeypatch.setattr(train.flags, "config_from_flags", lambda: Config().replace(**given))
        monkeypatch.setattr(train.flags, "given_settings", lambda: dict(given))
        assert train.main() == 0

    return run


def test_a_tilde_is_the_home_folder_wherever_the_name_is_used(via, tmp_path, preview, monkeypatch, capsys):
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    given = {"train_annotations": via.data.train_annotations, "init_weights": "none", "crop_size": 64}
    preview(**given, model_dir="~/run")
    assert "recipe made" in capsys.readouterr().out
    assert sorted(path.name for path in (home / "run").iterdir()) == ["augmentations.png", "split"]
    assert not list(here.iterdir())
    start_run(via.replace(model_dir=str(home / "run")))
    capsys.readouterr()
    preview(**given, model_dir="~/run")
    output = capsys.readouterr().out
    assert "recipe made" not in output
    assert "training set: 10 images" in output


def test_a_number_of_steps_beside_epochs_is_not_left_out_in_silence(via, preview, capsys):
    preview(**start_run(via), epochs=3.0, steps=5)
    line = "--epochs=3 sets the length of training, so --steps=5 is not used; --epochs=0 lets it count"
    assert line in capsys.readouterr().out


def test_a_refused_command_leaves_no_split(via):
    def refused():
        with automatic.split_taken_back_on_error(via):
            automatic.keep_validation_images(via, open_raw(via, "train"))
            raise ConfigError("something else")

    folder = Path(via.train.model_dir)
    with pytest.raises(ConfigError, match="something else"):
        refused()
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").touch()
    with pytest.raises(ConfigError, match="something else"):
        refused()
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_every_class_is_trained_on_where_it_can_be(via, capsys):
    raw = open_raw(via, "train")
    drawn = automatic.keep_validation_images(via, raw)
    last = open_dataset(drawn, "val").image_ids[0]
    path = Path(via.data.train_annotations)
    tree = json.loads(path.read_text())
    for number, image in enumerate(open_raw(via, "train").images):
        name = "rare" if image["id"] == last else "common"
        tree[f"{number}.png"]["regions"][0]["region_attributes"] = {"label": name}
    path.write_text(json.dumps(tree))
    split = automatic.keep_validation_images(via, open_raw(via, "train"))
    train, val = open_dataset(split, "train"), open_dataset(split, "val")
    assert (len(train), len(val)) == (10, 2)
    assert automatic.classes_without_objects(train) == []
    assert automatic.classes_without_objects(val) == ["rare"]


def test_the_recipe_is_that_of_the_written_split(via):
    config = automatic.keep_validation_images(via, open_raw(via, "train"))
    written = load_coco(config.data.train_annotations, config.data.train_images)
    given = {"init_weights": "none"}
    first = automatic.recipe_for(config, given, open_dataset(config, "train"))
    assert first == automatic.recipe_for(config, given, written)
    assert first.config.train.eval_every > 0
