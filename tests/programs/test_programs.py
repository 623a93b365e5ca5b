"""train.py, evaluate.py and predict.py as a user starts them."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kmaskrcnn.inference.video import VideoReader, VideoWriter
from kmaskrcnn.programs import cli
from tests.processes import ROOT, run_program, run_python

SMALL = """
--backbone=resnet18
--backbone_norm=gn
--frozen_stages=0
--fpn_channels=32
--anchor_sizes=8,16,32,64,128
--rpn_pre_nms_top_k_train=100
--rpn_post_nms_top_k_train=60
--rpn_pre_nms_top_k=60
--rpn_post_nms_top_k=40
--roi_batch_size=32
--box_fc_channels=64
--mask_conv_channels=32
--max_detections=10
--val_annotations=shapes
--shapes_images=4
--shapes_val_images=2
--eval_max_images=1
--shapes_size=64
--resize_mode=native
--crop_size=64
--mask_resolution=28
--max_instances=8
--batch_size=2
--learning_rate=0.01
--warmup_steps=1
--score_threshold=0
--log_every=1
--steps=2
"""


@pytest.fixture(scope="module")
def flagfile(tmp_path_factory):
    path = tmp_path_factory.mktemp("flags") / "small.flags"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, flagfile):
    """A model folder after an interrupted and a resumed run."""
    folder = tmp_path_factory.mktemp("runs") / "model"
    command = [sys.executable, str(ROOT / "train.py"), f"--flagfile={flagfile}", f"--model_dir={folder}"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--steps=100000"], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        for line in process.stdout:
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 75, rest
    assert "SIGINT: saved step" in rest
    done = int(rest.split("saved step ")[1].split()[0])
    again = run_python("train.py", f"--flagfile={flagfile}", f"--model_dir={folder}", f"--steps={done + 2}")
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stdout
    assert f"step {done + 1}/{done + 2}" in again.stdout
    assert f"step {done}/" not in again.stdout
    assert f"evaluation after step {done + 2}" in again.stdout
    assert "scored on the first 1 of 2 images" in again.stdout
    return folder


def test_evaluate_opens_the_folder_alone(trained, tmp_path):
    result = run_python(
        "evaluate.py", f"--model_dir={trained}", f"--output={tmp_path / 'scores'}", "--max_detections=5"
    )
    assert result.returncode == 0, result.stderr
    assert "mask" in result.stdout
    # All images, though training was told to look at one.
    assert "2 images in" in result.stdout and "scored on the first" not in result.stdout
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert 0 <= scores["mask_AP"] <= 1
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert 0 < len(results) <= 10
    assert len(list((tmp_path / "scores").glob("*.png"))) == 2
    assert "boundary" in result.stdout
    assert 0 <= scores["mask_dAP/Miss"] <= 1
    suggested = json.loads((tmp_path / "scores" / "score_thresholds.json").read_text())
    assert set(suggested) <= {"circle", "square", "triangle", "star"}


def test_a_prediction_that_is_stopped_keeps_what_it_has(trained, tmp_path):
    for number in range(200):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(tmp_path / f"{number:03d}.png")
    command = [sys.executable, "predict.py", f"--model_dir={trained}", f"--output={tmp_path / 'out'}", str(tmp_path)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--outputs=coco,csv", "--min_score=0"], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as process:
        told = []
        for line in process.stdout:
            told += [line] if line.startswith(str(tmp_path)) else []
            if len(told) == 2:
                process.send_signal(signal.SIGINT)
                break
        told += [line for line in process.stdout.read().splitlines() if line.startswith(str(tmp_path))]
    assert process.returncode == 130
    tree = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 2 <= len(told) <= len(tree["images"]) < 200
    with open(tmp_path / "out" / "objects.csv", newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} <= {image["file_name"] for image in tree["images"]}


def test_another_validation_set_comes_with_its_own_images(tmp_path):
    """Names repeat: 0001.png of the set that training kept for itself would be scored in its place."""
    from kmaskrcnn.config import Config
    from kmaskrcnn.data import make_shapes, open_dataset
    from kmaskrcnn.programs.trained import with_own_set

    kept, other = (Path(make_shapes(tmp_path / name, 2, 64, seed=i)) for i, name in enumerate("ab"))
    config = Config().replace(val_annotations=str(kept), val_images=str(kept.parent), data_format="coco")
    (tmp_path / "config.json").write_text(config.to_json())
    dataset = open_dataset(config.replace(**with_own_set({"val_annotations": str(other)}, str(tmp_path))), "val")
    assert {Path(path).parent for path in dataset.paths} == {other.parent}
    assert with_own_set({"val_annotations": "x", "val_images": "y"}, str(tmp_path))["val_images"] == "y"
    for own in ({"max_detections": 5}, {"val_annotations": str(kept)}):
        assert with_own_set(own, str(tmp_path)) == own


def test_predict_takes_a_threshold_for_each_class(trained, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    arguments = ["predict.py", f"--model_dir={trained}", f"--input={tmp_path / 'a.png'}", "--outputs=coco"]
    found = {}
    for name, thresholds in (("all", {}), ("some", {"circle": 1.0, "star": 0.0})):
        (tmp_path / f"{name}.json").write_text(json.dumps(thresholds))
        given = f"--score_thresholds={tmp_path / name}.json"
        result = run_program(*arguments, f"--output={tmp_path / name}", "--min_score=0", given)
        assert result.returncode == 0, result.stderr
        tree = json.loads((tmp_path / name / "results.json").read_text())
        names = {c["id"]: c["name"] for c in tree["categories"]}
        found[name] = [(names[a["category_id"]], a["score"]) for a in tree["annotations"]]
    assert {name for name, _ in found["all"]} > {"circle"}
    assert found["some"] == [row for row in found["all"] if row[0] != "circle"]
    (tmp_path / "bad.json").write_text('{"circle": "high"}')
    result = run_program(*arguments, f"--output={tmp_path / 'x'}", f"--score_thresholds={tmp_path / 'bad.json'}")
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {tmp_path / 'bad.json'}: 'circle' has the threshold \"high\": expected a number from 0 to 1"
    ]
    assert not (tmp_path / "x").exists()
    result = run_program(*arguments, f"--output={tmp_path / 'none'}", "--min_score=1")
    highest = max(score for _, score in found["all"])
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == (
        f"no object is shown: the highest score is {highest:.2f}, and --min_score is 1; --min_score=0.05 shows what is "
        "less certain"
    )


def test_predict_on_files_folders_and_globs(trained, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (50, 70, 3)), ("b.jpg", (64, 64, 3)), ("deep/a.png", (30, 200, 3))):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(pictures / name)
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    output = tmp_path / "out"
    single = pictures / "b.jpg"
    result = run_python(
        "predict.py",
        f"--model_dir={trained}",
        f"--input={pictures},{pictures / '*.png'},{single}",
        f"--output={output}",
        "--outputs=overlay,masks,coco,labelme,csv",
        "--min_score=0",
        "--top_k=4",
        "--classes=circle,square,triangle,star",
    )
    assert result.returncode == 1, result.stderr
    assert "error: " in result.stdout
    assert "broken.png" in result.stdout
    tree = json.loads((output / "results.json").read_text())
    assert [Path(i["file_name"]).name for i in tree["images"]] == ["a.png", "b.jpg", "a.png"]
    assert tree["annotations"]
    assert {c["name"] for c in tree["categories"]} == {"circle", "square", "triangle", "star"}
    for name in ("a.png", "b.png", "deep/a.png"):
        assert max(Image.open(output / name).size) >= 640
        assert Image.open(output / name.replace(".png", "_masks.png")).size != Image.open(output / name).size
        tree_of_one = json.loads((output / "labelme" / name.replace("/", "__")).with_suffix(".json").read_text())
        assert Path(tree_of_one["imagePath"]).name == ("b.jpg" if name == "b.png" else "a.png")
    counts = np.bincount([a["image_id"] for a in tree["annotations"]])
    assert counts.max() == 4
    assert len((output / "objects.csv").read_text().splitlines()) == 1 + counts.sum()


def test_predict_leaves_its_inputs_and_its_own_overlays_alone(trained, tmp_path):
    images = tmp_path / "images [1]"
    rng = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "cam1/1.png", "cam2/1.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (50, 70, 3), np.uint8)).save(images / name)
    before = {p: p.read_bytes() for p in images.rglob("*.*")}
    result = run_program("predict.py", f"--model_dir={trained}", f"--input={images}", f"--output={images}")
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if line] == [
        f"error: {images / 'cam1/1.png'}: is an input, which an output never replaces; choose another output"
    ]
    for _ in range(2):
        result = run_program("predict.py", f"--model_dir={trained}", f"--input={images}", f"--output={images / 'out'}")
        assert result.returncode == 0, result.stderr
        assert "4 inputs" in result.stdout
        overlays = {str(p.relative_to(images / "out")) for p in (images / "out").rglob("*.png")}
        assert overlays == {"a_png.png", "a_jpg.png", "cam1/1.png", "cam2/1.png"}
    assert "skipped: 4 files" in result.stdout
    assert {p: p.read_bytes() for p in before} == before
    (images / "out" / "results.json").write_text("corrected by hand")
    result = run_program("predict.py", f"--model_dir={trained}", f"--input={images}", f"--output={images / 'out'}")
    assert result.returncode == 2
    assert "results.json: already exists" in result.stderr
    assert (images / "out" / "results.json").read_text() == "corrected by hand"


def test_predict_on_a_video(trained, tmp_path):
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "in.mp4", 8.0) as video:
        for _ in range(4):
            video.add(rng.integers(0, 255, (64, 80, 3), np.uint8))
    arguments = [f"--model_dir={trained}", f"--input={tmp_path / 'in.mp4'}", f"--output={tmp_path}/out"]
    result = run_program("predict.py", *arguments, "--outputs=overlay,csv", "--frame_step=2", "--min_score=0")
    assert result.returncode == 0, result.stderr
    assert "2 frames" in result.stdout
    frames = list(VideoReader(tmp_path / "out" / "in.mp4"))
    assert len(frames) == 2
    assert frames[0].shape == (512, 640, 3)
    pictures = {row.split(",")[0] for row in (tmp_path / "out/objects.csv").read_text().splitlines()[1:]}
    assert pictures == {f"{tmp_path / 'in.mp4'}#{number}" for number in (0, 2)}
    result = run_program("predict.py", *arguments, "--outputs=csv,coco", "--min_score=0", "--track")  # csv: its own
    assert result.returncode == 0, result.stderr
    with open(tmp_path / "out/objects.csv", newline="") as file:
        tracks = [row["track"] for row in csv.DictReader(file)]
    assert len(tracks) >= 4
    assert set(map(int, tracks)) <= set(range(-1, 100))
    result = run_program("predict.py", *arguments, "--outputs=labelme")
    assert result.returncode == 2
    assert "is a video" in result.stderr


@pytest.mark.parametrize(
    ("program", "arguments", "words"),
    [
        ("train.py", ["--steps=5"], "--model_dir is missing"),
        ("train.py", ["--model_dir={tmp}", "--num_classes=0"], "num_classes=0: must be above 0"),
        (
            "train.py",
            ["--model_dir={tmp}", "--anchor_sizes=a,b"],
            "--anchor_sizes=a,b: expected comma-separated floats",
        ),
        ("train.py", ["--model_dir={tmp}"], "--train_annotations is missing"),
        ("train.py", ["--model_dir={tmp}", "--backbone=resnet18"], "--train_annotations is missing"),
        ("train.py", ["--model_dir=gs://bucket/run", "--train_annotations=shapes"], "gs://bucket/run is an address"),
        (
            "train.py",
            ["--model_dir={tmp}", "--train_annotations=shapes", "--patience=2"],
            "patience=2: needs eval_every",
        ),
        ("train.py", ["--model_dir={tmp}", "stray"], "unexpected argument 'stray'"),
        ("train.py", ["--model_dir={tmp}", "--train_annotations=/no/such.json"], "/no/such.json"),
        ("train.py", ["--flagfile={flags}", "--model_dir={tmp}/m", "--num_classes=7"], "the training set has 4"),
        ("train.py", ["--flagfile={flags}", "--model_dir={tmp}/m", "--init_weights=no.pth"], "no.pth"),
        ("evaluate.py", ["--model_dir={tmp}"], "is not a model folder"),
        (
            "predict.py",
            ["--output={tmp}/o", "--input=docs", "--offline"],
            "coco-73cbd019.pth is not in the cache",
        ),
        (
            "predict.py",
            ["--preset=no", "--output={tmp}/o", "--input=docs"],
            "no: no such preset; presets are tor",
        ),
        ("predict.py", ["--preset=a", "--model_dir=b", "--output={tmp}/o", "--input=docs"], "give one of them"),
        ("predict.py", ["--model_dir={tmp}", "--input=docs", "--min_score=1.5"], "--min_score=1.5"),
        (
            "predict.py",
            ["--preset=nuclei_mobilenet_v2", "--output={tmp}/o", "--input={tmp}/none"],
            "{tmp}/none: no such file or folder",
        ),
    ],
)
def test_wrong_settings_are_one_line(program, arguments, words, flagfile, tmp_path):
    fill = {"tmp": tmp_path, "flags": flagfile}
    result = run_program(program, *(a.format(**fill) for a in arguments))
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1
    assert words.format(**fill) in errors[0]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("command", "arguments"), [("predict", ["a.png"]), ("evaluate", []), ("export", ["--output=o"])]
)
def test_a_wrong_model_folder_is_told_before_tensorflow_starts(command, arguments, tmp_path):
    code = """
