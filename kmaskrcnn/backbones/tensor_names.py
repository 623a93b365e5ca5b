"""Names of tensors in files of ImageNet weights, as the layers of the backbones have them."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

Tensors = dict[str, np.ndarray]


def timm_efficientnet_names(tensors: Tensors) -> Tensors:
    """timm's names of EfficientNet-Lite0 as the original ones: blocks.1.0.conv_pw -> _blocks.1._expand_conv.

    timm numbers the blocks of each stage anew, and names the normalizations in their order.
    """
    pattern = re.compile(r"blocks\.(\d+)\.(\d+)\.(\w+)\.(\w+)")
    places = sorted({(int(m[1]), int(m[2])) for name in tensors if (m := pattern.fullmatch(name))})
    renamed = {}
    for name, value in tensors.items():
        if match := pattern.fullmatch(name):
            stage, place = int(match[1]), (int(match[1]), int(match[2]))
            # The first stage does not expand: its two convolutions are depthwise and pointwise.
            parts = _TIMM_PARTS[2 if stage == 0 else 3]
            name = f"_blocks.{places.index(place)}.{parts.get(match[3], match[3])}.{match[4]}"
        elif name.startswith("bn1."):
            name = f"_bn0.{name[4:]}"
        elif name.startswith(("conv_stem.", "conv_head.")):
            name = f"_{name}"
        renamed[name] = value
    return renamed


_TIMM_PARTS = {
    2: {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"},
    3: {
        "conv_pw": "_expand_conv",
        "bn1": "_bn0",
        "conv_dw": "_depthwise_conv",
        "bn2": "_bn1",
        "conv_pwl": "_project_conv",
        "bn3": "_bn2",
    },
}


def flat_block_names(tensors: Tensors) -> Tensors:
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


def mobilenet_v3_names(tensors: Tensors) -> Tensors:
    """torchvision's names of MobileNetV3-Large as timm's, which other files have already.

    features.4.block.1.0 -> blocks.2.0.conv_dw. torchvision's normalizations have another epsilon, 1e-3: the difference
    goes into their variances.
    """
    if "features.0.0.weight" not in tensors:
        return tensors
    renamed = {}
    for name, value in tensors.items():
        if match := re.fullmatch(r"features\.(\d+)\.(.+)\.(\w+)", name):
            block, part, leaf = int(match[1]), match[2], match[3]
            if leaf == "running_var":
                value = value + np.float32(1e-3 - 1e-5)
            name = f"{_mobilenet_v3_layer(block, part)}.{leaf}"
        renamed[name] = value
    return renamed


# The first of torchvision's blocks, counted from 1, in each of timm's groups.
_MOBILENET_V3_GROUPS = (1, 2, 4, 7, 11, 13)


def _mobilenet_v3_layer(block: int, part: str) -> str:
    """The module of timm that `part` of torchvision's features is."""
    if block == 0:
        return {"0": "conv_stem", "1": "bn1"}.get(part, part)
    if block == 16:
        return "blocks.6.0." + {"0": "conv", "1": "bn1"}.get(part, part)
    group = sum(block >= first for first in _MOBILENET_V3_GROUPS) - 1
    # In a row without squeeze-excite the projection takes its number, 2; the first block does not expand.
    squeezes = group in (2, 4, 5)
    parts = ["conv_dw", "conv_pw"] if block == 1 else ["conv_pw", "conv_dw", *["se"] * squeezes, "conv_pwl"]
    numbers = [n for n, name in enumerate(parts) if name != "se"]
    places = {f"block.{n}.0": parts[n] for n in numbers}
    places |= {f"block.{n}.1": f"bn{index}" for index, n in enumerate(numbers, 1)}
    places |= {"block.2.fc1": "se.conv_reduce", "block.2.fc2": "se.conv_expand"}
    return f"blocks.{group}.{block - _MOBILENET_V3_GROUPS[group]}.{places.get(part, part)}"


def convnext_names(tensors: Tensors) -> Tensors:
    """timm's tensors of a ConvNeXt with the factors of a block as a layer, and its linear layers as convolutions."""
    renamed = {}
    for name, value in tensors.items():
        name = re.sub(r"\.gamma$", ".layer_scale.weight", name)
        if re.search(r"\.mlp\.fc\d\.weight$", name) and value.ndim == 2:
            value = value[:, :, None, None]
        renamed[name] = value
    return renamed


# Of the backbones whose files have other names, too.
RENAMED: dict[str, Callable[[Tensors], Tensors]] = {
    "mobilenet_v2": flat_block_names,
    "efficientnet_lite0": timm_efficientnet_names,
    "mobilenet_v3_large": mobilenet_v3_names,
    "convnext_tiny": convnext_names,
}
