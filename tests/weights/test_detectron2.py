"""Detectron2's pickles: the same network as torchvision's state dict, once its conventions are undone."""

import os
import pickle

import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.weights import WeightsError, write_tensors
from kmaskrcnn.weights.detectron2 import detectron2_settings, load_detectron2
from kmaskrcnn.weights.torchvision import load_torchvision
from kmaskrcnn.weights.transfer import MisfitError
from tests.weights.state_dicts import cascade_state, detectron2_state, torchvision_state


def saved(tmp_path, state, name="model_final.pkl"):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    return path


def opened(tmp_path, state, **options):
    path = saved(tmp_path, state)
    model = MaskRCNN(**detectron2_settings(path))
    return model, load_detectron2(model, path, **options)


def cell_anchors(sizes=(32, 64, 128, 256, 512), ratios=(0.5, 1.0, 2.0)):
    """As Detectron2 keeps them: (x0, y0, x1, y1) around 0, ratios of height to width."""
    result = {}
    for i, size in enumerate(sizes):
        width = np.sqrt(size**2 / np.array(ratios))
        height = np.array(ratios) * width
        cell = np.stack([-width, -height, width, height], -1) / 2
        result[f"proposal_generator.anchor_generator.cell_anchors.{i}"] = cell.astype("float32")
    return result


@pytest.mark.parametrize("v2", [False, True], ids=["fpn", "lsj"])
def test_equals_the_same_network_saved_by_torchvision(tmp_path, v2):
    model, report = opened(tmp_path, detectron2_state(caffe=False, v2=v2))
    assert report.unused == report.untouched == ()
    assert model.config.roi_aligned and not model.config.round_anchors
    assert model.config.backbone_norm == ("bn" if v2 else "frozen_bn")
    assert model.config.rpn_conv_layers == (2 if v2 else 1)
    assert model.config.num_classes == 3
    theirs = torchvision_state(v2=v2)
    # The background has neither boxes nor masks there.
    theirs["roi_heads.box_predictor.bbox_pred.weight"][:4] = 0
    theirs["roi_heads.box_predictor.bbox_pred.bias"][:4] = 0
    theirs["roi_heads.mask_predictor.mask_fcn_logits.weight"][:1] = 0
    theirs["roi_heads.mask_predictor.mask_fcn_logits.bias"][:1] = 0
    write_tensors(tmp_path / "tv.safetensors", theirs)
    expected = MaskRCNN(**{k: v for k, v in model.get_config().items() if k not in ("name", "dtype")})
    load_torchvision(expected, tmp_path / "tv.safetensors")
    for a, b in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)


def test_msra_backbones_are_recognized(tmp_path):
    path = saved(tmp_path, detectron2_state(backbone="resnet50"))
    settings = detectron2_settings(path)
    assert settings["backbone_stride_in_1x1"] is True
    assert settings["image_mean"] == (123.675, 116.28, 103.53)
    assert settings["image_std"] == (1.0, 1.0, 1.0)
    model = MaskRCNN(**settings)
    assert model.backbone.get_layer("layer2_0_conv1").strides == (2, 2)
    assert load_detectron2(model, path).unused == ()
    settings = detectron2_settings(saved(tmp_path, detectron2_state(caffe=False, backbone="resnet50")))
    assert settings["backbone_stride_in_1x1"] is False
    assert settings["image_std"] == (58.395, 57.12, 57.375)


def test_stored_pixels_and_anchors_count(tmp_path):
    state = detectron2_state(caffe=False) | cell_anchors(sizes=(16, 32, 64, 128, 300), ratios=(0.5, 1.0, 3.0))
    state |= {"pixel_mean": np.array([[[103.5]], [[116.25]], [[123.75]]]), "pixel_std": np.full((3, 1, 1), 2.0)}
    model, report = opened(tmp_path, state)
    assert model.config.image_mean == (123.75, 116.25, 103.5)
    assert model.config.image_std == (2.0, 2.0, 2.0)
    assert model.config.anchor_sizes == (16.0, 32.0, 64.0, 128.0, 300.0)
    assert model.config.anchor_aspect_ratios == (0.5, 1.0, 3.0)
    assert len(report.unused) == 7
    bgr = model.backbone.get_layer("conv1").kernel.numpy()
    state["pixel_mean"] = state["pixel_mean"][::-1]
    model, _ = opened(tmp_path, state)
    assert model.config.image_mean == (123.75, 116.25, 103.5)
    np.testing.assert_array_equal(model.backbone.get_layer("conv1").kernel.numpy()[:, :, ::-1], bgr)


def test_anchors_of_another_design_are_refused(tmp_path):
    state = detectron2_state() | cell_anchors()
    state["proposal_generator.anchor_generator.cell_anchors.2"] *= [[1], [2], [3]]
    with pytest.raises(WeightsError, match="not of one size per level"):
        detectron2_settings(saved(tmp_path, state))


def test_scores_follow_the_classes(tmp_path):
    """Detectron2's class 0 is ours 1, and its last is the background."""
    state = detectron2_state()
    state["roi_heads.box_predictor.cls_score.weight"][:] = 0
    state["roi_heads.box_predictor.cls_score.bias"][:] = [10, 20, 30, 40]
    model, _ = opened(tmp_path, state)
    logits, deltas = model.box_head(np.ones((1, 7, 7, 8), "float32"))
    np.testing.assert_array_equal(np.asarray(logits)[0], [40, 10, 20, 30])
    assert not np.asarray(deltas)[0, 0].any() and np.asarray(deltas)[0, 1:].all()


