"""The graphs for a GPU: in LiteRT's accelerator where a Vulkan driver is installed, by their operations elsewhere."""

from types import SimpleNamespace

import numpy as np
import pytest

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.export import accelerator, flatbuffer, gpu_graphs, host, tflite
from kmaskrcnn.export.client import LiteRTClient, LiteRTGpuClient
from tests.export.conftest import LABELS
from tests.export.images import picture
from tests.golden.make_host_vectors import SETTINGS, random_model

HEIGHT, WIDTH = 64, 96


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = random_model(**SETTINGS)
    bias = model.mask_head.deconv.bias  # with one, the converter puts ReLU into the operation
    bias.assign(np.random.default_rng(0).normal(0, 0.1, bias.shape))
    content, checked_by = gpu_graphs.convert(model, HEIGHT, WIDTH)
    path = tmp_path_factory.mktemp("gpu") / "model.tflite"
    config = Config().replace(**vars(model.config))
    gpu_graphs.write(content, path, model, config, LABELS, HEIGHT, WIDTH, "none")
    return SimpleNamespace(model=model, content=content, path=path, on_gpu=checked_by == "accelerator")


def test_one_file_with_three_signatures_of_fixed_size(exported):
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(model_content=exported.content).get_signature_list()
    assert set(signatures) == {"pyramid", "boxes", "masks"}
    assert flatbuffer.unknown_sizes(exported.content) == []
    operations = flatbuffer.operations(exported.content)
    assert set(operations) <= accelerator.OPERATIONS
    assert operations["TRANSPOSE_CONV"] == 1


def test_relu_is_not_part_of_the_deconvolution(exported):
    """The accelerator takes TRANSPOSE_CONV up to version 3, which has no activation."""
    model = flatbuffer.read(exported.content)
    operators = [(flatbuffer.operation_name(model, o), o) for graph in model.subgraphs for o in graph.operators]
    (deconvolution,) = (operator for name, operator in operators if name == "TRANSPOSE_CONV")
    assert model.operatorCodes[deconvolution.opcodeIndex].version == 3
    assert deconvolution.builtinOptions.fusedActivationFunction == 0
    assert [list(o.inputs) for name, o in operators if name == "RELU"] == [list(deconvolution.outputs)]


@pytest.mark.parametrize("size", [(64, 96), (300, 120), (90, 400), (17, 23)])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_end_to_end_the_numbers_of_the_model(exported, device, size):
    if device == "gpu" and not exported.on_gpu:
        pytest.skip("no Vulkan driver: VK_ICD_FILENAMES can name SwiftShader's")
    client = LiteRTGpuClient(exported.path, device)
    pixels = picture(*size, seed=size[0])
    images, scaled = client.letterbox(pixels)
    found = exported.model({"images": images, "image_shapes": np.array([scaled], np.int32)})
    count = int(found.pop("num_detections")[0])
    expected = client.interpret({n: np.asarray(v)[0][:count] for n, v in found.items()}, size, scaled)
    prediction = client.predict(pixels)
    assert 0 < len(expected) == len(prediction)
    np.testing.assert_array_equal(prediction.classes, expected.classes)
    np.testing.assert_allclose(prediction.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(prediction.boxes, expected.boxes, atol=1e-3 * max(size))
    np.testing.assert_allclose(prediction.mask_probabilities, expected.mask_probabilities, atol=1e-3)
    assert (prediction.boxes >= 0).all() and (prediction.boxes[:, 2:] <= size).all()


def test_class_agnostic_heads_give_the_host_a_row_for_each_class():
    """So that the hosts in four languages need not know of them."""
    more = {"score_threshold": 0.0, "max_detections": 60}
    model = random_model(**SETTINGS | more, box_class_agnostic=True, mask_class_agnostic=True)
    model.box_head.class_logits.kernel.assign(0.003 * model.box_head.class_logits.kernel)
    images = np.random.default_rng(0).uniform(0, 255, (1, HEIGHT, WIDTH, 3)).astype(np.float32)
    normalized, shapes = model.preprocess(images, None)
    features = model.pyramid(normalized)
    proposals = model.propose(features, shapes)[2]
    logits, _ = model._run_box_head(features, False, model.box_head, proposals)
    model.box_head.class_logits.bias.assign(-np.mean(logits, axis=(0, 1)))  # objects of every class
    content, _ = gpu_graphs.convert(model, HEIGHT, WIDTH)
    settings = gpu_graphs.host_settings(model, HEIGHT, WIDTH)
    expected = model(images)
    interpreter = tflite._interpreter(content)

    def run(name, value):
        runner = interpreter.get_signature_runner(name)
        return runner(**{"images" if name == "pyramid" else "pooled": value})

    found = host.detect(run, images, (HEIGHT, WIDTH), settings)
    assert 0 < len(found["boxes"]) == int(expected["num_detections"][0])
    assert len(set(found["classes"])) > 1
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name][0][: len(value)], atol=2e-3, err_msg=name)


def test_what_a_gpu_does_not_take_is_refused(exported, monkeypatch):
    whole = tflite.convert(random_model(**(SETTINGS | tflite.MOBILE_SETTINGS)), [(HEIGHT, WIDTH)])
    assert flatbuffer.unknown_sizes(whole) == []
    for ask in (accelerator.ask_accelerator, lambda content: None):
        monkeypatch.setattr(accelerator, "ask_accelerator", ask)
        with pytest.raises(accelerator.AcceleratorError, match=r"not known to run on a GPU|does not take"):
            accelerator.check_accelerated(whole)
    monkeypatch.setattr(gpu_graphs, "check_accelerated", lambda content: accelerator.check_accelerated(whole))
    with pytest.raises(tflite.ExportError, match=r"not known to run on a GPU: .*NON_MAX_SUPPRESSION_V5"):
        gpu_graphs.convert(exported.model, HEIGHT, WIDTH)


def test_wrong_settings_and_files(exported):
    with pytest.raises(ConfigError, match="quantize='int8': choose one of none, float16 for the GPU"):
        gpu_graphs.convert(exported.model, HEIGHT, WIDTH, "int8")
    with pytest.raises(ConfigError, match="both must be multiples of 32"):
        gpu_graphs.convert(exported.model, 50, WIDTH)
    with pytest.raises(ValueError, match="use LiteRTGpuClient"):
        LiteRTClient(exported.path)
