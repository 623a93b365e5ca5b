"""The exported SavedModel in its runtimes (alone, from C++) against the model in this process."""

import base64
import json
import os
import shutil
import subprocess
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from packaging.version import Version

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.data.resize import prepare_image
from kmaskrcnn.export import serving_protos
from kmaskrcnn.export.answers import to_predictions, unpack_masks
from kmaskrcnn.export.client import ImageError, ServingError
from kmaskrcnn.export.encoded_images import NOT_AN_IMAGE, TOO_LARGE, UNDECODABLE
from kmaskrcnn.export.retries import Deadline
from kmaskrcnn.export.saved_model import (
    MAX_REQUEST_BYTES,
    SavedModelClient,
    ServingFunctions,
    _pack_masks,
    export_saved_model,
    gray_images,
)
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.results.labels import read_labels
from tests.conftest import TINY
from tests.export.conftest import LABELS, assert_same
from tests.export.images import encode, picture, with_exif
from tests.processes import run_python

OUTPUTS = {
    "num_detections",
    "detection_boxes",
    "detection_scores",
    "detection_classes",
    "detection_masks",
    "detection_masks_reframed",
    "image_sizes",
}


@pytest.fixture(scope="module")
def serve(loaded):
    function = loaded.signatures["serving_default"]

    def run(images):
        return {name: x.numpy() for name, x in function(image_bytes=tf.constant(images, tf.string)).items()}

    return run


@pytest.mark.parametrize("size", [(70, 110), (200, 90), (64, 64), (1, 1), (3, 150)])
def test_equals_the_model(exported, serve, own_client, size, tmp_path):
    data = encode(picture(*size))
    (tmp_path / "a.png").write_bytes(data)
    outputs = serve([data])
    assert set(outputs) == OUTPUTS | {"image_errors"}
    np.testing.assert_array_equal(outputs["image_sizes"], [size])
    (result,) = to_predictions(outputs, [size], LABELS)
    expected = exported.predictor.predict(str(tmp_path / "a.png"))
    assert_same(result, expected)
    assert_same(own_client.predict(data), expected)
    assert outputs["detection_boxes"].min() >= 0 and outputs["detection_boxes"].max() <= 1
    for i in range(len(result)):
        full = outputs["detection_masks_reframed"][0, i]
        assert full.shape == size
        assert np.mean(full.astype(bool) != expected.mask(i)) < 0.002  # ties at one half


def test_one_bad_image_leaves_the_others_right(serve):
    good = [encode(picture(70, 110)), encode(picture(90, 140, 1), "JPEG")]  # of one padded size
    large = encode(np.zeros((301, 300, 3), np.uint8))
    outputs = serve([good[0], b"junk", good[0][:150], large, good[1]])
    errors = [e.decode() for e in outputs["image_errors"]]
    assert errors == ["", NOT_AN_IMAGE, UNDECODABLE, TOO_LARGE, ""]
    for name in OUTPUTS:
        assert not outputs[name][1:4].any(), name
    together = serve(good)
    for row, alone in ((0, 0), (4, 1)):
        for name in OUTPUTS:
            np.testing.assert_array_equal(outputs[name][row], together[name][alone], err_msg=name)
    results = to_predictions(outputs, outputs["image_sizes"].astype(int), LABELS)
    assert [isinstance(r, ImageError) for r in results] == [False, True, True, True, False]
    assert all(serve([b"junk"] * 3)["image_errors"] == NOT_AN_IMAGE.encode())


def test_an_image_that_fails_while_decoding_leaves_no_padding(serve):
    """Its header promised portrait, for which the canvas of the others would be a square."""
    good = encode(picture(70, 110))
    alone = serve([good])
    for other in (encode(picture(110, 70))[:300], encode(np.zeros((290, 70, 3), np.uint8), "JPEG")[:400]):
        outputs = serve([other, good, other])
        assert [e.decode() for e in outputs["image_errors"]] == [UNDECODABLE, "", UNDECODABLE]
        for name in OUTPUTS:
            np.testing.assert_array_equal(outputs[name][1], alone[name][0], err_msg=name)


