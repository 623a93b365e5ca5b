"""A cascade with class-agnostic masks, exported: the numbers of the model."""

import keras
import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.export import gpu_graphs, tflite
from kmaskrcnn.export.saved_model import SavedModelClient, export_saved_model
from kmaskrcnn.inference.predictor import Predictor
from tests.conftest import TINY
from tests.export.conftest import LABELS, assert_same
from tests.export.images import encode, picture

HEIGHT, WIDTH = 64, 96
SETTINGS = TINY | {
    "backbone_norm": "frozen_bn",
    "score_threshold": 0.0,
    "cascade_ious": (0.5, 0.6),
    "mask_class_agnostic": True,
}


def build(**settings):
    """Random weights, but boxes that move at each stage."""
    keras.utils.set_random_seed(5)
    model = MaskRCNN(**SETTINGS | settings)
    rng = np.random.default_rng(0)
    for head in (model.box_head, *model.cascade.heads):
        head.class_logits.kernel.assign(rng.normal(0, 0.05, head.class_logits.kernel.shape))
        head.deltas.kernel.assign(rng.normal(0, 0.05, head.deltas.kernel.shape))
    return model


@pytest.mark.slow
def test_saved_model(tmp_path):
    model, config = build(), Config().replace(**SETTINGS, min_size=64, max_size=128)
    client = SavedModelClient(export_saved_model(model, config, LABELS, tmp_path / "fruits"))
    image = picture()
    assert_same(client.predict(encode(image)), Predictor(model, config, LABELS).predict(image))


def test_tflite():
    model = build(**tflite.MOBILE_SETTINGS)
    images = np.random.default_rng(1).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    shape = np.array([[HEIGHT, WIDTH]], np.int32)
    content = tflite.convert(model, [(HEIGHT, WIDTH)])
    found = tflite._interpreter(content).get_signature_runner()(images=images, image_shape=shape)
    expected = model({"images": images, "image_shapes": shape})
    assert int(found["num_detections"][0]) == int(expected["num_detections"][0]) > 5
    boxes = found["detection_boxes"] * [HEIGHT, WIDTH, HEIGHT, WIDTH]
    np.testing.assert_allclose(boxes, expected["boxes"], atol=1e-3)
    for name in ("scores", "classes", "masks"):
        np.testing.assert_allclose(found[f"detection_{name}"], expected[name], atol=1e-4, err_msg=name)


def test_the_graphs_for_gpus_are_refused():
    with pytest.raises(ConfigError, match="cascade_ious: the host's steps have one box head"):
        gpu_graphs.convert(build(dtype="float32"), HEIGHT, WIDTH)
