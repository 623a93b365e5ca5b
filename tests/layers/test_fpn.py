"""The feature pyramid against a computation with plain loops, its size, and saving."""

import keras
import numpy as np
import pytest

from kmaskrcnn.layers.fpn import FPN

WIDTHS = {"C2": 3, "C3": 4, "C4": 5, "C5": 6}


def make_features(height=64, width=96, batch=2):
    random = np.random.default_rng(0)
    return {
        name: random.normal(size=(batch, height // stride, width // stride, WIDTHS[name])).astype("float32")
        for name, stride in zip(WIDTHS, (4, 8, 16, 32), strict=True)
    }


def convolve(image, kernel, bias):
    """Plain cross-correlation with zero padding: (B, H, W, I), (k, k, I, O) -> (B, H, W, O)."""
    side = kernel.shape[0]
    padded = np.pad(image, ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    height, width = image.shape[1:3]
    result = np.zeros((*image.shape[:3], kernel.shape[3])) + bias
    for y in range(side):
        for x in range(side):
            result += padded[:, y : y + height, x : x + width] @ kernel[y, x]
    return result


def test_equals_the_definition():
    features = make_features()
    fpn = FPN(channels=8)
    outputs = fpn(features)
    for layer in (*fpn.lateral_convs, *fpn.output_convs):
        assert not np.any(layer.bias.numpy())
        layer.bias.assign(np.random.default_rng(1).normal(size=8))
    outputs = fpn(features)
    top = None
    for index in (3, 2, 1, 0):
        lateral = convolve(features[f"C{index + 2}"], *(w.numpy() for w in fpn.lateral_convs[index].weights))
        top = lateral if top is None else lateral + top.repeat(2, axis=1).repeat(2, axis=2)
        expected = convolve(top, *(w.numpy() for w in fpn.output_convs[index].weights))
        np.testing.assert_allclose(outputs[f"P{index + 2}"], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(outputs["P6"], np.asarray(outputs["P5"])[:, ::2, ::2])


def test_shapes_and_parameters_on_resnet50():
    fpn = FPN()
    shapes = {f"C{level}": (None, None, 800 >> level, 256 << (level - 2)) for level in (2, 3, 4, 5)}
    fpn.build(shapes)
    assert fpn.count_params() == 3_344_384  # as torchvision's resnet50 FPN
    assert fpn.compute_output_shape(shapes) == {
        **{f"P{level}": (None, None, 800 >> level, 256) for level in (2, 3, 4, 5)},
        "P6": (None, None, 13, 256),
    }


def test_initial_weights_are_uniform_with_unit_gain():
    fpn = FPN(channels=64)
    fpn.build(dict.fromkeys(WIDTHS, (None, None, None, 128)))
    kernel = fpn.output_convs[0].kernel.numpy()
    limit = (3 / (9 * 64)) ** 0.5
    assert 0.98 * limit < np.abs(kernel).max() <= limit
    assert abs(kernel.std() - limit / 3**0.5) < 0.02 * limit


@pytest.mark.parametrize("norm", ["none", "bn", "sync_bn", "gn"])
def test_norms_and_saving(norm, tmp_path):
    inputs = {name: keras.Input((None, None, width), name=name) for name, width in WIDTHS.items()}
    model = keras.Model(inputs, FPN(channels=16, norm=norm)(inputs))
    features = make_features()
    expected = model(features)
    assert any("bias" in weight.path for weight in model.weights) == (norm == "none")
    if norm != "none":
        assert len(model.weights) == 8 * (5 if "bn" in norm else 3)
    model.save(tmp_path / "fpn.keras")
    for name, value in keras.saving.load_model(tmp_path / "fpn.keras")(features).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


def test_unknown_norm():
    with pytest.raises(ValueError, match="norm='layer'"):
        FPN(norm="layer")
