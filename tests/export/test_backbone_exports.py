"""Backbones with operations of their own, exported: hard-swish, squeeze-excite, GELU and layer normalization."""

import re

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.schema_py_generated import TensorType

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config
from kmaskrcnn.export import accelerator, flatbuffer, gpu_graphs, tflite
from kmaskrcnn.export.saved_model import SavedModelClient, export_saved_model
from kmaskrcnn.inference.predictor import Predictor
from tests.conftest import TINY
from tests.export.conftest import LABELS, assert_same
from tests.export.images import encode, picture

HEIGHT, WIDTH = 64, 96
SETTINGS = TINY | {"backbone_norm": "frozen_bn", "score_threshold": 0.0}
NAMES = ["mobilenet_v3_large", pytest.param("convnext_tiny", marks=pytest.mark.slow)]


def build(name, **settings):
    """Random weights, but boxes that move, and blocks that add to a ConvNeXt's sums."""
    keras.utils.set_random_seed(5)
    model = MaskRCNN(**SETTINGS | {"backbone": name} | settings)
    rng = np.random.default_rng(0)
    for layer in (model.box_head.class_logits, model.box_head.deltas):
        layer.kernel.assign(rng.normal(0, 0.05, layer.kernel.shape))
    for variable in model.backbone.weights:
        if variable.path.endswith("layer_scale/gamma"):
            variable.assign(rng.normal(0.5, 0.2, variable.shape))
    return model


@pytest.fixture(scope="module", params=NAMES)
def mobile(request):
    """Name, model, its .tflite in float32 and in int8, and the image of their test."""
    model = build(request.param, **tflite.MOBILE_SETTINGS)
    content = tflite.convert(model, [(HEIGHT, WIDTH)])
    calibration = [picture(HEIGHT, WIDTH, seed)[None] for seed in range(3)]
    int8 = tflite.quantized(content, "int8", {"serving_default": calibration}, request.param)
    return request.param, model, content, int8, picture(HEIGHT, WIDTH, 9)[None]


def test_tflite_gives_the_numbers_of_the_model(mobile):
    name, model, content, _, images = mobile
    operations = tflite.operations(content)
    own = {"mobilenet_v3_large": {"HARD_SWISH": 20, "MEAN": 8}, "convnext_tiny": {"GELU": 18, "RSQRT": 23}}[name]
    assert {operation: operations[operation] for operation in own} == own
    shape = np.array([[HEIGHT, WIDTH]], np.int32)
    found = tflite._interpreter(content).get_signature_runner()(images=images, image_shape=shape)
    expected = model({"images": images, "image_shapes": shape})
    assert int(found["num_detections"][0]) == int(expected["num_detections"][0]) > 5
    boxes = found["detection_boxes"] * [HEIGHT, WIDTH, HEIGHT, WIDTH]
    np.testing.assert_allclose(boxes, expected["boxes"], atol=1e-3)
    for output in ("scores", "classes", "masks"):
        np.testing.assert_allclose(found[f"detection_{output}"], expected[output], atol=1e-4, err_msg=output)


def _pyramid(content, images):
    """P2..P5 of a .tflite of any quantization."""
    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        value = images if len(detail["shape"]) == 4 else np.array([[HEIGHT, WIDTH]], np.int32)
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    maps = {}
    for detail in interpreter.get_tensor_details():
        level = re.search(r"/fpn_\d+/output(\d)_\d+/convolution", detail["name"])
        if level and level[1] not in maps and list(detail["shape"][::3]) == [1, TINY["fpn_channels"]]:
            scale, zero = detail["quantization"]  # 0, 0 for float
            value = interpreter.get_tensor(detail["index"]).astype(np.float32)
            maps[level[1]] = (value - zero) * scale if scale else value
    assert set(maps) == {"2", "3", "4", "5"}
    return maps


def test_int8_gives_a_pyramid_near_that_of_float(mobile):
    _, _, content, int8, images = mobile
    quantized = _pyramid(int8, images)
    for level, exact in _pyramid(content, images).items():
        assert np.std(quantized[level] - exact) < 0.15 * np.std(exact), level


def test_int8_keeps_layer_normalization_in_float_and_squeeze_excite_in_int8(mobile):
    name, _, _, int8, _ = mobile
    model = flatbuffer.read(int8)
    (graph,) = model.subgraphs
    types = {}
    for operator in graph.operators:
        read, written = graph.tensors[operator.inputs[0]], graph.tensors[operator.outputs[0]]
        large = len(read.shape) == 4 and 2 * read.shape[1] >= HEIGHT  # which stay in float
        if f"/{name}" in written.name.decode() and not large:
            types.setdefault(flatbuffer.operation_name(model, operator), set()).add(written.type)
    in_int8, in_float = {TensorType.INT8}, {TensorType.FLOAT32}
    if name == "convnext_tiny":
        assert types["GELU"] == in_int8
        assert types["ADD"] == types["MEAN"] == types["RSQRT"] == types["SQUARED_DIFFERENCE"] == in_float
    else:
        assert types["HARD_SWISH"] == types["MUL"] == types["MEAN"] == types["ADD"] == in_int8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_large", "convnext_tiny"])
def test_saved_model(name, tmp_path):
    model, config = build(name), Config().replace(**SETTINGS | {"backbone": name}, min_size=64, max_size=128)
    client = SavedModelClient(export_saved_model(model, config, LABELS, tmp_path / "fruits"))
    for image in (picture(), picture(90, 60, 1)):
        assert_same(client.predict(encode(image)), Predictor(model, config, LABELS).predict(image))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_large", "convnext_tiny"])
def test_graphs_for_a_gpu_give_the_numbers_of_the_model(name):
    model = build(name, dtype="float32")
    content, _ = gpu_graphs.convert(model, HEIGHT, WIDTH)
    assert set(flatbuffer.operations(content)) <= accelerator.OPERATIONS
    images = picture(HEIGHT, WIDTH, 9)[None].astype(np.float32)
    found = Interpreter(model_content=content).get_signature_runner("pyramid")(images=images)
    for level, expected in model.pyramid(model.preprocess(images, None)[0]).items():
        if level != "P6":
            np.testing.assert_allclose(found[level], expected, atol=1e-4 * np.std(expected), err_msg=level)
