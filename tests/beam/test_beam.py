"""The pipeline on the DirectRunner: several workers, real files, against the predictor of this process."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: make test-beam")

import keras
import tensorflow as tf
from pycocotools import mask as mask_utils

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config
from kmaskrcnn.export import tflite
from kmaskrcnn.export.client import LiteRTClient
from kmaskrcnn.export.saved_model import export_saved_model
from kmaskrcnn.inference.predictor import Predictor
from tests.conftest import TINY
from tests.export.conftest import LABELS
from tests.export.images import encode, picture
from tests.processes import ROOT, run_python

DATA = ROOT.parent / "shared" / "data"
MIN_SCORE = 0.2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small SavedModel and the predictor that it must equal."""
    keras.utils.set_random_seed(3)
    settings = TINY | {"score_threshold": 0.0}
    config = Config().replace(**settings, min_size=64, max_size=128)
    network = MaskRCNN(**settings)
    path = export_saved_model(network, config, LABELS, tmp_path_factory.mktemp("model"))
    return path, Predictor(network, config, LABELS)


def run(*arguments):
    """The program on its own, with two worker processes."""
    workers = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")
    return run_python("-m", "kmaskrcnn", "batch", *workers, *arguments, timeout=900)


def lines(folder, name):
    """Every line of the shards of a kind."""
    return [json.loads(line) for path in sorted(folder.glob(f"{name}-*.jsonl")) for line in path.open()]


def assert_equal_to_model(records, predictor, pixels_of):
    """Each image once, with the detections and masks that the model gives."""
    total = 0
    for record in records:
        expected = predictor.predict(pixels_of(record["file_name"])).above(MIN_SCORE)
        assert (record["height"], record["width"]) == (expected.height, expected.width)
        assert len(record["annotations"]) == len(expected)
        total += len(expected)
        for ours, theirs in zip(record["annotations"], expected.to_coco(0), strict=True):
            assert ours["category_id"] == theirs["category_id"] and ours["iscrowd"] == 0
            np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-4)
            np.testing.assert_allclose(ours["bbox"], theirs["bbox"], atol=1e-2)
            a, b = (mask_utils.decode(x["segmentation"]) for x in (ours, theirs))
            assert np.mean(a != b) < 1e-3  # ties at one half
            assert ours["area"] == a.sum()
    assert total > 0


