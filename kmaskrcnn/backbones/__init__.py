"""Feature extractors: a normalized image -> {"C2", "C3", "C4", "C5"}."""

from __future__ import annotations

import keras

from kmaskrcnn.backbones import convnext, efficientnet_lite, mobilenet_v2, mobilenet_v3, pixels, resnet
from kmaskrcnn.backbones.imagenet import load_imagenet as load_weights
from kmaskrcnn.errors import ConfigError

__all__ = ["BACKBONES", "build_backbone", "load_weights", "pixel_statistics"]

BACKBONES = (*resnet.BLOCKS, "convnext_tiny", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_lite0")
_NORMS = ("frozen_bn", "bn", "sync_bn", "gn")


def _check_name(name: str) -> None:
    if name not in BACKBONES:
        raise ConfigError(f"backbone={name!r}: choose one of {', '.join(BACKBONES)}")


def build_backbone(
    name: str,
    norm: str = "frozen_bn",
    stride_in_1x1: bool = False,
    frozen_stages: int = 2,
    dtype: str | None = None,
    stem_pool_padding: str = "symmetric",
) -> keras.Model:
    """A convolutional backbone with random weights.

    Call: (B, H, W, 3) image normalized by `pixel_statistics`, H and W multiples of 32 -> dict of "C2".."C5", each
    (B, H / stride, W / stride, width) with strides 4, 8, 16, 32.

    Args:
        name: one of BACKBONES.
        norm: "frozen_bn", "bn", "sync_bn" or "gn" in place of the network's batch normalizations. ConvNeXt has layer
            normalizations, which hold no statistics: it takes "frozen_bn", the default, and keeps its own.
        stride_in_1x1: ResNet bottlenecks have their stride in the first 1x1 convolution (Caffe, Detectron2's MSRA
            weights, keras.applications) instead of the 3x3 (torchvision).
        frozen_stages: leading stages with trainable=False: 0 none, 1 the stem (in the mobile networks everything at
            stride 2), 2 also what ends in C2, ... 5 everything. Their batch normalizations run in inference mode.
        dtype: dtype policy of every layer; None takes Keras' global one.
        stem_pool_padding: of a ResNet's max-pool: "symmetric" (torchvision), or TensorFlow's "same", at the bottom
            and right of even sides, with which maps lie 2 px further up and left (matterport).

    Raises:
        ConfigError: an unknown name or norm, another norm than a ConvNeXt's own, a number of stages outside 0..5,
            stride_in_1x1 without bottlenecks, or stem_pool_padding without a ResNet.
    """
    _check_name(name)
    if norm not in _NORMS:
        raise ConfigError(f"backbone_norm={norm!r}: choose one of {', '.join(_NORMS)}")
    if name == "convnext_tiny" and norm != "frozen_bn":
        raise ConfigError(f"backbone_norm={norm!r}: convnext_tiny has layer normalization; leave it at frozen_bn")
    if not 0 <= frozen_stages <= 5:
        raise ConfigError(f"frozen_stages={frozen_stages!r}: must lie in 0..5")
    if stride_in_1x1 and (resnet.is_resnet_d(name) or not (name in resnet.BLOCKS and resnet.BLOCKS[name][1])):
        raise ConfigError(f"backbone_stride_in_1x1=True: {name} has no such blocks; use resnet50, 101 or 152")
    if stem_pool_padding != "symmetric" and name not in resnet.BLOCKS:
        raise ConfigError(f"stem_pool_padding={stem_pool_padding!r}: {name} has no max-pool; use a ResNet")
    if name in resnet.BLOCKS:
        inputs, outputs = resnet.build(name, norm, stride_in_1x1, frozen_stages, dtype, stem_pool_padding == "same")
    elif name == "convnext_tiny":
        inputs, outputs = convnext.build(frozen_stages, dtype)
    elif name == "mobilenet_v2":
        inputs, outputs = mobilenet_v2.build(norm, frozen_stages, dtype)
    elif name == "mobilenet_v3_large":
        inputs, outputs = mobilenet_v3.build(norm, frozen_stages, dtype)
    else:
        inputs, outputs = efficientnet_lite.build(norm, frozen_stages, dtype)
    return keras.Model(inputs, outputs, name=name)


def pixel_statistics(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation, RGB in 0..255, with which the backbone's ImageNet weights want (pixel - mean) / deviation.

    Raises:
        ConfigError: unknown name.
    """
    _check_name(name)
    if name == "efficientnet_lite0":
        return pixels.EFFICIENTNET_LITE
    return pixels.TORCHVISION
