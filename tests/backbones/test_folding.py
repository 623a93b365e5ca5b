import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn import MaskRCNN
from kmaskrcnn.backbones import build_backbone
from kmaskrcnn.backbones.folding import FoldedConvolution, convolve_scaled, fold_normalization


def make_backbone(name, norm, dtype="float64", **options):
    """With statistics, scales and offsets as training leaves them: none is 0 or 1.

    In float64, where rounding is not what makes two networks differ.
    """
    keras.utils.set_random_seed(1)
    backbone = build_backbone(name, norm, dtype=dtype, **options)
    rng = np.random.default_rng(0)
    for variable in backbone.weights:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.2, variable.shape))
    return backbone


@pytest.fixture
def image():
    return np.random.default_rng(2).normal(size=(2, 64, 96, 3))


def assert_close(ours, expected, tolerance):
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(ours[name], value, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize(
    ("name", "norm"), [("resnet18", "frozen_bn"), ("mobilenet_v2", "bn"), ("efficientnet_lite0", "frozen_bn")]
)
def test_folded_network_equals_the_network_and_follows_its_weights(name, norm, image):
    backbone = make_backbone(name, norm)
    folded = fold_normalization(backbone)
    assert_close(folded(image), backbone(image), 1e-6)
    before = folded(image)["C5"].numpy()
    for variable in backbone.weights:
        if variable.name == "moving_mean":
            variable.assign_add(np.full(variable.shape, 0.1))
    assert_close(folded(image), backbone(image), 1e-6)
    assert np.abs(folded(image)["C5"] - before).max() > 1e-3


def test_every_normalization_of_a_resnet_is_folded():
    backbone = make_backbone("resnet50", "frozen_bn")
    folded = fold_normalization(backbone)
    assert sum(isinstance(layer, FoldedConvolution) for layer in folded.layers) == 53
    assert not any(layer.name.endswith("bn1") for layer in folded.layers)
    assert {id(v) for v in folded.weights} == {id(v) for v in backbone.weights}


def test_gradients_equal_those_of_the_network(image):
    backbone = make_backbone("resnet18", "frozen_bn", frozen_stages=2)
    folded = fold_normalization(backbone)
    assert len(folded.trainable_variables) == len(backbone.trainable_variables)
    gradients = []
    for network in (backbone, folded):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(network(image, training=True)["C5"] ** 2)
        gradients.append(tape.gradient(loss, [v.value for v in backbone.trainable_variables]))
    for ours, expected in zip(gradients[1], gradients[0], strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "same"), ((2, 2), "valid"), ((2, 2), "same")])
def test_gradients_of_a_scaled_kernel(strides, padding, in_graph):
    rng = np.random.default_rng(0)
    inputs = [tf.constant(rng.normal(size=shape)) for shape in ((2, 9, 8, 3), (3, 3, 3, 4), (4,))]

    def plain(x, kernel, scale, strides, padding):
        return tf.nn.conv2d(x, kernel * scale, strides, padding.upper())

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = function(*inputs, strides, padding)
            loss = tf.reduce_sum(outputs**3)
        return outputs, tape.gradient(loss, inputs)

    run = tf.function(gradients) if in_graph else gradients
    (outputs, own), (expected, reference) = run(convolve_scaled), run(plain)
    np.testing.assert_array_equal(outputs, expected)
    for ours, theirs in zip(own, reference, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-11 * np.abs(theirs).max())


def test_statistics_are_taken_from_the_batch_in_training(image):
    backbone = make_backbone("resnet18", "bn", frozen_stages=2)
    saved = [v.numpy() for v in backbone.weights]
    expected = backbone(image, training=True)
    statistics = [v.numpy() for v in backbone.weights]
    assert any((a != b).any() for a, b in zip(saved, statistics, strict=True))
    for variable, value in zip(backbone.weights, saved, strict=True):
        variable.assign(value)
    assert_close(fold_normalization(backbone)(image, training=True), expected, 1e-9)
    for variable, value in zip(backbone.weights, statistics, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-9, err_msg=variable.path)


def test_half_precision_scales_the_kernel_in_float32(image):
    half = make_backbone("resnet18", "frozen_bn", dtype="mixed_bfloat16")
    image = image.astype(np.float32)
    exact = make_backbone("resnet18", "frozen_bn", dtype="float32")(image)
    outputs = fold_normalization(half)(image)
    assert outputs["C5"].dtype == tf.bfloat16
    assert_close({k: tf.cast(v, tf.float32) for k, v in outputs.items()}, exact, 0.05)


def test_group_normalization_stays(image):
    backbone = make_backbone("resnet18", "gn")
    np.testing.assert_array_equal(fold_normalization(backbone)(image)["C5"], backbone(image)["C5"])


def test_a_model_tracks_each_weight_once(tiny_settings):
    model = MaskRCNN(**tiny_settings | {"backbone_norm": "frozen_bn"})
    paths = [variable.path for variable in model.weights]
    assert len(paths) == len(set(paths))
    assert len(paths) == sum(len(part.weights) for part in (model.backbone, model.fpn, model.rpn_head)) + sum(
        len(part.weights) for part in (model.box_head, model.mask_head)
    )
