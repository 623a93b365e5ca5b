"""torchvision's state dicts: every tensor in its place, once, and files that do not fit."""

import re

import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.weights import WeightsError, write_tensors
from kmaskrcnn.weights.torchvision import load_torchvision, torchvision_settings
from kmaskrcnn.weights.transfer import MisfitError
from tests.weights.state_dicts import torchvision_state

V2 = {"v2": True}
MOBILE = {"backbone": "mobilenet_v2"}


def saved(tmp_path, state):
    path = tmp_path / "model.safetensors"
    write_tensors(path, state)
    return path


def opened(tmp_path, state):
    path = saved(tmp_path, state)
    model = MaskRCNN(**torchvision_settings(path))
    return model, load_torchvision(model, path)


@pytest.mark.parametrize("options", [{}, V2, MOBILE], ids=["v1", "v2", "mobilenet"])
def test_every_tensor_is_used_once_and_sizes_are_found(tmp_path, options):
    state = torchvision_state(**options)
    model, report = opened(tmp_path, state)
    counted = {name for name in state if not name.endswith("num_batches_tracked")}
    assert set(report.used) == counted
    assert report.unused == report.untouched == ()
    weights = [w for w in model.weights if "seed" not in w.path]
    assert len(weights) == len(counted)
    assert sum(np.prod(w.shape) for w in weights) == sum(state[name].size for name in counted)
    # Values move but are never changed, so their multiset stays.
    ours = np.sort(np.concatenate([np.ravel(w.numpy()) for w in weights]))
    np.testing.assert_array_equal(ours, np.sort(np.concatenate([state[name].ravel() for name in counted])))
    v2 = options == V2
    assert model.config.num_classes == 3
    assert (
        model.config.backbone_norm
        == model.config.fpn_norm.replace("none", "frozen_bn")
        == ("bn" if v2 else "frozen_bn")
    )
    assert model.config.box_conv_channels == ((8,) * 4 if v2 else ())
    assert model.config.box_fc_channels == ((16,) if v2 else (16, 16))
    assert model.config.rpn_conv_layers == (2 if v2 else 1)
    assert model.config.round_anchors and not model.config.roi_aligned


def test_heads_compute_what_torch_does(tmp_path):
    """Each head against its formula on PyTorch's own layouts: channels first, offsets (dx, dy, dw, dh)."""
    state = torchvision_state()
    model, _ = opened(tmp_path, state)
    random = np.random.default_rng(0)
    pooled = random.normal(size=(2, 7, 7, 8)).astype("float32")
    x = pooled.transpose(0, 3, 1, 2).reshape(2, -1)
    for name in ("fc6", "fc7"):
        x = np.maximum(x @ state[f"roi_heads.box_head.{name}.weight"].T + state[f"roi_heads.box_head.{name}.bias"], 0)
    predictor = "roi_heads.box_predictor."
    scores = x @ state[f"{predictor}cls_score.weight"].T + state[f"{predictor}cls_score.bias"]
    offsets = (x @ state[f"{predictor}bbox_pred.weight"].T + state[f"{predictor}bbox_pred.bias"]).reshape(2, 4, 4)
    logits, deltas = model.box_head(pooled)
    np.testing.assert_allclose(logits, scores, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.asarray(deltas)[..., [1, 0, 3, 2]], offsets, rtol=1e-4, atol=1e-3)

    features = random.normal(size=(1, 1, 1, 8)).astype("float32")  # one cell: only the kernel's center counts
    hidden = features[0, 0, 0] @ state["rpn.head.conv.0.0.weight"][:, :, 1, 1].T + state["rpn.head.conv.0.0.bias"]
    hidden = np.maximum(hidden, 0)
    expected = hidden @ state["rpn.head.bbox_pred.weight"][:, :, 0, 0].T + state["rpn.head.bbox_pred.bias"]
    _, deltas = model.rpn_head(features)
    np.testing.assert_allclose(np.asarray(deltas)[0][:, [1, 0, 3, 2]], expected.reshape(3, 4), rtol=1e-4, atol=1e-5)

    cells = np.zeros((1, 14, 14, 8), "float32")
    for conv in model.mask_head.convs:  # so that the deconvolution sees an even field
        conv.kernel.assign(np.zeros(conv.kernel.shape))
    x = np.maximum(state["roi_heads.mask_head.3.0.bias"], 0)
    x = np.einsum("i,iohw->hwo", x, state["roi_heads.mask_predictor.conv5_mask.weight"])
    x = np.maximum(x + state["roi_heads.mask_predictor.conv5_mask.bias"], 0)
    name = "roi_heads.mask_predictor.mask_fcn_logits"
    expected = x @ state[f"{name}.weight"][2, :, 0, 0] + state[f"{name}.bias"][2]
    found = np.asarray(model.mask_head(cells, np.array([2], "int32")))[0]
    np.testing.assert_allclose(found, np.tile(expected, (14, 14)), rtol=1e-4, atol=1e-5)


