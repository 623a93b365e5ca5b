"""Detectron2's PointRend models: their mask heads give what the tensors in PyTorch's layout give."""

import pickle

import numpy as np
import pytest
import yaml

from kmaskrcnn import MaskRCNN
from kmaskrcnn.weights import WeightsError, read_tensors, write_tensors
from kmaskrcnn.weights.convert import import_file
from kmaskrcnn.weights.detectron2 import detectron2_settings, load_detectron2
from kmaskrcnn.weights.detectron2_config import read_source_config
from kmaskrcnn.weights.to_state_dict import state_dict, write_state_dict
from tests.ops.test_points import hat_sample
from tests.weights.state_dicts import cascade_state, detectron2_state, point_rend_state, torchvision_state
from tests.weights.test_architectures import config_tree
from tests.weights.test_detectron2 import opened, saved

COARSE, POINT = "roi_heads.mask_head.coarse_head", "roi_heads.mask_head.point_head"


def applied(state, name, x):
    """A linear layer, or a convolution of side 1, over the first axis of x."""
    weight = state[f"{name}.weight"].astype(np.float64)
    return np.tensordot(weight.reshape(weight.shape[:2]), x, 1) + state[f"{name}.bias"].reshape(-1, *[1] * (x.ndim - 1))


def torch_coarse(state, pooled):
    """(C, 14, 14) -> (classes, 7, 7), everything channels first."""
    x = pooled
    if f"{COARSE}.reduce_channel_dim_conv.weight" in state:
        x = np.maximum(applied(state, f"{COARSE}.reduce_channel_dim_conv", x), 0)
    kernel = state[f"{COARSE}.reduce_spatial_dim_conv.weight"].astype(np.float64)
    windows = x.reshape(len(x), 7, 2, 7, 2).transpose(1, 3, 0, 2, 4)  # (7, 7, C, 2, 2)
    x = np.tensordot(kernel, windows, ((1, 2, 3), (2, 3, 4)))
    x = np.maximum(x + state[f"{COARSE}.reduce_spatial_dim_conv.bias"][:, None, None], 0).reshape(-1)
    for fc in ("fc1", "fc2"):
        x = np.maximum(applied(state, f"{COARSE}.{fc}", x), 0)
    return applied(state, f"{COARSE}.prediction", x).reshape(3, 7, 7)


def torch_points(state, fine, coarse):
    """(C, P) and (classes, P) -> (classes, P)."""
    x = np.concatenate([fine, coarse])
    for fc in ("fc1", "fc2"):
        x = np.concatenate([np.maximum(applied(state, f"{POINT}.{fc}", x), 0), coarse])
    return applied(state, f"{POINT}.predictor", x)


@pytest.mark.parametrize(("width", "class_agnostic"), [(4, False), (8, True)])
def test_both_heads_give_what_the_tensors_give(tmp_path, width, class_agnostic):
    state = point_rend_state(width, class_agnostic)
    model, report = opened(tmp_path, state)
    assert report.unused == report.untouched == ()
    config = model.config
    assert config.mask_point_rend and (config.mask_conv_channels, config.mask_pool_size) == ((width,), 14)
    assert (config.mask_fc_channels, config.mask_point_channels) == ((12, 10), (6, 5))
    assert config.mask_class_agnostic == class_agnostic and config.mask_target_samples == 0
    rng = np.random.default_rng(0)
    features, box = rng.normal(size=(1, 12, 12, 8)).astype(np.float32), np.array([5, 6, 40, 30], np.float32)
    places, points = (np.mgrid[:14, :14].reshape(2, -1).T + 0.5) / 14, rng.random((9, 2)).astype(np.float32)

    def fine(at):
        return hat_sample(features[0], (box[:2] + at * (box[2:] - box[:2])) / 4).T

    coarse = torch_coarse(state, fine(places).reshape(8, 14, 14))
    rois = box[None], np.array([2], np.int32), np.array([0], np.int32)
    found = np.asarray(model.mask_head.coarse_logits({"P2": features}, rois[0], rois[2]))
    np.testing.assert_allclose(found[0].transpose(2, 0, 1), coarse, rtol=1e-4, atol=1e-4 * np.abs(coarse).max())
    expected = torch_points(state, fine(points), hat_sample(coarse.transpose(1, 2, 0), points * 7).T)
    logits = model.mask_head.point_logits({"P2": features}, *rois, found, points[None])
    row = expected[0 if class_agnostic else 1]
    np.testing.assert_allclose(logits[0], row, rtol=1e-4, atol=1e-4 * np.abs(row).max())


