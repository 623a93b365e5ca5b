"""The ImageNet ResNets of keras.applications under torchvision's names and pixel normalization."""

from __future__ import annotations

import re

import keras
import numpy as np

from kmaskrcnn.backbones import pixels
from kmaskrcnn.errors import WeightsError
from kmaskrcnn.weight_files.download import cache_folder, is_offline

_EPSILON = 1e-5  # of the backbone's normalizations
_CONSTRUCTORS = {"resnet50": "ResNet50", "resnet101": "ResNet101", "resnet152": "ResNet152"}


def download_resnet(name: str, advice: str) -> dict[str, np.ndarray]:
    """The tensors of keras.applications' ResNet with ImageNet weights, downloaded or from Keras' cache.

    Raises:
        WeightsError: the download failed, or the network is off and Keras' cache has no file of them; the message ends
            with `advice`.
    """
    if is_offline() and not list(cache_folder().glob(f"{name}_weights_*_notop.h5")):
        raise WeightsError(f"{name}: the network is off and Keras' cache has no file of keras.applications; {advice}")
    try:
        model = getattr(keras.applications, _CONSTRUCTORS[name])(include_top=False, weights="imagenet")
    # keras.utils.get_file raises plain Exception for every failure of the network.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise WeightsError(
            f"{name}: keras.applications could not get its ImageNet weights ({reason}); {advice}"
        ) from None
    return convert_resnet(model)


def convert_resnet(model: keras.Model) -> dict[str, np.ndarray]:
    """The tensors of a keras.applications ResNet (v1) as torchvision names them, convolutions (h, w, in, out).

    Its convolutions have biases, which go into the normalizations' means; its larger epsilon goes into their
    variances. It takes BGR pixels less the Caffe mean: the first convolution is turned to RGB and rescaled for
    torchvision's normalization. All of that is exact but for the first layer's padding at the image border, which
    stands for the one mean in place of the other, half a gray level away.
    """
    tensors = {}
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Conv2D):
            continue
        kernel, bias = layer.get_weights()
        norm = model.get_layer(re.sub("conv$", "bn", layer.name))
        gamma, beta, mean, variance = norm.get_weights()
        if layer.name == "conv1_conv":
            kernel, shift = _to_torchvision_pixels(kernel[:, :, ::-1])
            bias = bias + shift
        conv_name, norm_name = _torch_names(layer.name)
        tensors |= {
            f"{conv_name}.weight": kernel,
            f"{norm_name}.weight": gamma,
            f"{norm_name}.bias": beta,
            f"{norm_name}.running_mean": mean - bias,
            f"{norm_name}.running_var": variance + (norm.epsilon - _EPSILON),
        }
    return tensors


def _to_torchvision_pixels(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(7, 7, RGB, out) for Caffe's pixels -> the same for torchvision's, and what must be added to its output."""
    caffe_mean, _ = pixels.CAFFE
    mean, deviation = (np.array(values, "float32") for values in pixels.TORCHVISION)
    shift = np.einsum("hwio,i->o", kernel, mean - np.array(caffe_mean, "float32"))
    return kernel * deviation[:, None], shift


def _torch_names(layer_name: str) -> tuple[str, str]:
    """conv3_block1_2_conv -> layer2.0.conv2, layer2.0.bn2; number 0 is the shortcut."""
    if layer_name == "conv1_conv":
        return "conv1", "bn1"
    group, block, number = (int(n) for n in re.findall(r"\d+", layer_name))
    prefix = f"layer{group - 1}.{block - 1}"
    if number == 0:
        return f"{prefix}.downsample.0", f"{prefix}.downsample.1"
    return f"{prefix}.conv{number}", f"{prefix}.bn{number}"