def class_agnostic(state):
    """The same with one box and one mask for all classes."""
    rows = {"roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_head.predictor": 1}
    return {name: value[: rows.get(name.rpartition(".")[0])] for name, value in state.items()}


def test_class_agnostic_heads(tmp_path):
    state = class_agnostic(detectron2_state())
    model, report = opened(tmp_path, state)
    assert report.unused == report.untouched == ()
    assert model.config.box_class_agnostic and model.config.mask_class_agnostic
    # Detectron2's are dx, dy, dw, dh.
    rows = state["roi_heads.box_predictor.bbox_pred.weight"][[1, 0, 3, 2]]
    np.testing.assert_array_equal(model.box_head.deltas.kernel.numpy(), rows.T)
    mask = state["roi_heads.mask_head.predictor.weight"][:, :, 0, 0]
    np.testing.assert_array_equal(model.mask_head.logits_kernel.numpy(), mask)
    # Their last layers but the scores serve other classes too.
    path = saved(tmp_path, state)
    other = MaskRCNN(**detectron2_settings(path) | {"num_classes": 7})
    assert load_detectron2(other, path, new_classes=True).untouched == (
        "box_head/class_logits/kernel",
        "box_head/class_logits/bias",
    )


def test_of_one_class_both_kinds_are_the_same(tmp_path):
    path = saved(tmp_path, detectron2_state(classes=1))
    model, agnostic = (MaskRCNN(**detectron2_settings(path) | {"box_class_agnostic": k}) for k in (False, True))
    assert not MaskRCNN(**detectron2_settings(path)).config.box_class_agnostic
    for each in (model, agnostic):
        load_detectron2(each, path)
    found, expected = (m.box_head(np.ones((1, 7, 7, 8), "float32"))[1] for m in (agnostic, model))
    np.testing.assert_array_equal(found[:, 0], expected[:, 1])


def test_a_cascade_has_a_box_head_per_stage(tmp_path):
    state = cascade_state()
    model, report = opened(tmp_path, state)
    assert report.unused == report.untouched == ()
    assert model.config.cascade_ious == (0.5, 0.6, 0.7)
    for stage, head in enumerate((model.box_head, *model.cascade.heads)):
        scores = state[f"roi_heads.box_predictor.{stage}.cls_score.weight"]
        np.testing.assert_array_equal(head.class_logits.kernel.numpy(), np.roll(scores, 1, axis=0).T)
        rows = state[f"roi_heads.box_predictor.{stage}.bbox_pred.weight"][[1, 0, 3, 2]]
        np.testing.assert_array_equal(head.deltas.kernel.numpy(), rows.T)
        fc2 = state[f"roi_heads.box_head.{stage}.fc2.weight"]
        np.testing.assert_array_equal(head.fcs[1].kernel.numpy(), fc2.T)
    del state["roi_heads.box_head.2.fc1.bias"]
    path = saved(tmp_path, state)
    with pytest.raises(MisfitError) as caught:
        load_detectron2(MaskRCNN(**detectron2_settings(path)), path)
    assert caught.value.missing == ("roi_heads.box_head.2.fc1.bias",)
    path = saved(tmp_path, cascade_state(2))
    other = MaskRCNN(**detectron2_settings(path) | {"num_classes": 7})
    assert other.config.cascade_ious == (0.5, 0.6)
    assert len(load_detectron2(other, path, new_classes=True).untouched) == 2 * 2 + 2
    with pytest.raises(WeightsError, match="a Cascade R-CNN of 6 stages; 2 to 5 can be read"):
        detectron2_settings(saved(tmp_path, cascade_state(6)))


def test_misfits_name_detectron2s_tensors(tmp_path):
    state = detectron2_state()
    del state["proposal_generator.rpn_head.anchor_deltas.bias"]
    state["roi_heads.extra_head.conv.weight"] = np.zeros(3, "float32")
    path = saved(tmp_path, state)
    with pytest.raises(MisfitError) as caught:
        load_detectron2(MaskRCNN(**detectron2_settings(path)), path)
    assert caught.value.missing == ("proposal_generator.rpn_head.anchor_deltas.bias",)
    assert caught.value.left_over == ("roi_heads.extra_head.conv.weight",)


def test_other_classes_only_on_request(tmp_path):
    path = saved(tmp_path, detectron2_state())
    model = MaskRCNN(**detectron2_settings(path) | {"num_classes": 7})
    with pytest.raises(MisfitError, match="the classes differ"):
        load_detectron2(model, path)
    assert len(load_detectron2(model, path, new_classes=True).untouched) == 6


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_hostile_pickle_runs_nothing(tmp_path):
    marker = tmp_path / "ran"
    state = {**detectron2_state(), "pixel_mean": _Touch(marker)}
    path = saved(tmp_path, state)
    with pytest.raises(WeightsError, match=r"model_final\.pkl: refused, its pickle names \w+\.system"):
        detectron2_settings(path)
    with pytest.raises(WeightsError, match="refused"):
        load_detectron2(MaskRCNN(backbone="resnet18", box_fc_channels=(8,)), path)
    assert not marker.exists()
    # The payload does work where it is trusted, so the check above could have failed.
    pickle.loads(path.read_bytes())
    assert marker.exists()
