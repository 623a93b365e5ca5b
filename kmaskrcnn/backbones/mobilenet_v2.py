"""MobileNetV2 1.0 (Sandler et al. 2018) with torch's padding and the names of the original PyTorch weights."""

from __future__ import annotations

import keras

from kmaskrcnn.backbones.common import BackboneBuilder, Graph

# Rows of table 2 of the paper: (expansion, width, blocks, stride of the first block, stage it belongs to).
_ROWS = (
    (1, 16, 1, 1, 1),
    (6, 24, 2, 2, 2),
    (6, 32, 3, 2, 3),
    (6, 64, 4, 2, 4),
    (6, 96, 3, 1, 4),
    (6, 160, 3, 2, 5),
    (6, 320, 1, 1, 5),
)


def build(norm: str, frozen_stages: int, dtype: str | None) -> Graph:
    """The graph of a MobileNetV2: image (B, H, W, 3) and {"C2": (B, H/4, W/4, 24) .. "C5" (..., 320)}.

    Each output is the last block at its stride: features 3, 6, 13 and 17. The 1280 wide convolution after them
    (features 18) is left out: it widens for the classifier, and the FPN would narrow it to 256 again.
    """
    net = BackboneBuilder(norm, 1e-5, frozen_stages, dtype)
    inputs = keras.Input((None, None, 3), name="image")
    x = net.norm(net.conv(inputs, 32, 3, 2, "features_0_0"), "features_0_1", "relu6")
    outputs = {}
    block = 1
    for expansion, width, count, first_stride, net.stage in _ROWS:
        for index in range(count):
            x = _inverted_residual(net, x, expansion, width, first_stride if index == 0 else 1, f"features_{block}")
            block += 1
        if net.stage > 1:
            outputs[f"C{net.stage}"] = x
    return inputs, outputs


def _inverted_residual(
    net: BackboneBuilder, x: keras.KerasTensor, expansion: int, width: int, stride: int, prefix: str
) -> keras.KerasTensor:
    shortcut = x
    # Positions in the torch Sequential, where the activations count: conv, norm, relu6, conv, norm, relu6, conv, norm.
    position = 0
    if expansion > 1:
        x = net.conv(x, x.shape[-1] * expansion, 1, 1, f"{prefix}_conv_0")
        x = net.norm(x, f"{prefix}_conv_1", "relu6")
        position = 3
    x = net.depthwise(x, 3, stride, f"{prefix}_conv_{position}")
    x = net.norm(x, f"{prefix}_conv_{position + 1}", "relu6")
    x = net.conv(x, width, 1, 1, f"{prefix}_conv_{position + 3}")
    x = net.norm(x, f"{prefix}_conv_{position + 4}")
    if stride == 1 and shortcut.shape[-1] == width:
        x = net.add(x, shortcut, f"{prefix}_add")
    return x
