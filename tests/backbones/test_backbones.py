"""Structure of the backbones: sizes, strides, freezing, saving."""

import keras
import numpy as np
import pytest

from kmaskrcnn.backbones import BACKBONES, build_backbone, pixel_statistics

WIDTHS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
    "resnet152": (256, 512, 1024, 2048),
    "resnet18d": (64, 128, 256, 512),
    "resnet34d": (64, 128, 256, 512),
    "resnet50d": (256, 512, 1024, 2048),
    "resnet101d": (256, 512, 1024, 2048),
    "resnet152d": (256, 512, 1024, 2048),
    "mobilenet_v2": (24, 32, 96, 320),
    "efficientnet_lite0": (24, 40, 112, 320),
}
# Convolution parameters of torchvision's networks and timm's ResNet-D without their classifiers; for the two mobile
# networks also without the 1280 wide convolution (409,600), counted in the published weight files.
CONV_PARAMETERS = {
    "resnet18": 11_166_912,
    "resnet34": 21_267_648,
    "resnet50": 23_454_912,
    "resnet101": 42_394_816,
    "resnet152": 57_992_384,
    "resnet18d": 11_186_016,
    "resnet34d": 21_286_752,
    "resnet50d": 23_474_016,
    "resnet101d": 42_413_920,
    "resnet152d": 58_011_488,
    "mobilenet_v2": 1_780_160,
    "efficientnet_lite0": 2_919_392,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_shapes_and_parameters(name):
    model = build_backbone(name)
    shapes = {level: shape[1:] for level, shape in model.compute_output_shape((None, 96, 160, 3)).items()}
    assert shapes == {
        f"C{level}": (96 >> level, 160 >> level, width) for level, width in zip((2, 3, 4, 5), WIDTHS[name], strict=True)
    }
    convolutions = [layer for layer in model.layers if "Conv" in type(layer).__name__]
    count = sum(int(np.prod(weight.shape)) for layer in convolutions for weight in layer.weights)
    assert count == CONV_PARAMETERS[name]
    assert len({layer.name for layer in model.layers}) == len(model.layers)


@pytest.mark.parametrize("norm", ["frozen_bn", "bn", "sync_bn", "gn"])
@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "efficientnet_lite0"])
def test_every_norm_runs_and_survives_saving(name, norm, tmp_path):
    model = build_backbone(name, norm=norm, frozen_stages=3)
    image = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype("float32")
    expected = model(image)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in model.trainable_variables]
    for level, value in loaded(image).items():
        np.testing.assert_allclose(value, expected[level], rtol=1e-5, atol=1e-5)
        assert np.all(np.isfinite(value)) and np.std(value) > 0


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("resnet50", ["conv1", "layer1_0_conv1", "layer2_0_conv1", "layer3_0_conv1", "layer4_0_conv1"]),
        (
            "mobilenet_v2",
            ["features_0_0", "features_2_conv_0", "features_4_conv_0", "features_7_conv_0", "features_14_conv_0"],
        ),
        (
            "efficientnet_lite0",
            [
                "conv_stem",
                "blocks_1_expand_conv",
                "blocks_3_expand_conv",
                "blocks_5_expand_conv",
                "blocks_11_expand_conv",
            ],
        ),
    ],
)
def test_frozen_stages_freeze_whole_stages(name, first):
    for stages in range(6):
        model = build_backbone(name, norm="bn", frozen_stages=stages)
        assert [model.get_layer(layer).trainable for layer in first] == [index >= stages for index in range(5)]
        assert (len(model.trainable_variables) == 0) == (stages == 5)
    assert len(build_backbone(name, norm="bn", frozen_stages=0).non_trainable_variables) > 0


def test_batch_norm_of_frozen_stages_keeps_its_statistics():
    model = build_backbone("resnet18", norm="bn", frozen_stages=2)
    statistics = {layer: model.get_layer(layer).moving_mean for layer in ("bn1", "layer1_1_bn2", "layer2_0_bn1")}
    before = {layer: value.numpy().copy() for layer, value in statistics.items()}
    model(np.random.default_rng(0).normal(3.0, 1.0, (2, 64, 64, 3)).astype("float32"), training=True)
    changed = {layer: bool(np.any(value.numpy() != before[layer])) for layer, value in statistics.items()}
    assert changed == {"bn1": False, "layer1_1_bn2": False, "layer2_0_bn1": True}


def test_stride_in_1x1_moves_the_stride_and_keeps_the_parameters():
    caffe, modern = build_backbone("resnet50", stride_in_1x1=True), build_backbone("resnet50")
    assert [caffe.get_layer(f"layer2_0_conv{n}").strides[0] for n in (1, 2)] == [2, 1]
    assert [modern.get_layer(f"layer2_0_conv{n}").strides[0] for n in (1, 2)] == [1, 2]
    assert caffe.count_params() == modern.count_params()


def test_half_precision_keeps_float32_variables():
    model = build_backbone("resnet18", dtype="mixed_bfloat16")
    assert {keras.backend.standardize_dtype(v.dtype) for v in model.weights} == {"float32"}
    features = model(np.ones((1, 64, 64, 3), "float32"))
    assert {keras.backend.standardize_dtype(v.dtype) for v in features.values()} == {"bfloat16"}


def test_impossible_settings_are_named():
    for settings, message in (
        ({"name": "resnet51"}, "backbone='resnet51'"),
        ({"name": "resnet50", "norm": "none"}, "backbone_norm='none'"),
        ({"name": "resnet50", "frozen_stages": 6}, "frozen_stages=6"),
        ({"name": "mobilenet_v2", "stride_in_1x1": True}, "backbone_stride_in_1x1=True: mobilenet_v2"),
    ):
        with pytest.raises(ValueError, match=message):
            build_backbone(**settings)
    with pytest.raises(ValueError, match="backbone='vgg'"):
        pixel_statistics("vgg")


def test_pixel_statistics():
    mean, deviation = pixel_statistics("resnet50")
    np.testing.assert_allclose(np.divide(mean, 255), (0.485, 0.456, 0.406), atol=1e-6)
    np.testing.assert_allclose(np.divide(deviation, 255), (0.229, 0.224, 0.225), atol=1e-6)
    assert pixel_statistics("efficientnet_lite0") == ((127.0,) * 3, (128.0,) * 3)


def test_the_pool_padding_of_tensorflow_moves_the_maps_by_two_pixels():
    keras.utils.set_random_seed(0)
    ours = build_backbone("resnet18")
    theirs = build_backbone("resnet18", stem_pool_padding="same")
    theirs.set_weights(ours.get_weights())
    image = np.random.default_rng(0).normal(size=(1, 128, 128, 3)).astype(np.float32)
    moved = theirs(np.roll(image, (2, 2), (1, 2)))["C2"]
    inside = slice(12, -12)  # away from the border
    np.testing.assert_allclose(moved[:, inside, inside], ours(image)["C2"][:, inside, inside], atol=1e-4)
    with pytest.raises(ValueError, match="stem_pool_padding"):
        build_backbone("mobilenet_v2", stem_pool_padding="same")
