"""matterport's .h5: what its layers compute, its names, and files that do not fit."""

import h5py
import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.weights import WeightsError
from kmaskrcnn.weights.matterport import load_matterport, matterport_settings
from kmaskrcnn.weights.transfer import MisfitError

BLOCKS = {"resnet50": "abc abcd abcdef abc", "resnet101": "abc abcd abcdefghijklmnopqrstuvw abc"}
FPN, RPN, FC, CLASSES = 8, 12, 16, 4  # with the background


def convolutions(backbone):
    """(layer, its normalization or None, kernel shape, width)."""
    yield "conv1", "bn_conv1", (7, 7, 3, 64)
    inputs = 64
    for stage, letters in enumerate(BLOCKS[backbone].split(), 2):
        width = 64 * 2 ** (stage - 2)
        for letter in letters:
            block = f"{stage}{letter}_branch"
            shapes = [("2a", (1, 1, inputs, width)), ("2b", (3, 3, width, width)), ("2c", (1, 1, width, 4 * width))]
            shapes += [("1", (1, 1, inputs, 4 * width))] if letter == "a" else []
            for branch, shape in shapes:
                yield f"res{block}{branch}", f"bn{block}{branch}", shape
            inputs = 4 * width
        yield f"fpn_c{stage}p{stage}", None, (1, 1, inputs, FPN)
        yield f"fpn_p{stage}", None, (3, 3, FPN, FPN)
    yield "rpn_conv_shared", None, (3, 3, FPN, RPN)
    yield "rpn_class_raw", None, (1, 1, RPN, 6)
    yield "rpn_bbox_pred", None, (1, 1, RPN, 12)
    yield "mrcnn_class_conv1", "mrcnn_class_bn1", (7, 7, FPN, FC)
    yield "mrcnn_class_conv2", "mrcnn_class_bn2", (1, 1, FC, FC)
    for i in range(1, 5):
        yield f"mrcnn_mask_conv{i}", f"mrcnn_mask_bn{i}", (3, 3, FPN, FPN)
    yield "mrcnn_mask_deconv", None, (2, 2, FPN, FPN)
    yield "mrcnn_mask", None, (1, 1, FPN, CLASSES)
    yield "mrcnn_class_logits", None, (FC, CLASSES)
    yield "mrcnn_bbox_fc", None, (FC, 4 * CLASSES)


def matterport_state(backbone="resnet50", seed=0):
    random = np.random.default_rng(seed)
    state = {}
    for layer, norm, shape in convolutions(backbone):
        width = shape[-1]
        state[f"{layer}/kernel"] = random.standard_normal(shape, "float32") / np.prod(shape[:-1]) ** 0.5
        state[f"{layer}/bias"] = random.standard_normal(width, "float32")
        if norm:
            for leaf in ("beta", "moving_mean"):
                state[f"{norm}/{leaf}"] = random.standard_normal(width, "float32")
            for leaf in ("gamma", "moving_variance"):
                state[f"{norm}/{leaf}"] = random.uniform(1e-3, 2, width).astype("float32")
    return state


def saved(tmp_path, state, root=""):
    path = tmp_path / "mask_rcnn_coco.h5"
    with h5py.File(path, "w") as file:
        for name, value in state.items():
            layer, leaf = name.split("/")
            outer = "rpn_model" if layer.startswith("rpn_") else layer
            file[f"{root}{outer}/{layer}/{leaf}:0"] = value
        file.create_group(f"{root}input_image")  # layers without weights have empty groups
    return path


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    state = matterport_state()
    path = saved(tmp_path_factory.mktemp("weights"), state)
    model = MaskRCNN(**matterport_settings(path))
    return state, path, model, load_matterport(model, path)


def conv_at_one_place(state, layer, norm, x):
    """x (..., h, w, in) as large as the kernel -> (..., out), with the normalization after it."""
    kernel = state[f"{layer}/kernel"]
    x = np.tensordot(x, kernel, kernel.ndim - 1) + state[f"{layer}/bias"]
    if norm:
        scale = state[f"{norm}/gamma"] / np.sqrt(state[f"{norm}/moving_variance"] + 1e-3)
        x = (x - state[f"{norm}/moving_mean"]) * scale + state[f"{norm}/beta"]
    return x


def test_every_tensor_is_used(opened):
    state, _, model, report = opened
    assert set(report.used) == set(state)
    assert report.unused == report.untouched == ()
    config = model.config
    assert (config.backbone, config.num_classes, config.rpn_channels) == ("resnet50", 3, 12)
    assert config.box_fc_channels == (16, 16)
    assert config.backbone_stride_in_1x1 and config.nms_iou == 0.3