def test_it_leaves_for_detectron2_alone_bit_for_bit(tmp_path):
    for width in (4, 8, 32):  # the kernel of the last is square
        state = point_rend_state(width)
        model, _ = opened(tmp_path, state)
        notes = write_state_dict(model, tmp_path / f"{width}.pth", "detectron2")
        assert "mask_point_rend is True here and False there" in notes
        back = read_tensors(tmp_path / f"{width}.pth")
        assert set(back) == set(state)
        for name, value in state.items():
            np.testing.assert_array_equal(back[name], value, strict=True, err_msg=name)
    with pytest.raises(WeightsError, match="torchvision has no PointRend: export it for detectron2"):
        state_dict(model, "torchvision")


def test_the_names_of_the_first_version(tmp_path):
    state = point_rend_state()
    expected, _ = opened(tmp_path, state)
    old = {}
    for name, value in state.items():
        name = name.replace(f"{COARSE}.fc", f"{COARSE}.coarse_mask_fc").replace(COARSE, "roi_heads.mask_coarse_head")
        old[name.replace(POINT, "roi_heads.mask_point_head")] = value
    assert not old.keys() & {name for name in state if "mask_head" in name}
    model, report = opened(tmp_path, old)
    assert report.unused == report.untouched == ()
    for a, b in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_other_classes_keep_the_coarse_layers(tmp_path):
    path = saved(tmp_path, point_rend_state())
    model = MaskRCNN(**detectron2_settings(path) | {"num_classes": 7})
    untouched = load_detectron2(model, path, new_classes=True).untouched
    assert {name.split("/")[1] for name in untouched if name.startswith("mask_head")} == {
        *("coarse", "point_fc1", "point_fc2", "logits_kernel", "logits_bias")
    }


def test_files_that_do_not_fit_are_refused(tmp_path):
    state = point_rend_state()
    state[f"{POINT}.fc2.weight"] = state[f"{POINT}.fc2.weight"][:, :-1]
    with pytest.raises(WeightsError, match=r"point_head\.fc2\.weight of shape \(5, 8, 1\) does not fit"):
        detectron2_settings(saved(tmp_path, state))
    state = {name: value for name, value in point_rend_state().items() if "coarse_head.fc" not in name}
    with pytest.raises(WeightsError, match="a PointRend model without fully connected layers"):
        detectron2_settings(saved(tmp_path, state))
    implicit = detectron2_state() | {"roi_heads.mask_head.parameter_head.fc1.weight": np.zeros((4, 4), "float32")}
    with pytest.raises(WeightsError, match="is an Implicit PointRend model"):
        detectron2_settings(saved(tmp_path, implicit))


@pytest.mark.parametrize("state", [torchvision_state, detectron2_state, cascade_state])
def test_other_files_have_no_points(tmp_path, state):
    with pytest.raises(WeightsError, match="has no PointRend mask heads; convert it without mask_point_rend") as caught:
        import_file(saved(tmp_path, state()), mask_point_rend=True)
    assert "\n" not in str(caught.value)


def test_a_faster_rcnn_takes_fresh_ones(tmp_path):
    state = {name: value for name, value in torchvision_state().items() if "mask" not in name}
    write_tensors(tmp_path / "w.safetensors", state)
    imported = import_file(tmp_path / "w.safetensors", fresh_masks=True, mask_point_rend=True)
    assert imported.report.untouched and all("mask_head" in path for path in imported.report.untouched)


def test_the_source_config(tmp_path):
    tree, path = config_tree(), tmp_path / "config.yaml"
    tree["MODEL"]["ROI_MASK_HEAD"] |= {
        "NAME": "PointRendMaskHead",
        "IN_FEATURES": ["p2"],
        "OUTPUT_SIDE_RESOLUTION": 7,
        "POINT_HEAD_ON": True,
    }
    tree["MODEL"]["POINT_HEAD"] = point = {
        "NAME": "StandardPointHead",
        "IN_FEATURES": ["p2"],
        "COARSE_PRED_EACH_LAYER": True,
        "CLS_AGNOSTIC_MASK": True,
        "SUBDIVISION_STEPS": 4,
        "SUBDIVISION_NUM_POINTS": 784,
    }
    path.write_text(yaml.safe_dump(tree))
    config = import_file(saved(tmp_path, point_rend_state(4, True)), source_config=path).config.model
    assert (config.mask_point_rend, config.mask_class_agnostic, config.mask_subdivisions) == (True, True, 4)
    tree["MODEL"]["ROI_HEADS"]["NAME"], tree["MODEL"]["ROI_MASK_HEAD"]["NAME"] = "PointRendROIHeads", "CoarseMaskHead"
    path.write_text(yaml.safe_dump(tree))
    assert read_source_config(path).settings["mask_point_rend"]
    point["SUBDIVISION_NUM_POINTS"] = 100
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(WeightsError, match="SUBDIVISION_NUM_POINTS is 100 and not 784"):
        read_source_config(path)


def test_pickles_are_found_to_be_detectron2s(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": point_rend_state()}))
    assert import_file(tmp_path / "x.pkl").model.mask_head.side == 224
