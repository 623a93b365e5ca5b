"""ResNet-18/34/50/101/152 (He et al. 2016) with torchvision's names; ResNet-D (He et al. 2019) with timm's."""

from __future__ import annotations

import keras

from kmaskrcnn.backbones.common import BackboneBuilder, Graph

# Name -> (blocks in each of the four groups, whether they are bottlenecks).
BLOCKS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}
BLOCKS |= {f"{name}d": blocks for name, blocks in BLOCKS.items()}


def is_resnet_d(name: str) -> bool:
    """Whether it is a ResNet-D (He et al. 2018, "Bag of Tricks"), such as resnet50d."""
    return name in BLOCKS and name.endswith("d")


def build(
    name: str, norm: str, stride_in_1x1: bool, frozen_stages: int, dtype: str | None, tf_pool_padding: bool = False
) -> Graph:
    """The graph of a ResNet: image (B, H, W, 3) and {"C2": (B, H/4, W/4, ...) .. "C5"}.

    With `stride_in_1x1` the first 1x1 convolution of a down-sampling bottleneck has the stride (the original Caffe
    models), otherwise its 3x3 (v1.5, torchvision). Basic blocks have no such choice and ignore it. `tf_pool_padding` is
    TensorFlow's "same" at the max-pool. The names that end in d are of ResNet-D: three 3x3 convolutions in place of the
    7x7, and shortcuts that average before they are projected, where the others drop three of four pixels.
    """
    counts, bottleneck = BLOCKS[name]
    net = BackboneBuilder(norm, 1e-5, frozen_stages, dtype)
    inputs = keras.Input((None, None, 3), name="image")
    if is_resnet_d(name):
        x = net.norm(net.conv(inputs, 32, 3, 2, "conv1_0"), "conv1_1", "relu")
        x = net.norm(net.conv(x, 32, 3, 1, "conv1_3"), "conv1_4", "relu")
        x = net.conv(x, 64, 3, 1, "conv1_6")
    else:
        x = net.conv(inputs, 64, 7, 2, "conv1")
    x = net.norm(x, "bn1", "relu")
    x = net.max_pool(x, "maxpool", tf_pool_padding)
    outputs = {}
    for group, count in enumerate(counts):
        net.stage = group + 2
        for index in range(count):
            stride = 2 if group > 0 and index == 0 else 1
            prefix = f"layer{group + 1}_{index}"
            width = 64 * 2**group
            shortcut = _shortcut(net, x, width * (4 if bottleneck else 1), stride, prefix, is_resnet_d(name))
            if bottleneck:
                x = _bottleneck(net, x, shortcut, width, stride, stride_in_1x1, prefix)
            else:
                x = _basic_block(net, x, shortcut, width, stride, prefix)
        outputs[f"C{net.stage}"] = x
    return inputs, outputs


def _shortcut(
    net: BackboneBuilder, x: keras.KerasTensor, filters: int, stride: int, prefix: str, average: bool
) -> keras.KerasTensor:
    if stride == 1 and x.shape[-1] == filters:
        return x
    if not average:
        x = net.conv(x, filters, 1, stride, f"{prefix}_downsample_0")
        return net.norm(x, f"{prefix}_downsample_1")
    if stride > 1:
        x = net.average_pool(x, f"{prefix}_downsample_0")
    return net.norm(net.conv(x, filters, 1, 1, f"{prefix}_downsample_1"), f"{prefix}_downsample_2")


def _basic_block(
    net: BackboneBuilder, x: keras.KerasTensor, shortcut: keras.KerasTensor, width: int, stride: int, prefix: str
) -> keras.KerasTensor:
    x = net.norm(net.conv(x, width, 3, stride, f"{prefix}_conv1"), f"{prefix}_bn1", "relu")
    x = net.norm(net.conv(x, width, 3, 1, f"{prefix}_conv2"), f"{prefix}_bn2")
    return net.activation(net.add(x, shortcut, f"{prefix}_add"), "relu", f"{prefix}_out")


def _bottleneck(
    net: BackboneBuilder,
    x: keras.KerasTensor,
    shortcut: keras.KerasTensor,
    width: int,
    stride: int,
    stride_in_1x1: bool,
    prefix: str,
) -> keras.KerasTensor:
    first, second = (stride, 1) if stride_in_1x1 else (1, stride)
    x = net.norm(net.conv(x, width, 1, first, f"{prefix}_conv1"), f"{prefix}_bn1", "relu")
    x = net.norm(net.conv(x, width, 3, second, f"{prefix}_conv2"), f"{prefix}_bn2", "relu")
    x = net.norm(net.conv(x, 4 * width, 1, 1, f"{prefix}_conv3"), f"{prefix}_bn3")
    return net.activation(net.add(x, shortcut, f"{prefix}_add"), "relu", f"{prefix}_out")
