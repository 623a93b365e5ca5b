"""export.py as a user starts it."""

import json

import pytest
import tensorflow as tf

from kmaskrcnn.data import load_dataset
from kmaskrcnn.data.readers.write_tfrecord import write_shards
from kmaskrcnn.export.saved_model import SavedModelClient
from kmaskrcnn.model_folder import BEST, prepare_directory, save_weights
from tests.export.conftest import LABELS
from tests.export.images import encode, picture
from tests.processes import run_program, run_python


def run(*arguments):
    return run_program("export.py", *arguments)


@pytest.fixture(scope="module")
def model_dir(exported, tmp_path_factory):
    folder = prepare_directory(tmp_path_factory.mktemp("runs") / "fruits", exported.config, LABELS)
    save_weights(exported.model, folder / BEST)
    return folder


def test_saved_model_is_written_and_verified(model_dir, exported, tmp_path):
    for number, size in enumerate(((70, 200), (90, 60), (64, 64))):
        (tmp_path / f"{number}.png").write_bytes(encode(picture(*size, number)))
    (tmp_path / "a.tif").write_bytes(encode(picture(), "TIFF"))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    # The model would look at an image in tiles and several times; what is exported looks once.
    views = ("--tile_size=64", "--tile_overlap=16", "--tta_flip")
    arguments = [f"--model_dir={model_dir}", f"--output={tmp_path / 'out'}", f"--verify_images={tmp_path}", *views]
    result = run_python("export.py", *arguments)
    assert "tiles and test-time augmentation are not exported" in result.stdout
    assert result.returncode == 0, result.stdout + result.stderr
    version = tmp_path / "out" / "1"
    assert f"{version}: " in result.stdout
    assert "images compared            3" in result.stdout
    assert "a.tif: not a JPEG" in result.stdout
    lines = result.stdout.splitlines()
    skipped = f"skipped: {tmp_path / 'broken.jpg'}: not an image in a format that can be read"
    assert lines.index(skipped) < lines.index("exporting to saved_model: this takes about a minute ...")
    data = (tmp_path / "1.png").read_bytes()
    expected = exported.predictor.predict(picture(90, 60, 1))
    assert len(SavedModelClient(version).predict(data)) == len(expected)
    warmup = tf.data.TFRecordDataset(str(version / "assets.extra" / "tf_serving_warmup_requests"))
    assert len(list(warmup)) == 2
    assert json.loads((version / "assets.extra" / "labels.json").read_text())["class_names"] == list(LABELS.class_names)


@pytest.mark.slow
def test_an_evaluation_set_in_tfrecord_is_verified_with_ap(model_dir, tmp_path):
    images, annotations = [], []
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode(picture(64, 96, number)))
        images.append({"id": number + 1, "file_name": f"{number}.png", "height": 64, "width": 96})
        box = {"bbox": [8, 8, 40, 30], "area": 1200, "segmentation": [[8, 8, 48, 8, 48, 38, 8, 38]]}
        annotations.append({"id": number + 1, "image_id": number + 1, "category_id": 10, "iscrowd": 0, **box})
    categories = [{"id": i, "name": n} for i, n in zip(LABELS.category_ids, LABELS.class_names, strict=True)]
    (tmp_path / "set.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    shards = tmp_path / "shards"
    write_shards(load_dataset(tmp_path / "set.json", tmp_path), str(shards))
    result = run(f"--model_dir={model_dir}", f"--output={tmp_path / 'out'}", f"--val_annotations={shards}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "images compared            3" in result.stdout
    assert "mask AP on 3 images" in result.stdout


@pytest.mark.slow
def test_without_images_it_is_compared_on_drawn_ones(model_dir, tmp_path):
    result = run(f"--model_dir={model_dir}", f"--output={tmp_path / 'out'}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "comparing it with the model on drawn images" in result.stdout
    assert "images compared            4" in result.stdout and " AP on " not in result.stdout
    assert "in drawn images" in result.stdout.splitlines()[-1]


@pytest.mark.slow
def test_nothing_to_compare_is_a_failure(model_dir, tmp_path):
    """What the artifact refuses, here TIFF, proves nothing about it."""
    (tmp_path / "a.tif").write_bytes(encode(picture(), "TIFF"))
    result = run(f"--model_dir={model_dir}", f"--output={tmp_path / 'out'}", f"--verify_images={tmp_path / 'a.tif'}")
    assert result.returncode == 1, result.stderr
    assert "OUT OF BOUNDS: no image could be compared" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output={tmp}"], "--model_dir is missing"),
        (["--model_dir={tmp}"], "--output is missing"),
        (["--model_dir={tmp}", "--preset=nuclei_mobilenet_v2"], "give one of them"),
        (["--preset=nuclei", "--output={tmp}/o"], "nuclei: no such preset; presets are torchvision_r50_fpn, "),
        (["--model_dir={tmp}", "--output={tmp}/o"], "is not a model folder"),
        (["--model_dir={tmp}", "--output={tmp}/o", "--quantize=int8"], "--quantize is for --format=tflite"),
        (
            ["--model_dir={tmp}", "--output={tmp}/o", "--format=tflite", "--optimize=latency"],
            "--optimize is for --format=saved_model",
        ),
        (["--model_dir={tmp}", "--output={tmp}/o", "--input_sizes=64x64"], "--input_sizes is for --format=tflite"),
        (
            ["--model_dir={tmp}", "--output={tmp}/o", "--format=tflite_gpu", "--max_request_bytes=1000"],
            "--max_request_bytes is for --format=saved_model",
        ),
        (
            ["--model_dir={tmp}", "--output={tmp}/o", "--format=tflite", "--calibration_images={tmp}/a.png"],
            "--calibration_images is for --quantize=int8",
        ),
        (["--model_dir={tmp}", "--output={tmp}/o", "--verify_count=-1"], "verify_count"),
        (
            ["--model_dir={tmp}", "--output={tmp}/o", "--format=tflite", "--input_sizes=320x320,320"],
            "--input_sizes=320: expected HEIGHTxWIDTH",
        ),
        (
            ["--model_dir={tmp}", "--output={tmp}/o", "--format=tflite_gpu", "--input_sizes=64x96,96x64"],
            "--input_sizes=64x96,96x64: --format=tflite_gpu takes one",
        ),
        (["--model_dir={tmp}", "--output={tmp}/o", "--max_pixels=0"], "--max_pixels=0: must be above 0"),
        (["--model_dir={tmp}", "--output={tmp}/o", "--max_images=-1"], "--max_images=-1: must be above 0"),
        (
            ["--model_dir={model}", "--output={tmp}/o", "--verify_images={tmp}/no*.jpg"],
            "no*.jpg: no file matches",
        ),
        (["--model_dir={model}", "--output={tmp}/o", "--verify_images={broken}"], "none of the images can be read"),
        (["--model_dir={model}", "--output={tmp}/o", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_wrong_settings_are_one_line(arguments, words, model_dir, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    result = run(*(a.format(tmp=tmp_path, model=model_dir, broken=tmp_path / "broken.jpg") for a in arguments))
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1 and words in errors[0]
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "o" / "1").exists()


@pytest.mark.parametrize("flag", ["--format=onnx", "--max_pixels=many", "--quantise=none"])
def test_unknown_flags_and_values_are_named(flag):
    result = run(flag)
    assert result.returncode != 0
    assert flag.lstrip("-").partition("=")[0] in result.stderr + result.stdout
