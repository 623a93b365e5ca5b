"""A cascade with class-agnostic masks, mask scoring and Soft-NMS, and PointRend, exported: the numbers of the model."""

import io
import itertools

import keras
import numpy as np
import pytest
from PIL import Image
from tensorflow.lite.python import schema_py_generated as schema

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.export import flatbuffer, gpu_graphs, tflite
from kmaskrcnn.export.client import LiteRTClient
from kmaskrcnn.export.saved_model import SavedModelClient, export_saved_model
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.serving.runner import LiteRTRunner
from tests.conftest import TINY
from tests.export.conftest import LABELS, assert_same
from tests.export.images import encode, picture
from tests.numpy_reference import iou

HEIGHT, WIDTH = 64, 96
SETTINGS = TINY | {
    "backbone_norm": "frozen_bn",
    "score_threshold": 0.0,
    "cascade_ious": (0.5, 0.6),
    "mask_class_agnostic": True,
    "mask_scoring": True,
    "soft_nms_sigma": 0.5,
}
POINTS = TINY | {
    "backbone_norm": "frozen_bn",
    "score_threshold": 0.0,
    "mask_point_rend": True,
    "mask_subdivisions": 3,
}
# The names of what the model finds that an export has by another name.
FOUND = ("scores", "classes", "masks", "mask_scores")


def build(**settings):
    """Random weights, but boxes that move at each stage."""
    keras.utils.set_random_seed(5)
    model = MaskRCNN(**SETTINGS | settings)
    rng = np.random.default_rng(0)
    for head in (model.box_head, *model.cascade.heads):
        head.class_logits.kernel.assign(rng.normal(0, 0.05, head.class_logits.kernel.shape))
        head.deltas.kernel.assign(rng.normal(0, 0.05, head.deltas.kernel.shape))
    if model.mask_iou_head is not None:  # a share of each score
        model.mask_iou_head.ious.kernel.assign(rng.normal(0, 0.01, model.mask_iou_head.ious.kernel.shape))
        model.mask_iou_head.ious.bias.assign([0.5])
    return model


def check_varied(found):
    """Mask scores that are shares of the scores, and boxes of a class whose overlap has cost a score."""
    boxes, scores, classes = found.boxes, found.scores, found.classes
    assert np.ptp(found.mask_scores / scores) > 1e-3 and (found.mask_scores < scores).all()
    pairs = itertools.combinations(range(len(boxes)), 2)
    assert max(iou(boxes[i], boxes[j]) for i, j in pairs if classes[i] == classes[j]) > 0.2


@pytest.mark.slow
def test_saved_model(tmp_path):
    model, config = build(), Config().replace(**SETTINGS, min_size=64, max_size=128)
    client = SavedModelClient(export_saved_model(model, config, LABELS, tmp_path / "fruits"))
    image = picture()
    found = Predictor(model, config, LABELS).predict(image)
    check_varied(found)
    assert_same(client.predict(encode(image)), found)


def test_tflite(tmp_path):
    model = build(**tflite.MOBILE_SETTINGS)
    images = np.random.default_rng(1).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    shape = np.array([[HEIGHT, WIDTH]], np.int32)
    content = tflite.convert(model, [(HEIGHT, WIDTH)])
    found = tflite._interpreter(content).get_signature_runner()(images=images, image_shape=shape)
    expected = model({"images": images, "image_shapes": shape})
    assert int(found["num_detections"][0]) == int(expected["num_detections"][0]) > 5
    boxes = found["detection_boxes"] * [HEIGHT, WIDTH, HEIGHT, WIDTH]
    np.testing.assert_allclose(boxes, expected["boxes"], atol=1e-3)
    for name in FOUND:
        np.testing.assert_allclose(found[f"detection_{name}"], expected[name], atol=1e-4, err_msg=name)
    config, path = Config().replace(**SETTINGS), tmp_path / "model.tflite"
    tflite.write(content, path, config, LABELS, [(HEIGHT, WIDTH)], "none")
    answer, buffer = LiteRTClient(path).predict(images[0]), io.BytesIO()
    check_varied(answer)
    np.testing.assert_allclose(answer.mask_scores, expected["mask_scores"][0], atol=1e-4)
    Image.fromarray(images[0]).save(buffer, "PNG")
    served = LiteRTRunner(path, 1, 10**6).run([buffer.getvalue(), b"none"])
    np.testing.assert_array_equal(served["detection_mask_scores"], [answer.mask_scores, 0 * answer.mask_scores])