def test_a_batch_of_sizes_is_padded_to_the_largest(exported, serve):
    """What each image of a batch gives is what the model gives for it on the canvas of the batch."""
    pictures = [picture(70, 110), picture(200, 90), with_exif_pixels()]
    outputs = serve([encode(pictures[0]), encode(pictures[1]), with_exif(picture(50, 60), 6, "PNG")])
    prepared = [prepare_image(p, exported.config.data) for p in pictures]
    canvas = np.max([image.shape for image, *_ in prepared], axis=0)
    images = np.stack([np.pad(p[0], [(0, c - s) for c, s in zip(canvas, p[0].shape, strict=True)]) for p in prepared])
    batch = {"images": images, "image_shapes": np.stack([p[1] for p in prepared])}
    batch |= {"scales": np.stack([p[2] for p in prepared]), "original_shapes": [p.shape[:2] for p in pictures]}
    np.testing.assert_array_equal(outputs["image_sizes"], batch["original_shapes"])
    results = to_predictions(outputs, batch["original_shapes"], LABELS)
    for result, expected in zip(results, exported.predictor.predict_batch(batch), strict=True):
        assert_same(result, expected)


def with_exif_pixels():
    """The upright pixels of a 50 x 60 image that says it lies on its side."""
    return np.rot90(picture(50, 60), -1)


def test_empty_batches(loaded, serve):
    for outputs in (
        serve([]),
        {
            n: x.numpy()
            for n, x in loaded.signatures["serving_tensor"](images=tf.zeros((0, 50, 60, 3), tf.uint8)).items()
        },
    ):
        assert all(len(x) == 0 for x in outputs.values())
        assert outputs["detection_boxes"].shape[1:] == (20, 4)


def test_requests_at_the_same_time(serve):
    batches = [[encode(picture(60 + 10 * i, 90, i)), b"junk"] for i in range(4)]
    alone = [serve(batch) for batch in batches]
    with futures.ThreadPoolExecutor(4) as threads:
        together = list(threads.map(serve, batches * 3))
    for number, outputs in enumerate(together):
        for name in OUTPUTS:
            np.testing.assert_allclose(outputs[name], alone[number % 4][name], atol=1e-4, err_msg=name)


def test_images_without_pixels_are_refused(loaded):
    with pytest.raises(tf.errors.InvalidArgumentError):
        loaded.signatures["serving_tensor"](images=tf.zeros((2, 0, 60, 3), tf.uint8))


def test_large_requests_are_refused(loaded, serve):
    with pytest.raises(tf.errors.InvalidArgumentError, match="may hold 16 images"):
        serve([encode(picture())] * 17)
    with pytest.raises(tf.errors.InvalidArgumentError, match="may hold 16 images"):
        loaded.signatures["serving_tensor"](images=tf.zeros((17, 20, 20, 3), tf.uint8))


def test_the_client_names_what_the_graph_refuses(own_client):
    with pytest.raises(ServingError, match=r"^a request may hold 16 images, this one holds: 17"):
        own_client._send([encode(picture())] * 17, Deadline(60))


def test_a_limit_that_no_image_keeps_is_refused(exported, tmp_path):
    with pytest.raises(ConfigError, match="max_request_bytes=10: no image of the size that the model takes fits"):
        export_saved_model(exported.model, exported.config, LABELS, tmp_path, exported.warmup, max_request_bytes=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_a_request_may_not_hold_is_no_warm_up(exported, tmp_path):
    """A server replays it before it serves the version, and would refuse the version with it."""
    small, large = sorted(exported.warmup, key=len)
    path = export_saved_model(
        exported.model, exported.config, LABELS, tmp_path / "m", [large, small], max_request_bytes=len(large) - 1
    )
    records = tf.data.TFRecordDataset(str(path / "assets.extra" / "tf_serving_warmup_requests")).as_numpy_iterator()
    logs = [serving_protos.PredictionLog.FromString(record).predict_log.request for record in records]
    assert [serving_protos.images_of(log) for log in logs] == [[small]]


def test_requests_of_many_bytes_are_refused(serve):
    image = encode(picture())
    exactly = [image, b"a" * (MAX_REQUEST_BYTES - len(image))]
    assert [bool(error) for error in serve(exactly)["image_errors"]] == [False, True]
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"may hold {MAX_REQUEST_BYTES} bytes of images"):
        serve([*exactly, b"a"])


