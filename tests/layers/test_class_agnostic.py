"""Class-agnostic heads against class-specific ones that have the same row for every class."""

import keras
import numpy as np
import pytest

from kmaskrcnn import MaskRCNN
from kmaskrcnn.model import LOSSES
from tests.conftest import make_batch

BOX, MASK = "box_class_agnostic", "mask_class_agnostic"


def twins(settings, agnostic, **more):
    """A class-agnostic model whose boxes move, and the class-specific one that answers alike."""
    keras.utils.set_random_seed(3)
    model = MaskRCNN(**settings | dict.fromkeys(agnostic, True) | more)
    keras.utils.set_random_seed(3)
    specific = MaskRCNN(**settings | more)
    rng, head = np.random.default_rng(0), model.box_head
    for variable, deviation in ((head.class_logits.kernel, 0.03), (head.deltas.kernel, 0.2)):
        variable.assign(rng.normal(0, deviation, variable.shape))
    model.mask_head.logits_kernel.assign(rng.normal(0, 0.2, model.mask_head.logits_kernel.shape))
    for own, other in zip(model.weights, specific.weights, strict=True):
        value, classes = own.numpy(), settings["num_classes"] + 1
        if own.shape != other.shape:
            axis = 0 if "mask_head" in own.path else -1
            value = np.concatenate([value] * classes, axis=axis)
        other.assign(value)
    return model, specific


@pytest.mark.parametrize("agnostic", [(BOX,), (MASK,), (BOX, MASK)])
@pytest.mark.parametrize("static", [False, True])
def test_equals_heads_with_the_same_row_for_every_class(tiny_settings, agnostic, static):
    batch = make_batch(instances=3, filled=(3,))
    model, specific = twins(tiny_settings, agnostic, box_min_size=2.0)
    assert model.count_params() < specific.count_params()
    model.static_shapes = specific.static_shapes = static
    found, expected = model(batch["images"]), specific(batch["images"])
    assert len(set(np.asarray(found["classes"]).ravel())) > 1
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-4, err_msg=name)
    losses, expected = model(batch, training=True), specific(batch, training=True)
    for name in LOSSES:
        assert losses[name] > 0
        np.testing.assert_allclose(losses[name], expected[name], rtol=1e-5, err_msg=name)


def test_layers_come_back_from_their_config(tiny_settings):
    model, _ = twins(tiny_settings, (BOX, MASK))
    again = MaskRCNN.from_config(model.get_config())
    assert again.config == model.config
    for part in (model.box_head, model.mask_head):
        assert type(part).from_config(part.get_config()).class_agnostic
