import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn.layers import fpn as fpn_module
from kmaskrcnn.layers.fpn import FPN
from kmaskrcnn.ops.kernel_gradient import convolve, products_pay
from tests.layers.test_fpn import make_features


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize(
    ("shape", "side"), [((2, 7, 9, 4), 3), ((1, 1, 1, 2), 3), ((3, 2, 11, 3), 5), ((2, 4, 3, 4), 1)]
)
def test_outputs_and_gradients_equal_those_of_a_convolution(shape, side, unknown):
    """In float64; the last batches have images whose rows would meet if no border lay between them."""
    rng = np.random.default_rng(side)
    x, kernel = rng.normal(size=shape), rng.normal(size=(side, side, shape[-1], 5))
    upstream = tf.constant(rng.normal(size=(*shape[:3], 5)))

    def gradients(function):
        def run(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch([x, kernel])
                outputs = function(x, kernel)
            return outputs, *tape.gradient(outputs, [x, kernel], upstream)

        height = None if unknown else shape[1]
        spec = tf.TensorSpec((None, height, height and shape[2], shape[3]), tf.float64)
        return tf.function(run, input_signature=[spec, tf.TensorSpec(kernel.shape, tf.float64)])(x, kernel)

    found, expected = gradients(convolve), gradients(lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert np.abs(found[2]).max() > 0.1


@pytest.mark.parametrize("norm", ["none", "gn"])
def test_the_pyramid_trains_by_it_as_by_its_layers(norm, monkeypatch):
    features = {name: tf.constant(value) for name, value in make_features().items()}
    fpn = FPN(channels=32, norm=norm)
    fpn.build({name: value.shape for name, value in features.items()})
    for variable in fpn.trainable_variables:
        variable.assign(np.random.default_rng(len(variable.path)).normal(size=variable.shape, scale=0.1))
    calls = []
    monkeypatch.setattr(fpn_module, "convolve", lambda *inputs: calls.append(1) or convolve(*inputs))

    def gradients():
        with tf.GradientTape() as tape:
            outputs = fpn(features, training=True)
            loss = sum(tf.reduce_sum(tf.sin(value)) for value in outputs.values())
        return [outputs[name] for name in sorted(outputs)] + tape.gradient(
            loss, [v.value for v in fpn.trainable_variables]
        )

    found = gradients()
    assert len(calls) == 4
    fpn(features, training=False)
    assert len(calls) == 4  # inference keeps the layers, which TensorFlow fuses with their bias
    monkeypatch.setattr(fpn_module, "products_pay", lambda x: False)
    for ours, theirs in zip(found, gradients(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_half_precision_keeps_the_convolution():
    assert products_pay(keras.ops.zeros((1, 2, 2, 1), "float32"))
    assert not products_pay(keras.ops.zeros((1, 2, 2, 1), "bfloat16"))
