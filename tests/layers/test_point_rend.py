"""PointRend's mask heads against the paper's steps in NumPy, and in the whole model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.layers.box_head import RoISample, predicted_boxes
from kmaskrcnn.layers.point_rend import TRAIN_POINTS, PointRendMaskHead
from kmaskrcnn.model import LOSSES, MASK_POINT_LOSS
from kmaskrcnn.ops.points import uncertain_points
from tests.conftest import make_batch
from tests.ops.test_points import hat_sample

SMALL = {
    "mask_point_rend": True,
    "mask_fc_channels": (24,),
    "mask_point_channels": (16, 12),
    "mask_subdivisions": 3,
}
VARIANTS = {
    "plain": {},
    "cascade": {"cascade_ious": (0.5, 0.6), "mask_class_agnostic": True, "head_norm": "gn"},
    "narrow": {"mask_conv_channels": (8,), "mask_pool_size": 10, "mask_subdivisions": 1},
}


# The heads in float64, RoI by RoI.


def relu(x):
    return np.maximum(x, 0)


def dense(layer, x):
    return x @ np.asarray(layer.kernel, np.float64) + np.asarray(layer.bias)


def points_of(side):
    return np.array([[(i + 0.5) / side, (j + 0.5) / side] for i in range(side) for j in range(side)])


def sample_map(feature, box, points):
    """The map of stride 4 at points in 0..1 of the box."""
    return hat_sample(feature, (box[:2] + points * (box[2:] - box[:2])) / 4)


def numpy_coarse(head, feature, box):
    pool = head.pool_size
    x = sample_map(feature, box, points_of(pool)).reshape(pool, pool, -1)
    if head.reduce is not None:
        x = relu(dense(head.reduce, x))
    kernel = np.asarray(head.conv.kernel, np.float64).reshape(2, 2, x.shape[-1], -1)
    x = sum(x[i::2, j::2] @ kernel[i, j] for i in (0, 1) for j in (0, 1)) + np.asarray(head.conv.bias)
    x = relu(x).reshape(-1)
    for fc in head.fcs:
        x = relu(dense(fc, x))
    return dense(head.coarse, x).reshape(7, 7, head.num_classes)


def numpy_points(head, feature, box, class_, coarse, points):
    x, beside = sample_map(feature, box, points), hat_sample(coarse, points * 7)
    for fc in head.point_fcs:
        x = relu(dense(fc, np.concatenate([x, beside], -1)))
    row = 0 if head.class_agnostic else class_ - 1
    kernel, bias = (np.asarray(w, np.float64)[row] for w in (head.logits_kernel, head.logits_bias))
    return np.concatenate([x, beside], -1) @ kernel + bias


def doubled(mask):
    """Bilinear between the centers of cells, the border's value beyond them."""
    side = len(mask)
    at = np.clip((np.arange(2 * side) + 0.5) / 2 - 0.5, 0, side - 1)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(side)), 0)
    return weights @ mask @ weights.T


def numpy_subdivision(head, feature, box, class_, doublings):
    coarse = numpy_coarse(head, feature, box)
    side = min(28, 7 * 2**doublings)
    mask = numpy_points(head, feature, box, class_, coarse, points_of(side)).reshape(side, side)
    while side < 7 * 2**doublings:
        mask, side = doubled(mask), 2 * side
        worst = np.argsort(np.abs(mask.reshape(-1)), kind="stable")[:784]
        mask.reshape(-1)[worst] = numpy_points(head, feature, box, class_, coarse, points_of(side)[worst])
    return mask


def random_head(**settings):
    head = PointRendMaskHead(3, **{"fc_channels": (9, 8), "point_channels": (7, 6)} | settings)
    head.build((None, None, None, 5))
    rng = np.random.default_rng(0)
    for variable in head.weights:
        variable.assign(rng.normal(0, 0.4, variable.shape))
    return head


