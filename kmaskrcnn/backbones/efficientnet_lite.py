"""EfficientNet-Lite0 (Tan & Le 2019; Lite: no squeeze-excite, ReLU6, fixed stem) with TensorFlow's padding."""

from __future__ import annotations

import keras

from kmaskrcnn.backbones.common import BackboneBuilder, Graph

# Rows of the paper's table 1: (expansion, width, blocks, kernel, stride of the first block, stage it belongs to).
_ROWS = (
    (1, 16, 1, 3, 1, 1),
    (6, 24, 2, 3, 2, 2),
    (6, 40, 2, 5, 2, 3),
    (6, 80, 3, 3, 2, 4),
    (6, 112, 3, 5, 1, 4),
    (6, 192, 4, 5, 2, 5),
    (6, 320, 1, 3, 1, 5),
)


def build(norm: str, frozen_stages: int, dtype: str | None) -> Graph:
    """The graph of EfficientNet-Lite0: image (B, H, W, 3) and {"C2": (B, H/4, W/4, 24) .. "C5"}.

    Each output is the last block at its stride, 24, 40, 112 and 320 wide, as EfficientDet takes them; the 1280 wide
    head convolution belongs to the classifier.
    """
    net = BackboneBuilder(norm, 1e-3, frozen_stages, dtype)
    inputs = keras.Input((None, None, 3), name="image")
    x = net.norm(net.conv(inputs, 32, 3, 2, "conv_stem", tf_padding=True), "bn0", "relu6")
    outputs = {}
    block = 0
    for expansion, width, count, kernel_size, first_stride, net.stage in _ROWS:
        for index in range(count):
            stride = first_stride if index == 0 else 1
            x = _mbconv(net, x, expansion, width, kernel_size, stride, f"blocks_{block}")
            block += 1
        if net.stage > 1:
            outputs[f"C{net.stage}"] = x
    return inputs, outputs


def _mbconv(
    net: BackboneBuilder,
    x: keras.KerasTensor,
    expansion: int,
    width: int,
    kernel_size: int,
    stride: int,
    prefix: str,
) -> keras.KerasTensor:
    shortcut = x
    if expansion > 1:
        x = net.conv(x, x.shape[-1] * expansion, 1, 1, f"{prefix}_expand_conv")
        x = net.norm(x, f"{prefix}_bn0", "relu6")
    x = net.depthwise(x, kernel_size, stride, f"{prefix}_depthwise_conv", tf_padding=True)
    x = net.norm(x, f"{prefix}_bn1", "relu6")
    x = net.conv(x, width, 1, 1, f"{prefix}_project_conv")
    x = net.norm(x, f"{prefix}_bn2")
    if stride == 1 and shortcut.shape[-1] == width:
        x = net.add(x, shortcut, f"{prefix}_add")
    return x