import sys
from kmaskrcnn.programs import cli
try:
    cli.run_command(sys.argv[1], sys.argv[2:])
except SystemExit as end:
    print(end.code, "tensorflow" in sys.modules)
"""
    result = run_python("-c", code, command, f"--model_dir={tmp_path}", *arguments)
    assert result.stdout == "2 False\n" and "is not a model folder" in result.stderr


@pytest.mark.parametrize("flag", ["--help", "--helpfull"])
@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_every_command_does_not_wait_for_tensorflow(command, flag):
    code = (
        "import sys; from kmaskrcnn.programs import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    result = run_python("-c", code, command, flag)
    assert result.returncode == 0, result.stderr
    assert "--" in result.stdout and f"usage: kmaskrcnn {command}" in result.stdout


def test_unknown_flag_is_named():
    result = run_program("train.py", "--num_clases=3")
    assert result.returncode != 0
    assert "num_clases" in result.stderr + result.stdout


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "configs").glob("*.flags")))
def test_flagfiles_parse(name, tmp_path):
    # An annotation file that is not there ends the run after the settings were accepted.
    result = run_program(
        "train.py", f"--flagfile=configs/{name}", f"--model_dir={tmp_path}", "--train_annotations=/no.json"
    )
    assert "/no.json: no such annotation file" in result.stderr


@pytest.mark.parametrize(("minutes", "told"), [("1.5", True), ("0", False)])
def test_a_number_of_steps_beside_a_number_of_minutes_is_not_left_out_in_silence(minutes, told, tmp_path):
    arguments = [f"--model_dir={tmp_path}/m", "--train_annotations=no.json", f"--max_minutes={minutes}", "--steps=5"]
    result = run_program("train.py", *arguments)
    assert ("--max_minutes=1.5 sets the length of training, so --steps=5 is not used" in result.stdout) is told
    assert result.returncode == 2 and "no.json" in result.stderr


def test_a_limit_that_may_have_cost_objects_is_said():
    from kmaskrcnn.programs.predict import count_line
    from kmaskrcnn.results.labels import Labels
    from kmaskrcnn.results.prediction import Prediction

    scores = np.linspace(0.9, 0.6, 5, dtype=np.float32)
    boxes, masks = np.tile(np.float32([0, 0, 4, 4]), (5, 1)), np.ones((5, 2, 2), np.float32)
    found = Prediction(9, 9, boxes, scores, np.ones(5, np.int32), masks, Labels(("thing",), (1,)))
    assert "5 objects; --max_detections=5 is reached" in count_line(found, found, 5, 0.5)
    assert count_line(found, found, 6, 0.5) == "5 objects"
    assert count_line(found, found.select(0.7), 5, 0.7) == "3 objects"  # what was left out scores lower still
    tiled = dataclasses.replace(found, pasted=[], full_tiles=(0.6, 0.9, 0.8))
    assert "--max_detections=3 is reached in 2 tiles" in count_line(tiled, tiled, 3, 0.7)
    assert count_line(dataclasses.replace(tiled, full_tiles=(0.6,)), tiled, 3, 0.7) == "5 objects"