@pytest.fixture
def scene():
    rng = np.random.default_rng(4)
    features = {"P2": rng.normal(size=(2, 12, 16, 5)).astype(np.float32)}
    boxes = np.array([[3, 5, 30, 50], [10, 10, 12, 13], [-4, 40, 60, 70], [0, 0, 48, 64]], np.float32)
    return features, boxes, np.array([1, 3, 2, 2], np.int32), np.array([1, 0, 1, 0], np.int32)


@pytest.mark.parametrize(
    "settings",
    [
        {"conv_channels": 4},
        {"conv_channels": 6, "pool_size": 10, "class_agnostic": True},
        {"conv_channels": 5, "subdivisions": 1},
    ],
)
def test_both_heads_and_the_subdivision_are_those_of_the_paper(scene, settings):
    head, (features, boxes, classes, owners) = random_head(**settings), scene
    assert (head.reduce is None) == (settings["conv_channels"] >= 5)
    coarse, found = head.coarse_logits(features, boxes, owners), np.asarray(head(*scene))
    doublings = settings.get("subdivisions", 5)
    assert found.shape == (4, head.side, head.side) and head.side == 7 * 2**doublings
    for k, (box, class_, owner) in enumerate(zip(boxes.astype(np.float64), classes, owners, strict=True)):
        feature = features["P2"][owner]
        np.testing.assert_allclose(coarse[k], numpy_coarse(head, feature, box), atol=1e-4)
        expected = numpy_subdivision(head, feature, box, class_, doublings)
        # A cell that is as uncertain as another but for rounding may be left for it.
        assert np.mean(np.abs(found[k] - expected) > 1e-3) < 1e-3
        if doublings > 2:  # which is more than interpolation
            whole = numpy_points(head, feature, box, class_, numpy_coarse(head, feature, box), points_of(28))
            for _ in range(doublings - 2):
                whole = doubled(whole.reshape(28, 28) if whole.ndim == 1 else whole)
            assert np.mean(np.abs(whole - expected) > 1e-2) > 0.05
    assert PointRendMaskHead.from_config(head.get_config()).get_config() == head.get_config()


def test_training_samples_the_coarse_mask_and_uncertain_points(scene):
    head, (features, boxes, classes, owners) = random_head(conv_channels=4), scene
    seeds = np.array([1, 2, 3, 4], np.int64)
    coarse, points, logits = head.sample(*scene, seeds)
    assert points.shape == (4, TRAIN_POINTS, 2) and TRAIN_POINTS == 196
    np.testing.assert_array_equal(points, uncertain_points(coarse, 196, 3, 0.75, seeds))
    for k, (box, class_, owner) in enumerate(zip(boxes.astype(np.float64), classes, owners, strict=True)):
        own = numpy_coarse(head, features["P2"][owner], box)
        np.testing.assert_allclose(coarse[k], own[..., class_ - 1], atol=1e-4)
        at = np.asarray(points[k], np.float64)
        expected = numpy_points(head, features["P2"][owner], box, class_, own, at)
        np.testing.assert_allclose(logits[k], expected, atol=1e-3)


def test_no_rois_have_no_masks(scene):
    features, boxes, classes, owners = scene
    assert random_head()(features, boxes[:0], classes[:0], owners[:0]).shape == (0, 224, 224)


def test_boxes_of_training_are_those_of_the_own_class():
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 50, (2, 4, 2))
    boxes = np.concatenate([start, start + rng.uniform(5, 30, (2, 4, 2))], -1).astype(np.float32)
    classes = np.array([[1, 3, 0, 0], [2, 0, 0, 0]], np.int32)
    sample = RoISample(boxes, classes, classes, classes > 0, classes > 0)
    deltas = rng.normal(0, 1, (2, 4, 4, 4)).astype(np.float32)
    for own, agnostic in (
        (np.take_along_axis(deltas, classes[..., None, None], 2)[:, :, 0], False),
        (deltas[:, :, 0], True),
    ):
        found = np.asarray(predicted_boxes(deltas[:, :, :1] if agnostic else deltas, sample))
        size, center = boxes[..., 2:] - boxes[..., :2], (boxes[..., 2:] + boxes[..., :2]) / 2
        center, size = center + own[..., :2] / 10 * size, np.exp(own[..., 2:] / 5) * size
        np.testing.assert_allclose(
            found, np.concatenate([center - size / 2, center + size / 2], -1), rtol=1e-4, atol=1e-3
        )