@pytest.mark.parametrize("noise", [False, True])
def test_compact_masks(noise):
    """All that a server answers for 100 objects stays below 100 kB, in base64 too, whatever the masks are."""
    masks = np.random.default_rng(0).random((2, 100, 28, 28)).astype(np.float32)
    if not noise:
        masks = np.asarray([[ndimage_disk(radius) for radius in np.linspace(2, 14, 100)]] * 2, np.float32)
    packed = _pack_masks(tf.constant(masks), tf.constant([100.0, 0.0])).numpy()
    found = unpack_masks(packed[0], 100)
    assert np.abs(found - masks[0]).max() <= 0.5 / 17 + 1e-6
    np.testing.assert_array_equal(found > 0.5, masks[0] > 0.5)
    assert len(base64.b64encode(packed[0])) < (80_000 if noise else 20_000)
    assert unpack_masks(packed[1], 0).shape[0] == 0
    with pytest.raises(ValueError, match="for 99 masks"):
        unpack_masks(packed[0], 99)


def ndimage_disk(radius):
    y, x = np.mgrid[:28, :28] - 13.5
    return 1 / (1 + np.exp(np.hypot(y, x) - radius))


def test_tensor_signature(exported, loaded):
    images = np.stack([picture(70, 110), picture(70, 110, 5)])
    outputs = loaded.signatures["serving_tensor"](images=tf.constant(images))
    assert set(outputs) == OUTPUTS
    results = to_predictions({n: x.numpy() for n, x in outputs.items()}, [(70, 110)] * 2, LABELS)
    for image, result in zip(images, results, strict=True):
        assert_same(result, exported.predictor.predict(image), 1e-3)


def test_files_beside_the_graph(exported):
    assert exported.version.name == "8"  # beside a version 7 and what a run that was stopped had left
    assert not list(exported.version.glob("left*"))
    extra = exported.version / "assets.extra"
    assert read_labels(extra) == LABELS
    assert Config.from_json((extra / "config.json").read_text()) == exported.config
    assert sorted(p.name for p in extra.iterdir()) == ["config.json", "labels.json", "tf_serving_warmup_requests"]
    # The weights are there once: not doubled, and not missing.
    weights = sum(np.prod(v.shape) for v in exported.model.weights) * 4
    stored = sum(p.stat().st_size for p in (exported.version / "variables").iterdir())
    assert weights < stored < 1.1 * weights
    assert sorted(p.name for p in exported.base.iterdir()) == ["7", "8", "part-8"]  # what lay there stays


def test_sizes_are_bounded_with_native_size(exported):
    config = exported.config.replace(resize_mode="native")
    functions = ServingFunctions(exported.model, config.data)
    outputs = functions.serving_default(
        tf.constant([encode(np.zeros((4, 2049, 3), np.uint8)), encode(picture(40, 50))])
    )
    assert [e.decode() for e in outputs["image_errors"].numpy()] == [TOO_LARGE, ""]
    assert outputs["detection_masks"].shape[1:] == (20, 28, 28)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large for this model"):
        functions.serving_tensor(tf.zeros((1, 4, 2049, 3), tf.uint8))


def test_pixels_that_are_not_rounded_are_those_of_the_predictor(exported):
    config = exported.config.replace(resize_method="torchvision")
    expected = Predictor(exported.model, config, LABELS).predict(picture(70, 50))
    found = ServingFunctions(exported.model, config.data).serving_default(tf.constant([encode(picture(70, 50))]))
    np.testing.assert_allclose(found["detection_scores"][0, : len(expected)], expected.scores, atol=1e-5)
    rounded = exported.predictor.predict(picture(70, 50))
    assert np.abs(rounded.scores - expected.scores).max() > 1e-4


