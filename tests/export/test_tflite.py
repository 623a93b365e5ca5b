"""The real converter, the real runtime: builtin operations only, and the numbers of the model."""

import collections
import json
import os
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import TensorType
from PIL import Image

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.export import flatbuffer, tflite
from kmaskrcnn.export.client import ImageError, LiteRTClient
from kmaskrcnn.export.litert_client import letterbox
from kmaskrcnn.results.labels import Labels
from tests.conftest import TINY
from tests.export.conftest import LABELS
from tests.export.images import encode, picture
from tests.processes import run_python

HEIGHT, WIDTH = 64, 96
SETTINGS = TINY | {"backbone_norm": "frozen_bn", "score_threshold": 0.3}


def _model(**settings):
    """Random weights, but scores that differ from class to class."""
    keras.utils.set_random_seed(5)
    model = MaskRCNN(**(SETTINGS | tflite.MOBILE_SETTINGS | settings))
    kernel = model.box_head.class_logits.kernel
    kernel.assign(np.random.default_rng(0).normal(0, 0.4, kernel.shape))
    return model


@pytest.fixture(scope="module")
def mobile(tmp_path_factory):
    """One model in every quantization: the model, paths and sizes by quantization."""
    model = _model()
    config = Config().replace(**SETTINGS)
    folder = tmp_path_factory.mktemp("mobile")
    calibration = [letterbox(picture(seed=i), HEIGHT, WIDTH, tflite.pad_value(config))[0] for i in range(4)]
    paths, sizes = {}, {}
    whole = tflite.convert(model, [(HEIGHT, WIDTH)])
    for quantize in tflite.QUANTIZE:
        # int8 by `convert`, the others from one conversion, which takes the time.
        content = whole
        if quantize == "int8":
            content = tflite.convert(model, [(HEIGHT, WIDTH)], quantize, calibration)
        elif quantize != "none":
            content = tflite.quantized(whole, quantize)
        paths[quantize] = folder / f"{quantize}.tflite"
        sizes[quantize] = len(content)
        tflite.write(content, paths[quantize], config, LABELS, [(HEIGHT, WIDTH)], quantize)
    return SimpleNamespace(model=model, config=config, paths=paths, sizes=sizes, folder=folder)


def _expected(mobile, client, pixels):
    """What the model finds with the other RoIAlign, CropAndResize, which shares no code with the exported one."""
    reference = MaskRCNN(**SETTINGS)
    reference.set_weights(mobile.model.get_weights())
    reference.static_shapes = True  # padding is not cut off
    canvas, scaled = client.letterbox(pixels)
    batch = {"images": canvas[None], "image_shapes": np.array([scaled], np.int32)}
    found = {name: np.asarray(value) for name, value in reference(batch).items()}
    boxes = np.clip(found["boxes"] / [HEIGHT, WIDTH, HEIGHT, WIDTH], 0, 1).astype(np.float32)
    outputs = {f"detection_{name}": found[name] for name in ("scores", "classes", "masks")}
    outputs |= {"num_detections": found["num_detections"], "detection_boxes": boxes}
    return client.interpret(outputs, pixels.shape[:2], scaled)


@pytest.mark.parametrize("quantize", tflite.QUANTIZE)
def test_every_operation_is_builtin_and_none_is_a_loop(mobile, quantize):
    found = tflite.operations(mobile.paths[quantize].read_bytes())
    assert sum(found.values()) > 50
    assert found["EMBEDDING_LOOKUP_SPARSE"] == 2
    assert found["NON_MAX_SUPPRESSION_V5"] == 6
    bad = {name for name in found if name.startswith(("Flex", "CUSTOM", "kmaskrcnn")) or not name.isupper()}
    loops = {"WHILE", "IF", "CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}
    assert not bad and not loops & set(found)


@pytest.mark.parametrize(("quantize", "share"), [("none", 1.0), ("float16", 0.5), ("dynamic", 0.25), ("int8", 0.25)])
def test_the_file_is_about_the_size_of_the_weights(mobile, quantize, share):
    weights = 4 * mobile.model.count_params()
    assert share * weights < mobile.sizes[quantize] < 1.06 * share * weights + 250_000


def test_signature_names_inputs_and_outputs(mobile):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(mobile.paths["none"]))
    (name,) = interpreter.get_signature_list()
    assert name == "serving_default"
    runner = interpreter.get_signature_runner(name)
    details = runner.get_input_details()
    assert set(details) == {"images", "image_shape"}
    assert details["image_shape"]["dtype"] == np.int32 and list(details["image_shape"]["shape"]) == [1, 2]
    assert details["images"]["dtype"] == np.uint8
    assert list(details["images"]["shape"]) == [1, HEIGHT, WIDTH, 3]
    shapes = {name: tuple(d["shape"]) for name, d in runner.get_output_details().items()}
    assert shapes == {
        "num_detections": (1,),
        "detection_boxes": (1, 20, 4),
        "detection_scores": (1, 20),
        "detection_classes": (1, 20),
        "detection_masks": (1, 20, 28, 28),
    }


