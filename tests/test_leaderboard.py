"""benchmarks/leaderboard without the other packages: the tasks, the budget, results that add up, the table."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from benchmarks.leaderboard import data, run, side
from benchmarks.leaderboard.table import SIDES, table


def write_set(folder, name="trainval.json", images="images", count=12, categories=("date", "fig")):
    """Images with a square each, of the categories in turns, and a second of the first one on every third image."""
    (folder / images).mkdir(parents=True, exist_ok=True)
    tree = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in enumerate(categories, 1)]}
    for number in range(1, count + 1):
        picture = np.full((40, 48, 3), 30, np.uint8)
        tree["images"].append({"id": number, "file_name": f"{number}.png", "height": 40, "width": 48})
        for category in [1 + number % len(categories)] + [1] * (number % 3 == 0):
            x, y = 4 + 3 * (number % 5), 6 + 2 * category
            picture[y : y + 12, x : x + 12] = 200
            outline = [x, y, x + 12, y, x + 12, y + 12, x, y + 12]
            tree["annotations"].append(
                {
                    "id": len(tree["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "iscrowd": 0,
                    "bbox": [x, y, 12, 12],
                    "area": 144,
                    "segmentation": [outline],
                }
            )
        Image.fromarray(picture).save(folder / images / f"{number}.png")
    (folder / name).write_text(json.dumps(tree))
    return folder


def ids(tree):
    return {image["id"] for image in tree["images"]}


def test_parts_are_drawn_by_ids_and_share_no_image(tmp_path):
    source = data.SOURCES["fruits"]
    train, held = data.parts(source, write_set(tmp_path))
    assert len(ids(held)) == 4 and len(ids(train)) == 8 and not ids(train) & ids(held)
    assert ids(data.parts(source, tmp_path)[1]) == ids(held)


def test_one_class_alone(tmp_path):
    write_set(tmp_path, categories=("dog", "person"))
    kept = data.only(json.loads((tmp_path / "trainval.json").read_text()), "person")
    assert ids(kept) == {1, 3, 5, 7, 9, 11}
    assert {a["category_id"] for a in kept["annotations"]} == {2} and [c["id"] for c in kept["categories"]] == [2]
    with pytest.raises(SystemExit, match="no category 'cat' among dog, person"):
        data.only(json.loads((tmp_path / "trainval.json").read_text()), "cat")


def test_a_task_is_written_once(tmp_path):
    said = []
    for _ in range(2):
        data.make_task(data.SOURCES["fruits"], write_set(tmp_path / "set"), tmp_path / "task", said.append)
    assert len(said) == 1 and said[0].startswith(f"{tmp_path / 'task'}: 8 images to train on with ")
    assert len(list((tmp_path / "task" / "yolo").rglob("*.txt"))) == 8
    with pytest.raises(SystemExit, match=r"instances_train\.json is missing"):
        data.make_task(data.SOURCES["nuclei"], tmp_path / "set", tmp_path / "other")


def test_the_budget_leaves_pauses_out():
    now = [5.0]
    budget = side.Budget(0.5, lambda: now[0])
    assert budget.spent() == 5.0 and not budget.is_over()
    with budget.paused():
        now[0] += 100
    assert budget.spent() == 5.0
    now[0] += 25
    assert budget.is_over()


def found_by(share):
    """Stands in for a side: finds this share of the objects to score on, exactly."""

    def phase(name, folder, command, options):
        folder.mkdir(parents=True, exist_ok=True)
        calls.append((name, folder.name))
        if name == "train":
            told = {"minutes": 5.0, "memory_gb": 1.5, "steps": 100, "batch": 4, "versions": {}}
        else:
            told = {"seconds_an_image": 0.25, "file_mb": 30.0, "working_score": 0.5}
            task = next(argument.partition("=")[2] for argument in command if argument.startswith("--task="))
            tree = side.read(data.Path(task), "eval")
            results = []
            for annotation in tree["annotations"][: round(share * len(tree["annotations"]))]:
                rle = mask_utils.merge(mask_utils.frPyObjects(annotation["segmentation"], 40, 48))
                rle = {"size": rle["size"], "counts": rle["counts"].decode()}
                keys = ("image_id", "category_id", "bbox")
                results.append({key: annotation[key] for key in keys} | {"score": 0.9, "segmentation": rle})
            (folder / "results.json").write_text(json.dumps(results))
        (folder / f"{name}.json").write_text(json.dumps(told))

    calls = []
    phase.calls = calls
    return phase


@pytest.fixture
def arguments(tmp_path):
    write_set(tmp_path / "set")
    return [f"--fruits={tmp_path / 'set'}", f"--runs={tmp_path}", f"--results={tmp_path / 'r.json'}", "--sides=ours"]


def test_results_add_up(arguments, tmp_path, monkeypatch, capsys):
    phase = found_by(1.0)
    monkeypatch.setattr(run, "phase", phase)
    run.main([*arguments, "--seeds=0"])
    run.main([*arguments, "--seeds=0,1"])
    assert phase.calls == [(name, f"ours-{seed}") for seed in "01" for name in ("train", "predict")]
    task = json.loads((tmp_path / "r.json").read_text())["tasks"]["fruits"]
    assert task["images"] == [8, 4] and set(task["runs"]["ours"]) == {"0", "1"}
    assert task["runs"]["ours"]["0"]["mask_AP"] == 1.0 and task["runs"]["ours"]["0"]["overlap"] == [1.0] * 5
    assert "| kmaskrcnn, automatic recipe | 2 | 100 x 4 | 5.0 | 1.000 (1.000 to 1.000) |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"its fruits has minutes 5.0, not 3.0; name another file"):
        run.main([*arguments, "--minutes=fruits=3"])


def test_two_of_five_objects(arguments, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "phase", found_by(0.4))
    run.main([*arguments, "--seeds=0", f"--table={tmp_path / 'table.md'}"])
    result = json.loads((tmp_path / "r.json").read_text())["tasks"]["fruits"]["runs"]["ours"]["0"]
    assert result["overlap"] == [0.4] * 5 and 0 < result["mask_AP"] < 0.8
    assert "0.400 0.400 0.400 0.400 0.400 (above 0.5)" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("more", "line"),
    [(["--sides=ours,mine"], "mine: choose of ours"), (["--minutes=cars=3"], "cars: choose of nuclei, fruits, people")],
)
def test_a_wrong_name_is_one_line(arguments, more, line, capsys):
    with pytest.raises(SystemExit):
        run.main([*arguments, *more])
    assert line in capsys.readouterr().err


def test_no_folder_and_no_environment(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments[1:])
    assert "give at least one of --nuclei=FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="nowhere is missing: make leaderboard makes it"):
        run.main([*arguments[:-1], "--sides=yolo", "--python=ultralytics=nowhere"])


def test_the_table_has_the_sides_in_order():
    one = {"steps": 10, "batch": 2, "minutes": 5.0, "working_score": 0.5, "seconds_an_image": 1.0, "memory_gb": 2.0}
    one |= {"file_mb": 7.0, "overlap": [0.5, 0.4, 0.3, 0.2, 0.1]}
    one |= dict.fromkeys(("box_AP", "mask_AP", "mask_AP50", "mask_AP75"), 0.25)
    runs = {name: {"0": one, "1": one | {"mask_AP": 0.35}} for name in reversed(SIDES)}
    nuclei = {"minutes": 5.0, "images": [8, 4], "runs": runs}
    lines = table({"tasks": {"nuclei": nuclei, "fruits": nuclei | {"runs": {}}}}).splitlines()
    assert lines[0] == "nuclei: 8 images to train on, 4 to score on, 5 minutes of one core"
    assert [line.split(" | ")[0][2:] for line in lines[4:]] == [own.label for own in SIDES.values()]
    assert "0.300 (0.250 to 0.350)" in lines[4] and "0.500 0.400 0.300 0.200 0.100 (above 0.5)" in lines[4]