def test_globs_and_csv_are_read_once_and_failures_set_aside(model, tmp_path):
    saved_model, predictor = model
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(encode(picture(60 + 5 * number, 90, number)))
    (tmp_path / "broken.png").write_bytes(encode(picture())[:100])
    (tmp_path / "notes.png").write_text("not an image")
    with open(tmp_path / "list.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "uri"], [1, tmp_path / "3.png"], [2, tmp_path / "gone.png"], [3, "nowhere://a.png"]])
    output = tmp_path / "out"
    result = run(
        f"--model={saved_model}",
        f"--input={tmp_path}/*.png",
        f"--input={tmp_path}/1*.png",
        f"--input={tmp_path}/5.png",
        f"--input_csv={tmp_path / 'list.csv'}",
        f"--output={output}",
        f"--min_score={MIN_SCORE}",
        "--shards=3",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    records = lines(output, "detections")
    assert sorted(Path(r["file_name"]).name for r in records) == sorted(f"{n}.png" for n in range(12))
    assert len(list(output.glob("detections-*-of-00003.jsonl"))) == 3
    assert_equal_to_model(records, predictor, lambda name: name)
    failures = {Path(f["file_name"]).name: f["reason"] for f in lines(output, "failures")}
    assert len(lines(output, "failures")) == len(failures) == 4
    assert "damaged image" in failures["broken.png"]
    assert "not a JPEG" in failures["notes.png"]
    assert "cannot be read" in failures["gone.png"]
    assert "cannot be read" in failures["a.png"]
    count = sum(len(r["annotations"]) for r in records)
    assert f"12 images, {count} detections, 4 unreadable" in result.stdout
    assert "milliseconds per image: mean" in result.stdout
    again = run(f"--model={saved_model}", f"--input={tmp_path}/*.png", f"--output={output}")
    assert again.returncode == 2
    assert "holds the results of another run" in again.stderr


@pytest.fixture
def job_server():
    """Beam's job server in Python: the interface through which pipelines reach Flink and Spark."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", f"--port={port}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if "Listening for beam jobs" in line:
                break
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield f"localhost:{port}"
        process.terminate()


def test_a_job_server_gives_each_image_once(model, job_server, tmp_path):
    saved_model, predictor = model
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(encode(picture(60 + 5 * number, 90, number)))
    (tmp_path / "broken.png").write_bytes(encode(picture())[:100])
    output = tmp_path / "out"
    result = run_python(
        *("-m", "kmaskrcnn", "batch", f"--model={saved_model}", f"--input={tmp_path}/*.png", f"--output={output}"),
        *(f"--min_score={MIN_SCORE}", "--runner=PortableRunner", f"--job_endpoint={job_server}"),
        "--environment_type=LOOPBACK",
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    records = lines(output, "detections")
    assert sorted(Path(r["file_name"]).name for r in records) == sorted(f"{n}.png" for n in range(12))
    assert_equal_to_model(records, predictor, lambda name: name)
    assert [Path(f["file_name"]).name for f in lines(output, "failures")] == ["broken.png"]


def test_a_killed_worker_leaves_no_results_and_the_same_command_gives_each_image_once(model, tmp_path):
    saved_model, _ = model
    # The worker that reads the pipe waits for what is never written, so that it is there to be killed.
    os.mkfifo(tmp_path / "0.png")
    for number in range(1, 8):
        (tmp_path / f"{number}.png").write_bytes(encode(picture(60 + 5 * number, 90, number)))
    output = tmp_path / "out"
    command = [sys.executable, "-m", "kmaskrcnn", "batch", "--direct_num_workers=2"]
    command += ["--direct_running_mode=multi_processing", f"--model={saved_model}", f"--output={output}"]
    command += [f"--input={tmp_path}/*.png"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        stderr = []
        reader = threading.Thread(target=lambda: stderr.extend(process.stderr))
        reader.start()
        with open(tmp_path / "0.png", "wb"):  # opens once a worker reads it
            os.kill(readers_of(tmp_path / "0.png").pop(), signal.SIGKILL)
        assert process.wait(300) == 1
        reader.join()
    assert stderr[-1].startswith("error: the run failed (") and "start it again" in stderr[-1]
    assert not lines(output, "detections") and not lines(output, "failures")
    (tmp_path / "0.png").unlink()
    (tmp_path / "0.png").write_bytes(encode(picture(50, 70, 9)))
    again = run(*command[4:])
    assert again.returncode == 0, again.stdout + again.stderr
    assert sorted(Path(r["file_name"]).name for r in lines(output, "detections")) == [f"{n}.png" for n in range(8)]


def readers_of(path):
    """The processes other than this one that have a file open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(path) and int(link.parts[2]) != os.getpid():
                found.add(int(link.parts[2]))
        except OSError:
            continue
    return found


def test_a_runner_that_does_not_exist_is_one_line(model, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture()))
    arguments = (f"--model={model[0]}", f"--input={tmp_path}/a.png", f"--output={tmp_path / 'out'}")
    for name in ("NoRunner", "no_module.NoRunner", "apache_beam.runners.NoRunner"):
        result = run(*arguments, f"--runner={name}")
        assert result.returncode == 2
        assert "error: " in result.stderr.splitlines()[-1] and "NoRunner" in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr


def test_a_tflite_file_gives_what_its_own_client_gives(tmp_path):
    keras.utils.set_random_seed(3)
    settings = TINY | {"score_threshold": 0.0}
    network = MaskRCNN(**(settings | tflite.MOBILE_SETTINGS))
    path = tmp_path / "model.tflite"
    tflite.write(tflite.convert(network, [(64, 96)]), path, Config().replace(**settings), LABELS, [(64, 96)], "none")
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(encode(picture(60 + 5 * number, 90, number)))
    (tmp_path / "broken.png").write_bytes(encode(picture())[:100])
    output = tmp_path / "out"
    arguments = (f"--model={path}", f"--input={tmp_path}/*.png", f"--output={output}", f"--min_score={MIN_SCORE}")
    result = run(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    records = lines(output, "detections")
    assert sorted(Path(r["file_name"]).name for r in records) == [f"{n}.png" for n in range(5)]
    assert_equal_to_model(records, LiteRTClient(path), lambda name: name)
    assert [Path(f["file_name"]).name for f in lines(output, "failures")] == ["broken.png"]
    refused = run(*arguments[:-1], "--batch_size=4", f"--output={tmp_path / 'other'}")
    assert refused.returncode == 2
    assert "a .tflite file takes one image at once" in refused.stderr


def test_tfrecords(model, tmp_path):
    saved_model, predictor = model
    pictures = {f"{n}.jpg": encode(picture(60, 80 + n, n), "JPEG") for n in range(4)}

    def feature(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        for name, data in pictures.items():
            features = {"image/encoded": feature(data), "image/filename": feature(name.encode())}
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
        writer.write(b"\xff\xff no example")
        features = {"image/source_id": feature(b"17")}
        writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    output = tmp_path / "out"
    result = run(
        f"--model={saved_model}",
        f"--input_tfrecord={tmp_path}/*.tfrecord",
        f"--output={output}",
        f"--min_score={MIN_SCORE}",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    records = lines(output, "detections")
    assert sorted(r["file_name"] for r in records) == sorted(pictures)

    def decoded(name):
        return tf.io.decode_jpeg(pictures[name], dct_method="INTEGER_ACCURATE").numpy()

    assert_equal_to_model(records, predictor, decoded)
    failures = sorted((f["file_name"], f["reason"]) for f in lines(output, "failures"))
    assert failures[0] == ("17", "the record has no image/encoded")
    assert failures[1][0].startswith("record ") and failures[1][1] == "no tf.train.Example"


@pytest.mark.parametrize("folder", ["nuclei/images", "coco_open/train2017"])
def test_real_images(folder, model, tmp_path):
    paths = sorted((DATA / folder).glob("*"))[:40]
    if not paths:
        pytest.skip(f"{DATA / folder} is not there")
    saved_model, predictor = model
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([["uri"], *([path] for path in paths)])
    result = run(
        f"--model={saved_model}",
        f"--input_csv={tmp_path / 'list.csv'}",
        f"--output={tmp_path / 'out'}",
        f"--min_score={MIN_SCORE}",
        "--threads=1",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    records = lines(tmp_path / "out", "detections")
    assert sorted(r["file_name"] for r in records) == [str(path) for path in paths]
    assert_equal_to_model(records, predictor, lambda name: name)


def test_an_image_that_stops_the_model_stops_no_other(model):
    from kmaskrcnn.beam.model_handler import DetectorHandler
    from kmaskrcnn.export.client import ImageError

    handler = DetectorHandler(str(model[0]), batch_size=3)
    client = handler.load_model()
    good = encode(picture())
    # Not bytes, so that the request cannot even be made.
    first, second, third = handler.run_inference([good, None, b"junk"], client)
    assert len(first) > 0
    assert isinstance(second, ImageError) and "the model failed: TypeError" in str(second)
    assert isinstance(third, ImageError) and "not a JPEG" in str(third)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model is missing"),
        (["--model=x"], "--output is missing"),
        (["--model=x", "--output=y"], "--input, --input_csv or --input_tfrecord is missing"),
        (["--model=x", "--output=y", "--input=a.jpg"], "--model=x: neither a SavedModel nor a .tflite file"),
        (["--model={model}", "--output=y", "--input={tmp}"], "is a folder: give a glob"),
        (["--model={model}", "--output=y", "--input={tmp}/*.jpg"], "*.jpg: no such files"),
        (["--model={model}", "--output=y", "--input_csv={tmp}/a.csv"], "no column 'uri', only path"),
        (["--model={model}", "--output=y", "--input=a", "--min_score=1.5"], "--min_score=1.5: must be from 0 to 1"),
        (["--model={model}", "--output=y", "--input=a", "--batch_size=0"], "--batch_size=0: must be at least 1"),
    ],
)
def test_wrong_settings_are_one_line(arguments, words, model, tmp_path):
    (tmp_path / "a.csv").write_text("path\nb.jpg\n")
    result = run(*(a.format(model=model[0], tmp=tmp_path) for a in arguments))
    assert result.returncode == 2, result.stderr
    assert words in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