def test_labels_and_metadata_are_inside_the_file_and_beside_it(mobile):
    path = mobile.paths["int8"]
    with zipfile.ZipFile(path) as archive:
        inside = {name: archive.read(name).decode() for name in archive.namelist()}
    beside = {name: path.with_name(f"int8.{name}").read_text() for name in ("labels.txt", "metadata.json")}
    assert inside == beside | {"value_labels.txt": "???\napple\npear\nplum\n"}
    assert inside["labels.txt"] == "apple\npear\nplum\n"
    metadata = json.loads(inside["metadata.json"])
    assert metadata["quantize"] == "int8"
    assert metadata["mask_paste"] == "pixel_centers"
    assert metadata["category_ids"] == [3, 10, 20]
    assert metadata["input"]["shape"] == [1, HEIGHT, WIDTH, 3]
    assert metadata["pad_value"] == [124, 116, 104]


@pytest.mark.parametrize("size", [(64, 96), (300, 120), (90, 400), (17, 23)])
def test_client_finds_what_the_model_finds(mobile, size):
    client = LiteRTClient(mobile.paths["none"])
    pixels = picture(*size, seed=size[0])
    expected, found = _expected(mobile, client, pixels), client.predict(pixels)
    assert 0 < len(expected) == len(found)
    assert (found.height, found.width) == size
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3 * max(size))
    np.testing.assert_allclose(found.mask_probabilities, expected.mask_probabilities, atol=1e-4)
    assert (found.boxes[:, :2] == 0).any()  # cut at the border
    # Nothing lies in the padding, or reaches into it.
    assert (found.boxes >= 0).all() and (found.boxes[:, 2:] <= size).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.mask(0).shape == size
    assert {r["category_id"] for r in found.to_coco(1)} <= {3, 10, 20}


@pytest.mark.parametrize("quantize", tflite.QUANTIZE)
def test_what_fills_the_padding_does_not_count(mobile, quantize):
    client = LiteRTClient(mobile.paths[quantize])
    canvas, scaled = client.letterbox(picture(300, 120))
    other = canvas.copy()
    other[:, scaled[1] :] = 255
    for name, value in client.run(canvas, scaled).items():
        np.testing.assert_array_equal(client.run(other, scaled)[name], value)


def test_one_client_serves_several_threads(mobile):
    client = LiteRTClient(mobile.paths["none"], threads=1)
    images = [picture(seed=seed) for seed in range(16)]
    expected = [client.predict(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(client.predict, images))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(other.boxes, one.boxes)
        np.testing.assert_array_equal(other.mask_probabilities, one.mask_probabilities)


def test_client_takes_files_and_bytes(mobile, tmp_path):
    client = LiteRTClient(mobile.paths["none"])
    pixels = picture()
    path = tmp_path / "turned.jpg"
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    turned.save(path, quality=95, exif=exif)
    upright = client.predict(path)
    assert (upright.height, upright.width) == pixels.shape[:2]
    from_bytes = client.predict(encode(pixels))
    np.testing.assert_array_equal(from_bytes.boxes, client.predict(pixels).boxes)


@pytest.mark.parametrize(("quantize", "tolerance"), [("float16", 0.02), ("dynamic", 0.1), ("int8", 0.1)])
def test_quantized_scores_stay_near(mobile, quantize, tolerance):
    pixels = picture(seed=9)
    scores = [LiteRTClient(mobile.paths[name]).predict(pixels).scores for name in ("none", quantize)]
    count = min(len(s) for s in scores)
    assert count > 3
    assert np.abs(scores[0][:count] - scores[1][:count]).mean() < tolerance


def _anchors(path):
    """The constants of four columns, by name."""
    interpreter = tflite._interpreter(path.read_bytes())
    written = {int(i) for operation in interpreter._get_ops_details() for i in operation["outputs"]}
    details = (d for d in interpreter.get_tensor_details() if d["index"] not in written)
    tables = [d for d in details if len(d["shape"]) == 2 and d["shape"][1] == 4 and d["name"].startswith("mask_rcnn")]
    return {d["name"]: interpreter.get_tensor(d["index"]) for d in tables}


@pytest.mark.parametrize("quantize", ["float16", "dynamic", "int8"])
def test_anchors_are_not_rounded(mobile, quantize):
    expected, found = (_anchors(mobile.paths[name]) for name in ("none", quantize))
    assert sum(map(len, expected.values())) > 3 * (HEIGHT // 4) * (WIDTH // 4)
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], table)


