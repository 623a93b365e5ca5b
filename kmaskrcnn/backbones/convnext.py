"""ConvNeXt-T (Liu et al. 2022, "A ConvNet for the 2020s") with timm's names."""

from __future__ import annotations

import keras

from kmaskrcnn.backbones.common import BackboneBuilder, Graph

# Blocks and width of each stage.
_STAGES = ((3, 96), (3, 192), (9, 384), (3, 768))


def build(frozen_stages: int, dtype: str | None) -> Graph:
    """The graph of a ConvNeXt-T: image (B, H, W, 3) and {"C2": (B, H/4, W/4, 96) .. "C5" (..., 768)}.

    Its normalizations are of layers, over the channels of each cell. The residual sums that the stages end in are
    normalized by nothing in the ImageNet network, but for the mean of the last one in its classifier; a detector needs
    maps of one scale, so each output has a layer normalization, as in the authors' and mmdetection's Mask R-CNN. There
    it has a scale and an offset, which start as 1 and 0; here it has none, since ImageNet files hold none and the FPN's
    1x1 convolution, which reads it, can learn the same.

    Kernels and strides are even where the map shrinks, so that cell (i, j) of a map of stride s sees the pixels around
    the center of [i * s, (i + 1) * s) x [j * s, (j + 1) * s).
    """
    net = BackboneBuilder("frozen_bn", 1e-6, frozen_stages, dtype)
    inputs = keras.Input((None, None, 3), name="image")
    x = net.layer_norm(net.patches(inputs, 96, 4, "stem_0"), "stem_1")
    outputs = {}
    for index, (count, width) in enumerate(_STAGES):
        net.stage = index + 2
        prefix = f"stages_{index}"
        if index > 0:
            x = net.layer_norm(x, f"{prefix}_downsample_0")
            x = net.patches(x, width, 2, f"{prefix}_downsample_1")
        for block in range(count):
            x = _block(net, x, width, f"{prefix}_blocks_{block}")
        outputs[f"C{net.stage}"] = net.layer_norm(x, f"norm{index}", affine=False)
    return inputs, outputs


def _block(net: BackboneBuilder, x: keras.KerasTensor, width: int, prefix: str) -> keras.KerasTensor:
    y = net.layer_norm(net.depthwise(x, 7, 1, f"{prefix}_conv_dw", bias=True), f"{prefix}_norm")
    y = net.activation(net.conv(y, 4 * width, 1, 1, f"{prefix}_mlp_fc1", bias=True), "gelu", f"{prefix}_gelu")
    y = net.conv(y, width, 1, 1, f"{prefix}_mlp_fc2", bias=True)
    return net.add(net.layer_scale(y, f"{prefix}_layer_scale"), x, f"{prefix}_add")
