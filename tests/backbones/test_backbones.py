"""Structure of the backbones: sizes, strides, freezing, saving."""

import keras
import numpy as np
import pytest

from kmaskrcnn.backbones import BACKBONES, build_backbone, pixel_statistics
from kmaskrcnn.errors import ConfigError

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
    "convnext_tiny": (96, 192, 384, 768),
    "mobilenet_v2": (24, 32, 96, 320),
    "mobilenet_v3_large": (24, 40, 112, 960),
    "efficientnet_lite0": (24, 40, 112, 320),
}
# Parameters of convolutions (and of what timm has as linear layers) in torchvision's and timm's networks, without their
# classifiers; for the mobile networks also without the 1280 wide convolution (409,600 in the published weight files).
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
    "convnext_tiny": 27_797_184,
    "mobilenet_v2": 1_780_160,
    "mobilenet_v3_large": 2_947_552,
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
@pytest.mark.parametrize("name", ["resnet18", "resnet18d", "mobilenet_v3_large", "efficientnet_lite0"])
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
            "mobilenet_v3_large",
            ["conv_stem", "blocks_1_0_conv_pw", "blocks_2_0_conv_pw", "blocks_3_0_conv_pw", "blocks_5_0_conv_pw"],
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


def test_frozen_stages_of_a_convnext_are_whole_stages():
    first = ["stem_0", *(f"stages_{i}_blocks_0_conv_dw" for i in range(4))]
    last = ["stem_1", *(f"stages_{i}_blocks_2_layer_scale" for i in range(4))]
    for stages in (0, 2, 5):
        model = build_backbone("convnext_tiny", frozen_stages=stages)
        for layers in (first, last):
            assert [model.get_layer(layer).trainable for layer in layers] == [index >= stages for index in range(5)]
        assert model.get_layer("stages_1_downsample_0").trainable == (stages < 3)
        assert (len(model.trainable_variables) == 0) == (stages == 5)
    assert not build_backbone("convnext_tiny", frozen_stages=0).non_trainable_variables


def test_a_convnext_survives_saving_and_half_precision(tmp_path):
    model = build_backbone("convnext_tiny", dtype="mixed_bfloat16")
    image = np.random.default_rng(0).normal(size=(1, 64, 32, 3)).astype("float32")
    features = model(image)
    assert {keras.backend.standardize_dtype(v.dtype) for v in model.weights} == {"float32"}
    assert {keras.backend.standardize_dtype(v.dtype) for v in features.values()} == {"bfloat16"}
    model.save(tmp_path / "model.keras")
    for level, value in keras.saving.load_model(tmp_path / "model.keras")(image).items():
        np.testing.assert_array_equal(keras.ops.cast(value, "float32"), keras.ops.cast(features[level], "float32"))


def _make_symmetric(model):
    """Every kernel becomes its own mirror image in both directions; factors and offsets are none of 0 and 1."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        value = rng.normal(0, 0.3, variable.shape)
        if variable.name == "kernel":
            value = keras.ops.convert_to_numpy(variable)
            value = (value + value[::-1] + value[:, ::-1] + value[::-1, ::-1]) / 2
        variable.assign(value)


def test_cells_of_a_convnext_are_centered_in_their_squares():
    """A map of stride s mirrors with the image: cell i stands for the pixels [i * s, (i + 1) * s)."""
    keras.utils.set_random_seed(0)
    model = build_backbone("convnext_tiny")
    _make_symmetric(model)
    image = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype("float32")
    features, mirrored = model(image), model(image[:, ::-1, ::-1])
    for level, value in features.items():
        np.testing.assert_allclose(mirrored[level][:, ::-1, ::-1], value, atol=1e-4, err_msg=level)


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
        ({"name": "convnext_tiny", "norm": "bn"}, "backbone_norm='bn': convnext_tiny has layer normalization"),
        ({"name": "convnext_tiny", "stem_pool_padding": "same"}, "stem_pool_padding='same': convnext_tiny has no"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_backbone(**settings)
    with pytest.raises(ConfigError, match="backbone='vgg'"):
        pixel_statistics("vgg")


def test_pixel_statistics():
    mean, deviation = pixel_statistics("resnet50")
    np.testing.assert_allclose(np.divide(mean, 255), (0.485, 0.456, 0.406), atol=1e-6)
    np.testing.assert_allclose(np.divide(deviation, 255), (0.229, 0.224, 0.225), atol=1e-6)
    assert pixel_statistics("convnext_tiny") == pixel_statistics("mobilenet_v3_large") == (mean, deviation)
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