def test_int8_leaves_detection_arithmetic_in_float(mobile):
    interpreter = tflite._interpreter(mobile.paths["int8"].read_bytes())
    types = {d["index"]: d["dtype"] for d in interpreter.get_tensor_details()}
    first_inputs = {}
    for operation in interpreter._get_ops_details():
        index = next(int(i) for i in operation["inputs"] if i >= 0)
        first_inputs.setdefault(operation["op_name"], set()).add(types[index])
    assert first_inputs["FULLY_CONNECTED"] == {np.int8}
    assert first_inputs["CONV_2D"] == {np.int8, np.float32}  # all but the first
    for name in ("NON_MAX_SUPPRESSION_V5", "EXP", "SOFTMAX", "TOPK_V2"):
        assert first_inputs[name] == {np.float32}, name


@pytest.fixture(scope="module")
def without_objects():
    """A model with a mobile backbone that finds nothing, and its file."""
    model = _model(backbone="mobilenet_v2", num_classes=1)
    model.box_head.class_logits.bias.assign([1e6, 0.0])
    return tflite.convert(model, [(96, 32)])


def _types_of_maps(content):
    """The types of the maps that operations of the backbone read, by the height of the map."""
    model = flatbuffer.read(content)
    (graph,) = model.subgraphs
    types = collections.defaultdict(set)
    for operator in graph.operators:
        read, written = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
        name = flatbuffer.operation_name(model, operator)
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D") and re.search(
            r"resnet|mobilenet", written.name.decode()
        ):
            types[int(read.shape[1])].add(read.type)
    return types


def test_int8_keeps_what_reads_large_maps_in_float(mobile, without_objects):
    calibration = [letterbox(picture(seed=i), 96, 32, (124, 116, 104))[0][None] for i in range(2)]
    small = tflite.quantized(without_objects, "int8", {"serving_default": calibration}, "mobilenet_v2")
    for content, height in ((mobile.paths["int8"].read_bytes(), HEIGHT), (small, 96)):
        types = _types_of_maps(content)
        assert {2 * size >= height for size in types} == {True, False}
        for size, found in types.items():
            assert found == {TensorType.FLOAT32 if 2 * size >= height else TensorType.INT8}, size


def test_no_detection_a_mobile_backbone_and_another_shape(without_objects, tmp_path):
    config = Config().replace(**(SETTINGS | {"num_classes": 1}))
    path = tmp_path / "nothing.tflite"
    labels = Labels(("nucleus",), (1,))
    tflite.write(without_objects, path, config, labels, [(96, 32)], "none")
    client = LiteRTClient(path)
    for pixels in (picture(), np.zeros((40, 30, 3), np.uint8)):
        found = client.predict(pixels)
        assert len(found) == 0
        assert found.to_coco(1) == []
        outputs = client.run(client.letterbox(pixels)[0])
        assert all(np.isfinite(value).all() for value in outputs.values())
        assert not outputs["detection_masks"].any()