def test_stem_with_bias_and_normalization(opened):
    state, _, model, _ = opened
    x = np.random.default_rng(1).normal(size=(1, 32, 32, 3)).astype("float32")
    expected = conv_at_one_place(state, "conv1", "bn_conv1", x[:, 7:14, 7:14])  # rows 2 * 5 - 3 .. + 7
    backbone = model.backbone
    found = backbone.get_layer("bn1")(backbone.get_layer("conv1")(np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))))
    np.testing.assert_allclose(np.asarray(found)[:, 5, 5], expected, rtol=1e-4, atol=1e-5)


def test_rpn_is_a_softmax_of_two(opened):
    state, _, model, _ = opened
    x = np.random.default_rng(2).normal(size=(1, 3, 3, FPN)).astype("float32")
    hidden = np.maximum(conv_at_one_place(state, "rpn_conv_shared", None, x), 0)[:, None, None]
    scores = conv_at_one_place(state, "rpn_class_raw", None, hidden).reshape(3, 2)
    object_score = np.exp(scores[:, 1]) / np.exp(scores).sum(1)
    offsets = conv_at_one_place(state, "rpn_bbox_pred", None, hidden).reshape(3, 4) * [0.1, 0.1, 0.2, 0.2]
    logits, deltas = model.rpn_head(x)
    center = slice(4 * 3, 5 * 3)
    # Its ratios 0.5, 1, 2 are width / height, ours height / width.
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(logits)[0, center])), object_score[::-1], rtol=1e-4)
    np.testing.assert_allclose(np.asarray(deltas)[0, center], offsets[::-1], rtol=1e-3, atol=1e-5)


def test_box_head_of_convolutions(opened):
    state, _, model, _ = opened
    x = np.random.default_rng(3).normal(size=(2, 7, 7, FPN)).astype("float32")
    hidden = np.maximum(conv_at_one_place(state, "mrcnn_class_conv1", "mrcnn_class_bn1", x), 0)[:, None, None]
    hidden = np.maximum(conv_at_one_place(state, "mrcnn_class_conv2", "mrcnn_class_bn2", hidden), 0)
    scores = conv_at_one_place(state, "mrcnn_class_logits", None, hidden)
    offsets = conv_at_one_place(state, "mrcnn_bbox_fc", None, hidden).reshape(2, CLASSES, 4)
    logits, deltas = model.box_head(x)
    np.testing.assert_allclose(logits, scores, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(deltas, offsets, rtol=1e-3, atol=1e-4)


def test_mask_head(opened):
    state, _, model, _ = opened
    x = np.random.default_rng(4).normal(size=(1, 14, 14, FPN)).astype("float32")
    found = np.asarray(model.mask_head(x, np.array([2], "int32")))[0]
    for i in range(1, 5):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2)).transpose(0, 1, 2, 4, 5, 3)
        x = np.maximum(conv_at_one_place(state, f"mrcnn_mask_conv{i}", f"mrcnn_mask_bn{i}", windows), 0)
    x = np.einsum("yxi,abei->yaxbe", x[0], state["mrcnn_mask_deconv/kernel"]).reshape(28, 28, FPN)
    x = np.maximum(x + state["mrcnn_mask_deconv/bias"], 0)
    expected = x @ state["mrcnn_mask/kernel"][0, 0, :, 2] + state["mrcnn_mask/bias"][2]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_resnet101_and_files_of_a_whole_model(tmp_path):
    state = {name: np.zeros(value.shape, "float32") for name, value in matterport_state("resnet101").items()}
    path = saved(tmp_path, state, root="model_weights/")
    model = MaskRCNN(**matterport_settings(path))
    assert model.config.backbone == "resnet101"
    assert set(load_matterport(model, path).used) == set(state)


def test_misfits_name_matterports_tensors(opened, tmp_path):
    state, _, model, _ = opened
    before = model.box_head.fcs[0].kernel.numpy()
    broken = {**state, "mrcnn_keypoint/bias": np.zeros(3, "float32")}
    del broken["bn4c_branch2b/gamma"]
    with pytest.raises(MisfitError) as caught:
        load_matterport(model, saved(tmp_path, broken))
    assert caught.value.missing == ("bn4c_branch2b/gamma",)
    assert caught.value.left_over == ("mrcnn_keypoint/bias",)
    np.testing.assert_array_equal(model.box_head.fcs[0].kernel.numpy(), before)


def test_other_classes_only_on_request(opened):
    _, path, _, _ = opened
    model = MaskRCNN(**matterport_settings(path) | {"num_classes": 1})
    with pytest.raises(MisfitError, match="the classes differ"):
        load_matterport(model, path)
    assert len(load_matterport(model, path, new_classes=True).untouched) == 6


def test_files_of_other_kinds(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.h5: No such file"):
        matterport_settings(tmp_path / "none.h5")
    (tmp_path / "page.h5").write_text("<html>")
    with pytest.raises(WeightsError, match=r"page\.h5: truncated, damaged or not an HDF5"):
        matterport_settings(tmp_path / "page.h5")
    with pytest.raises(WeightsError, match="it has no fpn_p2/bias"):
        matterport_settings(saved(tmp_path, {"dense/kernel": np.zeros((2, 2))}))