def test_names_from_before_0_13(tmp_path):
    state = torchvision_state()
    old = {}
    for name, value in state.items():
        name = re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", name).replace("head.conv.0.0.", "head.conv.")
        name = re.sub(r"mask_head\.(\d)\.0", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}", name)
        old[name] = value
    assert len(set(old) - set(state)) == 26
    new_model, _ = opened(tmp_path, state)
    model, _ = opened(tmp_path, old)
    for a, b in zip(model.weights, new_model.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_misfits_list_names_and_leave_the_model_alone(tmp_path):
    state = torchvision_state()
    model, _ = opened(tmp_path, state)
    before = [w.numpy() for w in model.weights]
    broken = {name: value + 1 for name, value in state.items()}
    del broken["rpn.head.bbox_pred.bias"], broken["backbone.body.layer3.1.bn2.weight"]
    broken["rpn.head.centerness.weight"] = np.zeros(3, "float32")
    broken["roi_heads.box_head.fc7.weight"] = np.zeros((16, 17), "float32")
    broken["backbone.body.bn1.bias"] = np.full(64, np.nan, "float32")
    with pytest.raises(MisfitError) as caught:
        load_torchvision(model, saved(tmp_path, broken))
    assert caught.value.missing == ("backbone.body.layer3.1.bn2.weight", "rpn.head.bbox_pred.bias")
    assert caught.value.left_over == ("rpn.head.centerness.weight",)
    assert "2 tensors are missing" in str(caught.value) and "rpn.head.centerness.weight" in str(caught.value)
    assert re.search(r"fc7\.weight of shape \(16, 17\) does not fit .* \(16, 16\)", "\n".join(caught.value.misshapen))
    assert "backbone.body.bn1.bias holds values that are not finite" in caught.value.misshapen
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


def test_other_classes_only_on_request(tmp_path):
    state = torchvision_state()
    path = saved(tmp_path, state)
    model = MaskRCNN(**torchvision_settings(path) | {"num_classes": 5})
    last = model.box_head.class_logits.kernel.numpy()
    with pytest.raises(MisfitError, match="the classes differ: ask for new classes"):
        load_torchvision(model, path)
    report = load_torchvision(model, path, new_classes=True)
    assert len(report.untouched) == 6
    assert len(report.used) == len(state) - 6
    assert set(report.unused) == {n for n in state if re.search("cls_score|box_predictor.bbox_pred|mask_fcn_log", n)}
    assert "random, to be trained: box_head/class_logits/kernel" in str(report)
    np.testing.assert_array_equal(model.box_head.class_logits.kernel.numpy(), last)
    np.testing.assert_array_equal(model.box_head.fcs[1].kernel.numpy(), state["roi_heads.box_head.fc7.weight"].T)


def test_a_classifier_left_in_the_backbone_is_named(tmp_path):
    state = torchvision_state() | {"backbone.body.fc.weight": np.zeros((10, 512), "float32")}
    _, report = opened(tmp_path, state)
    assert report.unused == ("backbone.body.fc.weight",)


def test_the_published_files_epsilon_of_zero(tmp_path):
    state = torchvision_state()
    state["backbone.body.bn1.running_var"] = np.geomspace(1e-45, 1, 64).astype("float32")
    state["backbone.body.bn1.running_var"][5] = 0
    path = saved(tmp_path, state)
    model = MaskRCNN(**torchvision_settings(path))
    load_torchvision(model, path, norm_epsilon=0.0)
    norm = model.backbone.get_layer("bn1")
    variance = state["backbone.body.bn1.running_var"].astype("float64")
    scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy().astype("float64") + norm.epsilon)
    alive = variance > 0
    expected = state["backbone.body.bn1.weight"][alive] / np.sqrt(variance[alive])
    np.testing.assert_allclose(scale[alive], expected, rtol=1e-5)
    assert np.isfinite(scale).all()


def test_files_of_other_networks(tmp_path):
    path = saved(tmp_path, {"backbone.body.layer1.0.conv1.weight": np.zeros((64, 64, 3, 3), "float32")})
    with pytest.raises(WeightsError, match=r"model\.safetensors: not a supported backbone"):
        torchvision_settings(path)
    state = {n: v for n, v in torchvision_state().items() if not n.startswith("roi_heads")}
    with pytest.raises(WeightsError, match=r"it has no roi_heads\.box_predictor\.cls_score\.weight"):
        torchvision_settings(saved(tmp_path, state))


def test_a_model_is_no_larger_than_its_file(tmp_path):
    """Shapes of tensors without elements, or that contradict each other, declare widths that no memory holds."""
    for name, shape in (
        ("roi_heads.mask_head.0.0.weight", (1 << 30, 0, 3, 3)),
        ("roi_heads.mask_head.0.0.weight", (100_000, 1, 1, 1)),
        ("backbone.fpn.layer_blocks.0.0.weight", (100_000, 1, 1, 1)),
        ("roi_heads.box_head.fc7.weight", (100_000, 1)),
        ("roi_heads.box_predictor.cls_score.weight", (0, 1 << 40)),
    ):
        write_tensors(tmp_path / "w.safetensors", torchvision_state() | {name: np.zeros(shape, "float32")})
        with pytest.raises(WeightsError, match=r"w\.safetensors: .*(no elements|does not fit the other tensors)"):
            torchvision_settings(tmp_path / "w.safetensors")