@pytest.mark.slow
def test_int8():
    """The MaskIoU head is among what is rounded."""
    model = build(**tflite.MOBILE_SETTINGS)
    images = np.random.default_rng(1).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    shape = np.array([[HEIGHT, WIDTH]], np.int32)
    content = tflite.convert(model, [(HEIGHT, WIDTH)], "int8", images)
    found = tflite._interpreter(content).get_signature_runner()(images=images, image_shape=shape)
    expected = model({"images": images, "image_shapes": shape})
    shares = found["detection_mask_scores"] / found["detection_scores"]
    assert np.mean(shares) == pytest.approx(float(np.mean(expected["mask_scores"] / expected["scores"])), abs=0.05)
    assert np.ptp(shares) > 0.05


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cascade_ious": (0.5, 0.6)}, "cascade_ious: the host's steps have one box head"),
        ({"mask_scoring": True}, "mask_scoring=True: the graphs have no MaskIoU head; give mask_scoring=False"),
        ({"mask_point_rend": True}, "mask_point_rend=True: the graphs have a mask head alone"),
        ({"soft_nms_sigma": 0.5}, "soft_nms_sigma: the host's steps have NMS with a threshold alone"),
        ({"box_min_size": 10.0}, "box_min_size=10: the host's steps keep small boxes; give box_min_size=0"),
        ({"class_agnostic_nms": True}, "NMS of each class alone; give class_agnostic_nms=False at export"),
    ],
)
def test_the_graphs_for_gpus_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        gpu_graphs.convert(MaskRCNN(**TINY, dtype="float32", **settings), HEIGHT, WIDTH)


def build_points(**settings):
    """A small PointRend model, whose masks have edges."""
    keras.utils.set_random_seed(5)
    widths = {"mask_fc_channels": (16,), "mask_point_channels": (16, 16)}
    model = MaskRCNN(**POINTS | widths | settings)
    rng = np.random.default_rng(0)
    for layer in (model.box_head.class_logits, model.box_head.deltas):
        layer.kernel.assign(rng.normal(0, 0.05, layer.kernel.shape))
    model.mask_head.coarse.kernel.assign(rng.normal(0, 0.3, model.mask_head.coarse.kernel.shape))
    model.mask_head.logits_kernel.assign(rng.normal(0, 0.5, model.mask_head.logits_kernel.shape))
    return model


@pytest.mark.slow
def test_saved_model_of_point_rend(tmp_path):
    model, config = build_points(), Config().replace(**POINTS, min_size=64, max_size=128)
    client = SavedModelClient(export_saved_model(model, config, LABELS, tmp_path / "fruits"))
    image = picture()
    found = Predictor(model, config, LABELS).predict(image)
    assert len(found) > 5 and found.mask_probabilities.shape[1:] == (56, 56)
    assert found.mask_probabilities.std(axis=(1, 2)).max() > 0.05
    assert_same(client.predict(encode(image)), found)


def test_tflite_of_point_rend():
    """Of builtin operators alone, the scatter of the refined cells too."""
    model = build_points(**tflite.MOBILE_SETTINGS)
    images = np.random.default_rng(1).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    shape = np.array([[HEIGHT, WIDTH]], np.int32)
    found = tflite._interpreter(tflite.convert(model, [(HEIGHT, WIDTH)])).get_signature_runner()(
        images=images, image_shape=shape
    )
    expected = np.asarray(model({"images": images, "image_shapes": shape})["masks"])
    assert expected.shape == (1, 20, 56, 56) and expected.std() > 0.05
    # A cell that is as uncertain as another but for rounding may be left for it.
    assert np.mean(np.abs(found["detection_masks"] - expected) > 1e-4) < 1e-4


def test_int8_moves_no_points():
    """Boxes and places in maps stay float: rounded, they would move the points by cells, and a tenth of the mask."""
    model = build_points(**tflite.MOBILE_SETTINGS)
    images = np.random.default_rng(1).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
    whole = tflite.convert(model, [(HEIGHT, WIDTH)])
    content = tflite.quantized(whole, "int8", {tflite.SIGNATURE: [images]}, model.config.backbone, points=True)
    rounded = flatbuffer.read(content)
    (graph,) = rounded.subgraphs
    inside = [
        t for t in graph.tensors if b"/mask_head" in t.name and t.quantization and t.quantization.scale is not None
    ]
    assert inside
    for operator in graph.operators:
        if flatbuffer.operation_name(rounded, operator) in ("RESHAPE", "RELU", "GATHER", "GATHER_ND", "BATCH_MATMUL"):
            for i in (*operator.inputs, *operator.outputs):
                tensor = graph.tensors[i]
                assert b"/mask_head" not in tensor.name or tensor.type != schema.TensorType.INT8, tensor.name
