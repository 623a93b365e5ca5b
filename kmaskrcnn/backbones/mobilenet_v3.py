"""MobileNetV3-Large 1.0 (Howard et al. 2019) with torch's padding and timm's names."""

from __future__ import annotations

import keras

from kmaskrcnn.backbones.common import BackboneBuilder, Graph

# Rows of table 1 of the paper, a list for each of timm's groups: (kernel, hidden width, width, width inside the
# squeeze-excite or 0, activation, stride); and the stage that the group belongs to.
_GROUPS = (
    (1, ((3, 16, 16, 0, "relu", 1),)),
    (2, ((3, 64, 24, 0, "relu", 2), (3, 72, 24, 0, "relu", 1))),
    (3, ((5, 72, 40, 24, "relu", 2), (5, 120, 40, 32, "relu", 1), (5, 120, 40, 32, "relu", 1))),
    (
        4,
        (
            (3, 240, 80, 0, "hard_silu", 2),
            (3, 200, 80, 0, "hard_silu", 1),
            (3, 184, 80, 0, "hard_silu", 1),
            (3, 184, 80, 0, "hard_silu", 1),
        ),
    ),
    (4, ((3, 480, 112, 120, "hard_silu", 1), (3, 672, 112, 168, "hard_silu", 1))),
    (
        5,
        (
            (5, 672, 160, 168, "hard_silu", 2),
            (5, 960, 160, 240, "hard_silu", 1),
            (5, 960, 160, 240, "hard_silu", 1),
        ),
    ),
)


def build(norm: str, frozen_stages: int, dtype: str | None) -> Graph:
    """The graph of a MobileNetV3-Large: image (B, H, W, 3) and {"C2": (B, H/4, W/4, 24) .. "C5" (..., 960)}.

    Each output is the last layer at its stride, 24, 40, 112 and 960 wide, as timm's features_only and torchvision's
    detectors take them: the 960 wide convolution comes before the pooling and belongs to the features, unlike
    MobileNetV2's last one; the 1280 wide one after the pooling belongs to the classifier.
    """
    net = BackboneBuilder(norm, 1e-5, frozen_stages, dtype)
    inputs = keras.Input((None, None, 3), name="image")
    x = net.norm(net.conv(inputs, 16, 3, 2, "conv_stem"), "bn1", "hard_silu")
    outputs = {}
    for group, (net.stage, rows) in enumerate(_GROUPS):
        for index, row in enumerate(rows):
            x = _block(net, x, *row, prefix=f"blocks_{group}_{index}")
        if net.stage > 1:
            outputs[f"C{net.stage}"] = x  # of the two groups at stride 16 the second
    x = net.norm(net.conv(x, 960, 1, 1, "blocks_6_0_conv"), "blocks_6_0_bn1", "hard_silu")
    return inputs, outputs | {"C5": x}


def _block(
    net: BackboneBuilder,
    x: keras.KerasTensor,
    kernel_size: int,
    hidden: int,
    width: int,
    squeezed: int,
    activation: str,
    stride: int,
    prefix: str,
) -> keras.KerasTensor:
    shortcut = x
    expands = hidden != x.shape[-1]  # the first block does not
    if expands:
        x = net.norm(net.conv(x, hidden, 1, 1, f"{prefix}_conv_pw"), f"{prefix}_bn1", activation)
    depthwise_norm, last, last_norm = ("bn2", "conv_pwl", "bn3") if expands else ("bn1", "conv_pw", "bn2")
    x = net.depthwise(x, kernel_size, stride, f"{prefix}_conv_dw")
    x = net.norm(x, f"{prefix}_{depthwise_norm}", activation)
    if squeezed:
        x = net.squeeze_excite(x, squeezed, f"{prefix}_se")
    x = net.norm(net.conv(x, width, 1, 1, f"{prefix}_{last}"), f"{prefix}_{last_norm}")
    if stride == 1 and shortcut.shape[-1] == width:
        x = net.add(x, shortcut, f"{prefix}_add")
    return x
