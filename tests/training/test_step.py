"""One optimizer step, against the update written out in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.model import LOSSES
from kmaskrcnn.training.step import TrainStep, build_optimizer
from tests.conftest import TINY, make_batch

LOSS, NORM, SKIPPED = len(LOSSES), len(LOSSES) + 1, len(LOSSES) + 2


def _make(**settings):
    keras.utils.set_random_seed(3)
    model = MaskRCNN(**TINY)
    config = Config().replace(**settings).train
    return model, TrainStep(model, build_optimizer(config, model), config)


def _batch():
    return {name: tf.constant(value) for name, value in make_batch(size=64).items()}


def _gradients(model):
    """A function of a batch that gives the gradients of the loss."""

    @tf.function(autograph=False)  # eager rounding differs enough to reorder proposals of nearly equal scores
    def compute(batch):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y_pred=model(batch, training=True))
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, model.trainable_variables)]

    return compute


def test_two_steps_of_sgd_with_clipping_momentum_and_l2():
    model, step = _make(weight_decay=0.1, norm_weight_decay=0.01, clip_norm=1.0, momentum=0.9)
    rates, velocity = (0.05, 0.02), [0.0] * len(model.trainable_variables)
    expected = [v.numpy() for v in model.trainable_variables]
    compute = _gradients(model)
    for number, rate in enumerate(rates):
        gradients = [g.numpy() for g in compute(_batch())]
        norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients))
        values = step([_batch()], rate, number).numpy()
        assert values[NORM] == pytest.approx(norm, rel=1e-4)
        assert norm > 1.0  # or clipping would do nothing
        for i, (g, variable) in enumerate(zip(gradients, model.trainable_variables, strict=True)):
            decay = 0.01 if variable.name in ("gamma", "beta") else 0.1
            velocity[i] = 0.9 * velocity[i] + g / norm + decay * expected[i]
            expected[i] = expected[i] - rate * velocity[i]  # the rate of this step, of all that the velocity holds
        for value, variable in zip(expected, model.trainable_variables, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, rtol=2e-4, atol=2e-5, err_msg=variable.path)


def test_a_step_with_gradients_that_are_not_finite_changes_nothing():
    model, step = _make(ema_decay=0.9)
    step.reset_averages()
    step([_batch()], 0.01, 0)
    first = model.trainable_variables[0]
    whole = first.numpy()
    first.assign(whole * np.where(np.arange(whole.shape[-1]) == 0, np.nan, 1.0))
    before = [v.numpy() for v in (*model.trainable_variables, *step.optimizer.variables[2:], *step.averages)]
    values = step([_batch()], 0.01, 1).numpy()
    assert values[SKIPPED] == 1.0
    assert not np.isfinite(values[NORM])
    after = [v.numpy() for v in (*model.trainable_variables, *step.optimizer.variables[2:], *step.averages)]
    for x, y in zip(before, after, strict=True):
        np.testing.assert_array_equal(x, y)
    first.assign(whole)
    assert step([_batch()], 0.01, 2).numpy()[SKIPPED] == 0.0


def test_samples_depend_on_the_seeds_of_the_images_alone():
    _, step = _make()
    batch = _batch()
    first = step([batch], 0.0, 5).numpy()
    other = step([batch | {"sample_seeds": tf.constant([7, 8], tf.int64)}], 0.0, 5).numpy()
    again = step([batch], 0.0, 6).numpy()
    np.testing.assert_array_equal(first, again)
    assert first[LOSS] != other[LOSS]


def test_moving_averages():
    model, step = _make(ema_decay=0.5, clip_norm=1.0)
    step.reset_averages()
    average = model.trainable_variables[0].numpy()
    for number in range(3):
        step([_batch()], 0.05, number)
        decay = min(0.5, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * model.trainable_variables[0].numpy()
    np.testing.assert_allclose(step.averages[0].numpy(), average, rtol=1e-5, atol=1e-7)
    own = model.trainable_variables[0].numpy()
    with step.averaged_weights():
        np.testing.assert_array_equal(model.trainable_variables[0].numpy(), step.averages[0].numpy())
    np.testing.assert_array_equal(model.trainable_variables[0].numpy(), own)


def test_adamw_leaves_norms_undecayed_and_refuses_a_second_decay(tiny_model):
    config = Config().replace(optimizer="adamw", weight_decay=0.1, norm_weight_decay=0.0).train
    optimizer = build_optimizer(config, tiny_model)
    decayed = {v.name for v in tiny_model.trainable_variables if optimizer._use_weight_decay(v)}
    assert "kernel" in decayed
    assert not decayed & {"gamma", "beta"}
    with pytest.raises(ConfigError, match="adamw takes 0 or weight_decay"):
        build_optimizer(Config().replace(optimizer="adamw", norm_weight_decay=0.05).train, tiny_model)


@pytest.mark.parametrize("backbone", ["mobilenet_v3_large", pytest.param("convnext_tiny", marks=pytest.mark.slow)])
def test_a_step_trains_the_stages_that_are_not_frozen(backbone):
    keras.utils.set_random_seed(3)
    model = MaskRCNN(**TINY | {"backbone": backbone, "backbone_norm": "frozen_bn", "frozen_stages": 3})
    config = Config().replace(optimizer="adamw", weight_decay=0.05).train
    before = {v.path: v.numpy() for v in model.weights}
    values = TrainStep(model, build_optimizer(config, model), config)([_batch()], 1e-3, 0).numpy()
    assert np.isfinite(values).all() and values[LOSS] > 0
    trained = {v.path for v in model.trainable_variables}
    changed = {v.path for v in model.weights if np.any(v.numpy() != before[v.path])}
    assert changed == trained
    first, last = {
        "mobilenet_v3_large": ("blocks_2_2_se_conv_expand", "blocks_3_0_conv_pw"),
        "convnext_tiny": ("stages_1_blocks_2_layer_scale", "stages_2_blocks_0_layer_scale"),
    }[backbone]
    names = {path.split("/")[0] for path in changed}
    assert first not in names and last in names