def test_client_needs_neither_tensorflow_nor_keras(mobile):
    code = f"""
import sys
for name in ("tensorflow", "keras"):
    sys.modules[name] = None
from kmaskrcnn.export.client import LiteRTClient
import numpy as np
found = LiteRTClient({str(mobile.paths["dynamic"])!r}).predict(np.full((50, 80, 3), 90, np.uint8))
assert (found.height, found.width) == (50, 80)
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr


def test_what_cannot_be_converted_is_refused(mobile):
    with pytest.raises(ConfigError, match="input size 64 x 100: both must be multiples of 32"):
        tflite.convert(mobile.model, [(64, 100)])
    with pytest.raises(ConfigError, match="quantize='int4': choose one of none, float16, dynamic, int8"):
        tflite.convert(mobile.model, [(HEIGHT, WIDTH)], "int4")
    with pytest.raises(ConfigError, match="needs calibration images"):
        tflite.convert(mobile.model, [(HEIGHT, WIDTH)], "int8")
    with pytest.raises(ConfigError, match=r"calibration image of shape \(10, 10, 3\)"):
        tflite.convert(mobile.model, [(HEIGHT, WIDTH)], "int8", [np.zeros((10, 10, 3), np.uint8)])


def test_operations_that_are_not_builtin_are_refused():
    model = MaskRCNN(**SETTINGS)  # RoIAlign by CropAndResize
    with pytest.raises(tflite.ExportError, match="CropAndResize"):
        tflite.convert(model, [(HEIGHT, WIDTH)])


def test_client_refuses_other_files(mobile, tmp_path):
    path = tmp_path / "other.tflite"
    path.write_bytes(b"TFL3 of somebody else")
    with pytest.raises(ValueError, match=r"other\.tflite: not a model exported by kmaskrcnn"):
        LiteRTClient(path)
    with pytest.raises(FileNotFoundError):
        LiteRTClient(tmp_path / "missing.tflite")
    client = LiteRTClient(mobile.paths["none"])
    with pytest.raises(ImageError, match="not an image"):
        client.predict(b"not an image")
    with pytest.raises(FileNotFoundError):
        client.predict(tmp_path / "missing.png")


# Prints what TensorFlow Lite Support's own reader finds in a file.
READER = """
import sys
from tensorflow_lite_support.metadata.python.metadata import MetadataDisplayer
displayer = MetadataDisplayer.with_model_file(sys.argv[1])
print(displayer.get_metadata_json())
print(displayer.get_packed_associated_file_list(), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the newest wheel of tflite-support is for Python 3.11")
def test_the_reader_of_tensorflow_lite_support_shows_the_metadata(mobile, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "reader"], check=True)
    python = tmp_path / "reader" / "bin" / "python"
    for packages in (["--no-deps", "tflite-support==0.4.4"], ["absl-py", "numpy<2", "flatbuffers", "libusb-package"]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    # It also holds code for USB devices, whose library a machine may lack.
    library = next(tmp_path.rglob("libusb-1.0.so"))
    library.with_name("libusb-1.0.so.0").symlink_to(library)
    environment = os.environ | {"LD_LIBRARY_PATH": str(library.parent)}
    command = [python, "-c", READER, mobile.paths["int8"]]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    assert shown["name"] == "Mask R-CNN resnet18"
    assert "apple, pear, plum" in shown["description"]
    assert [file["name"] for file in shown["associated_files"]] == ["metadata.json"]
    (graph,) = shown["subgraph_metadata"]
    inputs = {tensor["name"]: tensor for tensor in graph["input_tensor_metadata"]}
    outputs = {tensor["name"]: tensor for tensor in graph["output_tensor_metadata"]}
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(mobile.paths["int8"])).get_signature_runner()
    assert set(inputs) == set(runner.get_input_details())
    assert set(outputs) == set(runner.get_output_details())
    properties = inputs["images"]["content"]["content_properties"]
    assert properties == {"color_space": "RGB", "default_size": {"width": WIDTH, "height": HEIGHT}}
    assert inputs["images"]["process_units"][0]["options"] == {"mean": [0.0], "std": [1.0]}
    assert outputs["detection_boxes"]["content"]["content_properties"] == {"index": [1, 0, 3, 2], "type": "BOUNDARIES"}
    assert outputs["detection_scores"]["process_units"][0]["options"]["global_score_threshold"] == pytest.approx(0.3)
    assert outputs["detection_classes"]["associated_files"][0]["name"] == "value_labels.txt"
    for name in ("labels.txt", "metadata.json", "value_labels.txt"):
        assert name in result.stderr
