"""torchvision's numbers on a small model, from a file that it wrote; `make parity` compares whole models."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.parity.compare import Table, relative
from benchmarks.parity.run import compare_detections, compare_losses, detections_of, inputs_of
from kmaskrcnn import MaskRCNN
from kmaskrcnn.results.mask_paste import paste_mask
from kmaskrcnn.weights import write_tensors
from kmaskrcnn.weights.torchvision import load_torchvision, torchvision_settings
from tests.golden.seeded import seeded

GOLDEN = pathlib.Path(__file__).parent / "golden" / "torchvision_tiny.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def part(golden, name):
    return {key.removeprefix(f"{name}/"): value for key, value in golden.items() if key.startswith(f"{name}/")}


@pytest.fixture
def model(golden, tmp_path):
    """The model as a user gets it: from a file of torchvision's tensors, through the importer."""
    tensors = {name: value.astype(np.float32) for name, value in part(golden, "weights").items()}
    for line in golden["seeded"]:
        name, *shape = str(line).split()
        tensors[name] = seeded(name, tuple(map(int, shape)))
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors)
    settings = {"rpn_post_nms_top_k": 40, "max_detections": 20, "frozen_stages": 0}
    model = MaskRCNN(**torchvision_settings(path) | settings)
    load_torchvision(model, path)
    return model


def test_features_are_torchvisions(model, golden):
    dump = part(golden, "inference")
    images, shapes = inputs_of(dump)
    features = model.fpn(model.backbone(model.preprocess(images, shapes)[0]))
    for level in ("P4", "P5", "P6"):
        assert relative(features[level], dump[level]) < 1e-4


def test_detections_are_torchvisions(model, golden):
    dump, table = part(golden, "inference"), Table()
    images, shapes = inputs_of(dump)
    found = model({"images": images, "image_shapes": shapes})
    compare_detections(table, "tiny", "end to end", found, dump)
    assert not table.failed(), table.markdown()
    assert not table.ties, table.ties
    assert [len(dump[f"final_boxes{i}"]) for i in range(2)] == [20, 20]


def test_losses_are_torchvisions(model, golden):
    table = Table()
    compare_losses(table, "tiny", model, part(golden, "training"))
    assert not table.failed(), table.markdown()
    assert len(table.rows) == 6


def test_rounded_boxes_paste_is_torchvisions(golden):
    dump = part(golden, "inference")
    _, shapes = inputs_of(dump)
    for i, (height, width) in enumerate(shapes):
        theirs = detections_of(dump, "final", i)
        expected = np.unpackbits(dump[f"pasted{i}"], axis=-1, count=width).astype(bool)
        for mask, box, pixels in zip(theirs.masks, theirs.boxes, expected, strict=True):
            assert np.sum(paste_mask(mask, box, height, width, "rounded_boxes") != pixels) <= 1e-3 * pixels.size
        assert expected.any()


def test_a_wrong_weight_is_seen(model, golden):
    dump, table = part(golden, "inference"), Table()
    model.rpn_head.deltas.kernel.assign(model.rpn_head.deltas.kernel * 1.02)
    images, shapes = inputs_of(dump)
    compare_detections(
        table, "tiny", "end to end", model({"images": tf.constant(images), "image_shapes": shapes}), dump
    )
    assert table.failed()