# In the whole model.


def pointed(settings, **more):
    """A small model whose masks differ from object to object and have edges."""
    keras.utils.set_random_seed(7)
    model = MaskRCNN(**settings | SMALL | more)
    rng = np.random.default_rng(1)
    head = model.mask_head
    head.coarse.kernel.assign(rng.normal(0, 0.5, head.coarse.kernel.shape))
    head.logits_kernel.assign(rng.normal(0, 0.2, head.logits_kernel.shape))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_is_trained(tiny_settings, batch, variant):
    model = pointed(tiny_settings, **VARIANTS[variant])
    with tf.GradientTape() as tape:
        losses = model(batch, training=True)
        total = model.compute_loss(y_pred=losses)
    assert set(losses) == set(model.loss_names) >= {*LOSSES, MASK_POINT_LOSS}
    assert all(np.isfinite(value) and value > 0 for value in losses.values())
    np.testing.assert_allclose(total, sum(losses.values()), rtol=1e-6)
    variables = model.mask_head.trainable_variables
    assert len(variables) == 2 * (1 + 1 + 1 + 2 + 1 + (variant == "narrow"))
    for variable, gradient in zip(variables, tape.gradient(total, variables), strict=True):
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 0, variable.path


@pytest.mark.parametrize("variant", VARIANTS)
def test_static_and_dynamic_shapes_agree_and_a_saved_model_comes_back(tiny_settings, batch, tmp_path, variant):
    model = pointed(tiny_settings, **VARIANTS[variant])
    found, losses = model(batch["images"]), model(batch, training=True)
    count, side = int(found["num_detections"][0]), model.mask_head.side
    assert count > 5 and found["masks"].shape[1:] == (20, side, side)
    assert np.asarray(found["masks"])[0, :count].std(axis=(1, 2)).min() > 0.01
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.config == model.config and loaded.mask_head.get_config() == model.mask_head.get_config()
    for name, value in loaded(batch["images"]).items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    model.static_shapes = True
    for name, value in model(batch["images"]).items():
        differs = np.abs(np.asarray(value) - found[name]) > 1e-4
        assert differs.mean() <= (1e-4 if name == "masks" else 0), name  # cells that are as uncertain but for rounding
    for name, value in model(batch, training=True).items():
        np.testing.assert_allclose(value, losses[name], rtol=1e-4, err_msg=name)


def test_many_masks_are_found_in_chunks_as_they_are_at_once(tiny_settings, batch, monkeypatch):
    model = pointed(tiny_settings)
    expected = model(batch["images"])["masks"]
    monkeypatch.setattr("kmaskrcnn.model._MASKS_AT_ONCE", 4)
    found = model(batch["images"])["masks"]
    assert np.mean(np.abs(found - expected) > 1e-4) < 1e-4


def test_losses_of_images_add_up_under_the_normalizers_of_all(tiny_settings):
    """What replicas and gradient accumulation rest on; the points of a RoI are the same whatever is beside it."""
    model, batch = pointed(tiny_settings), make_batch()
    counts = model(batch, training=True, counts_only=True)
    whole = model(batch, training=True)
    parts = [{name: value[i : i + 1] for name, value in batch.items()} | {"normalizers": counts} for i in range(2)]
    own = [model(part, training=True) for part in parts]
    for name in ("mask", MASK_POINT_LOSS):
        assert min(losses[name] for losses in own) > 0
        # By rounding, another of two points that are as uncertain may be taken.
        bound = 2e-5 if name == "mask" else 1e-3
        np.testing.assert_allclose(sum(losses[name] for losses in own), whole[name], rtol=bound)


