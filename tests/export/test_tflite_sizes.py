"""Several sizes of the input in one .tflite: a signature each, the weights once, the client takes the nearest."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.export import flatbuffer, tflite
from kmaskrcnn.export.client import LiteRTClient
from kmaskrcnn.export.litert_client import letterbox
from tests.conftest import TINY
from tests.export.conftest import LABELS
from tests.export.images import picture

WIDE, TALL = (64, 96), (96, 64)
SETTINGS = TINY | {"backbone_norm": "frozen_bn", "score_threshold": 0.3}


def _calibration(*sizes):
    return [letterbox(picture(seed=i), *size, (124, 116, 104))[0] for size in sizes for i in range(3)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Clients of files with one size and with two, in float32 and int8, by number of sizes and quantization."""
    keras.utils.set_random_seed(5)
    model = MaskRCNN(**(SETTINGS | tflite.MOBILE_SETTINGS))
    kernel = model.box_head.class_logits.kernel
    kernel.assign(np.random.default_rng(0).normal(0, 0.4, kernel.shape))
    folder, config = tmp_path_factory.mktemp("sizes"), Config().replace(**SETTINGS)
    contents, clients = {}, {}
    for sizes in ([TALL], [WIDE, TALL]):
        images = {
            name: [image[None] for image in _calibration(size)] for name, size in tflite.signature_names(sizes).items()
        }
        whole = tflite.convert(model, sizes)
        for quantize in ("none", "int8"):
            content = whole if quantize == "none" else tflite.quantized(whole, "int8", images, "resnet18")
            path = folder / f"{len(sizes)}_{quantize}.tflite"
            tflite.write(content, path, config, LABELS, sizes, quantize)
            contents[len(sizes), quantize], clients[len(sizes), quantize] = content, LiteRTClient(path)
    return SimpleNamespace(model=model, contents=contents, clients=clients)


@pytest.mark.parametrize(("quantize", "bytes_of_a_weight"), [("none", 4), ("int8", 1)])
def test_the_weights_are_in_the_file_once(files, quantize, bytes_of_a_weight):
    weights = bytes_of_a_weight * files.model.count_params()
    one, two = (len(files.contents[count, quantize]) for count in (1, 2))
    assert weights < one < two < one + 0.06 * weights + 250_000


def test_the_first_size_is_the_default_signature(files):
    model = flatbuffer.read(files.contents[2, "int8"])
    assert [signature.signatureKey.decode() for signature in model.signatureDefs] == [
        "serving_default",
        "serving_96x64",
    ]
    shapes = [[tuple(graph.tensors[i].shape) for i in graph.inputs] for graph in model.subgraphs]
    assert [signature.subgraphIndex for signature in model.signatureDefs] == [0, 1]
    assert (1, *WIDE, 3) in shapes[0] and (1, *TALL, 3) in shapes[1]
    assert flatbuffer.unknown_sizes(files.contents[2, "int8"]) == []


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_tall_image_is_found_as_in_a_file_of_that_size(files, quantize):
    one, two = files.clients[1, quantize], files.clients[2, quantize]
    pixels = picture(300, 180, seed=1)
    expected, found = one.predict(pixels), two.predict(pixels)
    assert 0 < len(expected) == len(found)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-4)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(found.mask_probabilities, expected.mask_probabilities, atol=1e-4)


def test_the_client_takes_the_nearest_aspect_ratio(files):
    client = files.clients[2, "none"]
    for size, expected in (((300, 180), TALL), ((180, 300), WIDE), ((40, 41), WIDE), ((41, 40), TALL)):
        images, scaled = client.letterbox(picture(*size))
        assert images.shape == (*expected, 3) and client.size_for(size) == expected
        assert max(a / b for a, b in zip(scaled, expected, strict=True)) == 1  # it fills one side
        found = client.predict(picture(*size))
        assert len(found) and (found.boxes >= 0).all() and (found.boxes[:, 2:] <= size).all()
    with pytest.raises(ValueError, match=r"images of 32 x 64: the file takes \[\(64, 96\), \(96, 64\)\]"):
        client.run(np.zeros((32, 64, 3), np.uint8))


def test_wrong_sizes_are_refused(files):
    for sizes in ([], [WIDE, WIDE]):
        with pytest.raises(ConfigError, match="give one or more, each once"):
            tflite.convert(files.model, sizes)
    with pytest.raises(ConfigError, match="int8 needs calibration images of each size"):
        tflite.convert(files.model, [WIDE, TALL], "int8", _calibration(WIDE))
