"""The way back: what was imported leaves bit for bit, as files that PyTorch opens."""

import pickle

import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.weight_files.writer import write_pth
from kmaskrcnn.weights import WeightsError, read_tensors, write_tensors
from kmaskrcnn.weights.convert import import_file
from kmaskrcnn.weights.to_state_dict import state_dict, write_state_dict
from tests.weights.state_dicts import cascade_state, detectron2_state, torchvision_state
from tests.weights.test_detectron2 import class_agnostic


@pytest.mark.parametrize(("backbone", "v2"), [("resnet18", True), ("mobilenet_v2", False)])
def test_torchvision_round_trip_is_bit_equal(tmp_path, backbone, v2):
    state = torchvision_state(backbone=backbone, v2=v2)
    write_tensors(tmp_path / "in.safetensors", state)
    write_state_dict(import_file(tmp_path / "in.safetensors").model, tmp_path / "out.pth", "torchvision")
    back = read_tensors(tmp_path / "out.pth")
    assert set(back) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    with pytest.raises(WeightsError, match=r"out\.pth: already exists"):
        write_pth(tmp_path / "out.pth", state)


def test_detectron2_round_trip_is_bit_equal(tmp_path):
    state = detectron2_state()
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"model": state}))
    model = import_file(tmp_path / "in.pkl").model
    notes = write_state_dict(model, tmp_path / "out.pth", "detectron2")
    assert "image_std, to be set there: 1,1,1" in notes
    back = read_tensors(tmp_path / "out.pth")
    assert set(back) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, strict=True, err_msg=name)
    stem = "backbone.bottom_up.stem.conv1.weight"
    np.testing.assert_array_equal(state_dict(model, "detectron2", rgb=True)[stem], state[stem][:, ::-1])


@pytest.mark.parametrize("kind", ["heads", "cascade"])
def test_class_agnostic_heads_and_cascades_leave_for_detectron2_alone(tmp_path, kind):
    state = cascade_state() if kind == "cascade" else class_agnostic(detectron2_state())
    (tmp_path / "in.pkl").write_bytes(pickle.dumps({"model": state}))
    model = import_file(tmp_path / "in.pkl").model
    notes = write_state_dict(model, tmp_path / "out.pth", "detectron2")
    assert "box_class_agnostic is True here and False there" in notes
    back = read_tensors(tmp_path / "out.pth")
    assert set(back) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, strict=True, err_msg=name)
    assert ("cascade_ious is (0.5, 0.6, 0.7) here and () there" in notes) == (kind == "cascade")
    with pytest.raises(WeightsError, match=r"torchvision has no (class-agnostic heads|Cascade R-CNN)"):
        state_dict(model, "torchvision")


@pytest.mark.parametrize("target", ["torchvision", "detectron2"])
def test_what_the_targets_lack_is_left_out_and_told(tmp_path, target):
    small = {"backbone": "resnet18", "fpn_channels": 8, "box_fc_channels": (8,), "mask_conv_channels": (8,)}
    model = MaskRCNN(**small, mask_scoring=True, soft_nms_sigma=0.5)
    notes = write_state_dict(model, tmp_path / "out.pth", target)
    assert "mask_scoring is True here and False there" in notes
    assert "soft_nms_sigma is 0.5 here and 0.0 there" in notes
    plain = state_dict(MaskRCNN(**small), target)
    assert read_tensors(tmp_path / "out.pth").keys() == plain.keys()


def test_networks_that_the_target_lacks_are_refused():
    small = {"fpn_channels": 8, "box_fc_channels": (8,), "mask_conv_channels": (8,)}
    mobile = MaskRCNN(backbone="mobilenet_v2", **small)
    with pytest.raises(WeightsError, match="detectron2 has no Mask R-CNN with mobilenet_v2"):
        state_dict(mobile, "detectron2")
    for backbone in ("resnet18d", "mobilenet_v3_large", "convnext_tiny"):
        model = MaskRCNN(backbone=backbone, **small)
        for target in ("torchvision", "detectron2"):
            with pytest.raises(WeightsError, match=f"{target} has no Mask R-CNN with {backbone}"):
                state_dict(model, target)
    with pytest.raises(WeightsError, match="choose one of torchvision, detectron2"):
        state_dict(mobile, "tensorpack")


def test_pth_holds_every_dtype_and_shape(tmp_path):
    tensors = {
        "scalar": np.float32(7.5),
        "empty": np.zeros((0, 3), "float16"),
        "turned": np.arange(24, dtype=">i4").reshape(2, 3, 4).T,
        "flags": np.array([True, False]),
        "count": np.zeros((), "int64"),
    }
    write_pth(tmp_path / "w.pth", {name: np.asarray(value) for name, value in tensors.items()})
    for name, value in read_tensors(tmp_path / "w.pth").items():
        np.testing.assert_array_equal(value, tensors[name], err_msg=name)
        assert value.shape == np.shape(tensors[name])
    with pytest.raises(WeightsError, match="w: PyTorch has no complex64"):
        write_pth(tmp_path / "c.pth", {"w": np.zeros(2, "complex64")})