def test_full_size_masks_are_pasted_as_the_model_does(exported, tmp_path):
    config = exported.config.replace(mask_paste="rounded_boxes")
    with pytest.raises(ConfigError, match="mask_paste=rounded_boxes"):
        export_saved_model(exported.model, config, LABELS, tmp_path, full_size_masks=True)


def test_constant_weights_answer_as_the_model(exported, tmp_path):
    folder = export_saved_model(exported.model, exported.config, LABELS, tmp_path, constant_weights=True)
    (read,) = (folder / "variables").glob("*.data-*") or [None]
    assert read.stat().st_size < 1000  # of a model with variables they are all there
    client = SavedModelClient(folder)
    for size in ((70, 110), (200, 90)):
        data = encode(picture(*size))
        (tmp_path / "a.png").write_bytes(data)
        assert_same(client.predict(data), exported.predictor.predict(str(tmp_path / "a.png")))
    assert exported.model.trainable_variables  # the model itself is as it was


def test_constant_weights_are_in_the_file_once(exported, tmp_path):
    """Not also as they were before they were folded into the convolutions."""
    model = MaskRCNN(**TINY | {"backbone_norm": "frozen_bn"})
    folder = export_saved_model(model, exported.config, LABELS, tmp_path, constant_weights=True)
    weights, graph = 4 * sum(int(np.prod(v.shape)) for v in model.weights), 8e6
    assert weights < (folder / "saved_model.pb").stat().st_size < 1.1 * weights + graph


def test_warmup_without_pictures(exported):
    """Gray ones, landscape and portrait, so that both shapes are known before the first request."""
    sizes = {tf.io.decode_jpeg(image).shape[:2] for image in gray_images(exported.config.data)}
    assert sizes == {(64, 128), (128, 64)}
    assert len(gray_images(exported.config.replace(resize_mode="native").data)) == 1


ALONE = """
import importlib.machinery, json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("keras", "kmaskrcnn"):
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ImportError(spec.name + " is blocked")
    def exec_module(self, module):
        pass
sys.meta_path.insert(0, Blocked())
import tensorflow as tf
from packaging.version import Version
try:
    import keras
except ImportError as error:
    assert str(error) == "keras is blocked"
else:
    raise AssertionError("keras can be imported")
outputs = tf.saved_model.load(sys.argv[1]).signatures["serving_default"](
    image_bytes=tf.constant([open(p, "rb").read() for p in sys.argv[2:]]))
assert not [m for m in sys.modules if m.split(".")[0] in ("keras", "kmaskrcnn")]
print(json.dumps(outputs["detection_scores"].numpy().tolist()))
"""


def test_runs_where_keras_and_this_package_cannot_be_imported(exported, serve, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture()))
    result = run_python("-c", ALONE, exported.version, tmp_path / "a.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout.splitlines()[-1])
    np.testing.assert_allclose(scores, serve([encode(picture())])["detection_scores"], atol=1e-5)


def test_loads_and_runs_from_cpp(exported, serve, tmp_path):
    """What tensorflow_model_server is built on: LoadSavedModel, fed the bytes of files, one of them damaged."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    reads_webp = Version(tf.__version__) >= Version("2.20")
    files = {
        "a.jpg": encode(picture(), "JPEG"),
        "cut.png": encode(picture())[:200],
        "b": encode(picture(), "WEBP" if reads_webp else "BMP"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    root = Path(tf.sysconfig.get_lib())
    command = [compiler, *tf.sysconfig.get_compile_flags(), "-O0", str(Path(__file__).parent / "load_saved_model.cc")]
    command += ["-o", str(tmp_path / "load"), f"-L{root}", f"-Wl,-rpath,{root}", "-Wl,--no-as-needed"]
    command += ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr[-3000:]
    run = subprocess.run(
        [str(tmp_path / "load"), str(exported.version), *(str(tmp_path / name) for name in files)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert run.returncode == 0, run.stderr
    first, damaged, last = run.stdout.splitlines()
    expected = serve(list(files.values()))["detection_scores"]
    np.testing.assert_allclose(np.array(first.split(), np.float32), expected[0], atol=1e-5)
    np.testing.assert_allclose(np.array(last.split(), np.float32), expected[2], atol=1e-5)
    assert damaged == UNDECODABLE