def test_points_follow_the_seeds_of_the_images_and_differ_from_roi_to_roi(tiny_settings, batch, monkeypatch):
    model, seen = pointed(tiny_settings), []
    monkeypatch.setattr(
        "kmaskrcnn.layers.point_rend.uncertain_points", lambda *args: seen.append(args[-1]) or uncertain_points(*args)
    )
    losses = [model(batch, training=True) for _ in range(2)]
    assert losses[0][MASK_POINT_LOSS] == losses[1][MASK_POINT_LOSS]
    np.testing.assert_array_equal(*seen)
    assert len(set(np.asarray(seen[0]))) == len(seen[0]) > 4
    model(batch | {"sample_seeds": batch["sample_seeds"] + 1000}, training=True)
    assert not np.isin(seen[2], seen[0]).any()


def test_masks_are_trained_on_the_boxes_that_the_box_head_makes(tiny_settings, batch, monkeypatch):
    model, seen = pointed(tiny_settings), []
    sample = PointRendMaskHead.sample
    monkeypatch.setattr(PointRendMaskHead, "sample", lambda *args: seen.append(args[2]) or sample(*args))
    model.box_head.deltas.kernel.assign(np.zeros(model.box_head.deltas.kernel.shape))
    model(batch, training=True)
    model.box_head.deltas.bias.assign(np.tile(np.float32([10, 0, 0, 0]), 4))  # down by their height
    with tf.GradientTape() as tape:
        loss = model(batch, training=True)[MASK_POINT_LOSS]
    before, after = map(np.asarray, seen)
    np.testing.assert_allclose(after[:, 0], before[:, 2], atol=1e-3)
    np.testing.assert_allclose(after[:, [1, 3]], before[:, [1, 3]], atol=1e-3)
    assert tape.gradient(loss, model.box_head.class_logits.kernel.value) is None


def test_steps_lower_both_losses(tiny_settings, batch):
    model = pointed(tiny_settings)
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    seen = [model.train_on_batch(batch, return_dict=True) for _ in range(6)]
    model.reset_metrics()
    after = model.test_on_batch(batch, return_dict=True)
    for name in ("mask", MASK_POINT_LOSS):
        assert after[name] < 0.8 * seen[0][name], name


def test_half_precision_is_near(tiny_settings, batch):
    whole, half = pointed(tiny_settings), pointed(tiny_settings, dtype="mixed_bfloat16")
    rois = np.array([[10, 10, 50, 60], [3, 30, 90, 80]], np.float32), np.array([1, 2]), np.array([0, 1])
    features = whole.pyramid(tf.cast(batch["images"], tf.float32) / 100 - 1)
    seeds = np.array([1, 2])
    expected = whole.mask_head.sample(features, *rois, seeds)
    found = half.mask_head.sample({"P2": tf.cast(features["P2"], tf.bfloat16)}, *rois, seeds)
    assert all(x.dtype == tf.float32 for x in found)
    np.testing.assert_allclose(found[0], expected[0], atol=0.05 * np.abs(expected[0]).max())
    assert all(np.isfinite(value) for value in half(batch, training=True).values())
    assert half(batch["images"])["masks"].dtype == tf.float32


def test_images_without_objects_have_no_loss_of_points(tiny_settings):
    losses = pointed(tiny_settings)(make_batch(filled=(0, 0)), training=True)
    assert losses[MASK_POINT_LOSS] == 0 and losses["class"] > 0


def test_off_there_is_nothing_of_it(tiny_model, batch):
    assert set(tiny_model(batch, training=True)) == set(LOSSES)
    assert not [w.path for w in tiny_model.weights if "point" in w.path or "coarse" in w.path]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask_scoring": True}, "mask_scoring=True: not with mask_point_rend"),
        ({"mask_pool_size": 7}, "mask_pool_size=7: must be even with mask_point_rend"),
        ({"mask_subdivisions": 0}, "mask_subdivisions=0: must lie in 1..6"),
        ({"mask_point_channels": (16, 0)}, "mask_point_channels=.*above 0"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_a_line(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        Config().replace(mask_point_rend=True, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"mask_subdivisions": 3}, {"mask_fc_channels": (8,)}, {"mask_point_channels": (8,)}]
)
def test_its_settings_are_refused_without_it(settings):
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}=.*: only PointRend has it: give mask_point_rend"):
        Config().replace(**settings)
