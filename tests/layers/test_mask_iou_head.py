"""Mask scoring against mmdetection's formulas in NumPy, and in the whole model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config
from kmaskrcnn.layers.mask_iou_head import MaskIoUHead, mask_iou_loss, mask_iou_targets
from kmaskrcnn.model import LOSSES, MASK_IOU_LOSS
from kmaskrcnn.ops.mask_targets import mask_targets, share_inside
from tests.conftest import make_batch

VARIANTS = {
    "plain": {},
    "cascade": {"cascade_ious": (0.5, 0.6), "mask_class_agnostic": True, "head_norm": "gn"},
    "bn": {"head_norm": "bn"},
}


# mmdetection's MaskIoUHead.get_targets and loss, on bitmaps of whole pixels.


def mmdet_targets(predicted, targets, bitmaps, rois):
    """predicted (K, M, M) logits, targets (K, M, M) and bitmaps (K, H, W) of 0 and 1, rois (K, 4) whole yxyx."""
    ious = []
    for logits, target, bitmap, (y0, x0, y1, x1) in zip(predicted, targets, bitmaps, rois.astype(int), strict=True):
        ratio = bitmap[y0:y1, x0:x1].sum() / (bitmap.sum() + 1e-7)
        mask = 1 / (1 + np.exp(-logits)) > 0.5
        overlap = (mask * target).sum()
        whole = target.sum() / (ratio + 1e-7)
        with np.errstate(invalid="ignore"):
            ious.append(overlap / (mask.sum() + whole - overlap))
    return np.array(ious)


def mmdet_loss(predicted, targets):
    counted = targets > 0
    return 0.5 * np.mean((predicted[counted] - targets[counted]) ** 2)


@pytest.fixture
def objects():
    """Objects of 28 x 28 whole pixels and 14 x 14 cells, in an image of 60 x 60, with RoIs that cut some of them."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(14)] * 2, indexing="ij"), -1) - 6.5
    masks = np.stack([(np.abs(grid) ** p).sum(-1) < 6.5**p for p in (1, 2, 4, 2, 2, 2, 2)])
    masks[4, :, 3:9] = False  # in two parts
    corners = np.array([[5, 5], [20, 30], [0, 0], [31, 2], [16, 16], [10, 20], [8, 8]])
    bitmaps = np.zeros((7, 60, 60))
    for bitmap, mask, (y, x) in zip(bitmaps, masks, corners, strict=True):
        bitmap[y : y + 28, x : x + 28] = np.kron(mask, np.ones((2, 2)))
    frames = np.concatenate([corners, corners + 28], 1).astype(np.float32)
    shifts = [[0, 0, 0, 0], [-3, -3, 4, 2], [0, 0, -14, 0], [7, 3, 0, -9], [0, 0, 0, -14], [4, 4, -4, -4], [0, 0, 0, 0]]
    rois = frames + np.array(shifts, np.float32)
    logits = rng.normal(0, 3, (7, 28, 28)).astype(np.float32)
    logits[:3] = np.where(np.asarray(mask_targets(masks, frames, rois, 28))[:3] > 0, 2.0, -2.0) + logits[:3] / 3
    logits[6] = -1.0  # nothing is found
    return (masks * 255).astype(np.uint8), bitmaps, frames, rois, logits


def test_targets_and_loss_are_mmdetections(objects):
    masks, bitmaps, frames, rois, logits = objects
    targets = np.asarray(mask_targets(masks, frames, rois, 28))
    expected = mmdet_targets(logits, targets, bitmaps, rois)
    found = np.asarray(mask_iou_targets(logits, targets, masks, frames, rois))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[6] == 0 and found[0] > 0.7 and found[:6].min() > 0.05
    # Half of this object lies outside of the RoI, and counts.
    assert found[2] < 0.6 < mmdet_targets(logits[2:3], targets[2:3], bitmaps[2:3, :14], rois[2:3])[0]
    ious = np.random.default_rng(0).normal(0.5, 0.3, 7).astype(np.float32)
    ours = mask_iou_loss(ious, found, np.ones(7, np.float32), 7.0)
    np.testing.assert_allclose(ours, mmdet_loss(ious, expected) * 6 / 7, rtol=1e-5)  # one of them has no overlap
    weights = np.array([1, 1, 1, 0, 1, 0, 1], np.float32)
    rows = weights > 0
    ours = mask_iou_loss(ious, found, weights, 5.0)
    np.testing.assert_allclose(ours, mmdet_loss(ious[rows], expected[rows]) * 4 / 5, rtol=1e-5)


def test_soft_targets_are_thresholded(objects):
    masks, _, frames, rois, logits = objects
    soft = mask_targets(masks, frames, rois, 28, binary=False)
    hard = mask_targets(masks, frames, rois, 28)
    assert np.abs(np.asarray(soft - hard)).max() > 0.2
    found, expected = (mask_iou_targets(logits, x, masks, frames, rois) for x in (soft, hard))
    np.testing.assert_array_equal(found, expected)


def test_neither_mask_nor_object_is_no_target():
    masks, frame = np.zeros((1, 8, 8), np.uint8), np.array([[0, 0, 10, 10]], np.float32)
    logits, roi = np.full((1, 28, 28), -1, np.float32), np.array([[20, 20, 30, 30]], np.float32)
    for mask, prediction in ((masks, logits), (masks + 255, logits), (masks, -logits), (masks + 255, -logits)):
        target = mask_iou_targets(prediction, mask_targets(mask, frame, roi, 28), mask, frame, roi)
        np.testing.assert_array_equal(target, 0.0)


def test_the_share_inside_a_roi_counts_parts_of_cells():
    rng = np.random.default_rng(1)
    masks = rng.integers(0, 256, (4, 5, 5)).astype(np.uint8)
    frames = np.array([[3, 4, 13, 24], [0, 0, 7, 9], [2, 2, 4, 4], [5, 5, 9, 9]], np.float32)
    rois = np.array([[4.3, 9.9, 11.2, 20], [-3, -3, 3.7, 30], [0, 0, 9, 9], [20, 0, 30, 30]], np.float32)
    fine = 2000
    for found, mask, frame, roi in zip(np.asarray(share_inside(masks, frames, rois)), masks, frames, rois, strict=True):
        at = (np.arange(fine) + 0.5) / fine
        y, x = (frame[a] + at * (frame[a + 2] - frame[a]) for a in (0, 1))
        inside = [(v >= roi[a]) & (v < roi[a + 2]) for a, v in ((0, y), (1, x))]
        values = np.kron(mask.astype(float), np.ones((fine // 5, fine // 5)))
        np.testing.assert_allclose(found, values[np.ix_(*inside)].sum() / values.sum(), atol=2e-3)


def numpy_head(head, features, masks, classes):
    """The published layers, point by point."""
    pooled = masks.reshape(-1, features.shape[1], 2, features.shape[2], 2).max((2, 4))
    x = np.concatenate([features, pooled[..., None]], -1).astype(np.float64)
    for stride, conv in zip((1, 1, 1, 2), head.convs, strict=True):
        kernel, padded = np.asarray(conv.kernel), np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = (range(0, side, stride) for side in x.shape[1:3])
        x = np.stack(
            [np.stack([np.tensordot(padded[:, i : i + 3, j : j + 3], kernel, 3) for j in columns], 1) for i in rows],
            1,
        )
        x = np.maximum(x + np.asarray(conv.bias), 0)
    x = x.reshape(len(x), -1)
    for fc in head.fcs:
        x = np.maximum(x @ np.asarray(fc.kernel) + np.asarray(fc.bias), 0)
    x = x @ np.asarray(head.ious.kernel) + np.asarray(head.ious.bias)
    return x[np.arange(len(x)), classes if x.shape[1] > 1 else 0]


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize("agnostic", [False, True])
def test_the_layers_are_those_published(side, agnostic):
    keras.utils.set_random_seed(2)
    head = MaskIoUHead(4, 5, 7, class_agnostic=agnostic)
    head.build((None, side, side, 3))
    rng = np.random.default_rng(0)
    for variable in head.weights:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    features = rng.normal(size=(6, side, side, 3)).astype(np.float32)
    masks = rng.random((6, 2 * side, 2 * side)).astype(np.float32)
    classes = np.array([0, 1, 2, 3, 4, 2], np.int32)
    expected = numpy_head(head, features, masks, classes)
    np.testing.assert_allclose(head(features, masks, classes), expected, rtol=1e-3, atol=1e-4)
    assert MaskIoUHead.from_config(head.get_config()).get_config() == head.get_config()


def scoring(settings, **more):
    """A small model whose masks and IoUs differ from object to object."""
    keras.utils.set_random_seed(7)
    model = MaskRCNN(**settings, mask_scoring=True, **more)
    rng = np.random.default_rng(1)
    model.mask_head.logits_kernel.assign(rng.normal(0, 0.2, model.mask_head.logits_kernel.shape))
    model.mask_iou_head.ious.kernel.assign(rng.normal(0, 0.01, model.mask_iou_head.ious.kernel.shape))
    model.mask_iou_head.ious.bias.assign(np.full(model.mask_iou_head.ious.bias.shape, 0.5))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_is_trained(tiny_settings, batch, variant):
    model = scoring(tiny_settings, **VARIANTS[variant])
    with tf.GradientTape() as tape:
        losses = model(batch, training=True)
        total = model.compute_loss(y_pred=losses)
    assert set(losses) == set(model.loss_names) >= {*LOSSES, MASK_IOU_LOSS}
    assert all(np.isfinite(value) and value > 0 for value in losses.values())
    np.testing.assert_allclose(total, sum(losses.values()), rtol=1e-6)
    variables = model.mask_iou_head.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(total, variables), strict=True):
        assert np.abs(gradient).max() > 0, variable.path


@pytest.mark.parametrize("variant", VARIANTS)
def test_static_and_dynamic_shapes_agree_and_a_saved_model_comes_back(tiny_settings, batch, tmp_path, variant):
    model = scoring(tiny_settings, **VARIANTS[variant])
    found, losses = model(batch["images"]), model(batch, training=True)
    count = int(found["num_detections"][0])
    ratios = found["mask_scores"][0, :count] / found["scores"][0, :count]
    assert count > 5 and np.ptp(ratios) > 1e-3 and 0 < np.min(ratios) < np.max(ratios) < 1
    assert not np.any(found["mask_scores"][0, count:])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.config == model.config and loaded.mask_iou_head.get_config() == model.mask_iou_head.get_config()
    if variant != "bn":  # whose statistics the losses have changed
        for name, value in loaded(batch["images"]).items():
            np.testing.assert_array_equal(value, found[name], err_msg=name)
    model = scoring(tiny_settings, **VARIANTS[variant])
    model.static_shapes = True
    for name, value in model(batch["images"]).items():
        np.testing.assert_allclose(value, found[name], atol=1e-4, err_msg=name)
    for name, value in model(batch, training=True).items():
        np.testing.assert_allclose(value, losses[name], rtol=1e-4, err_msg=name)


def test_losses_of_images_add_up_under_the_normalizers_of_all(tiny_settings):
    """What replicas and gradient accumulation rest on."""
    model, batch = scoring(tiny_settings), make_batch()
    counts = model(batch, training=True, counts_only=True)
    whole = model(batch, training=True)[MASK_IOU_LOSS]
    parts = [{name: value[i : i + 1] for name, value in batch.items()} | {"normalizers": counts} for i in range(2)]
    own = [model(part, training=True)[MASK_IOU_LOSS] for part in parts]
    assert min(own) > 0
    np.testing.assert_allclose(sum(own), whole, rtol=2e-5)


def test_the_score_is_that_of_the_predicted_iou(tiny_settings, batch, monkeypatch):
    model = scoring(tiny_settings)
    expected = model(batch["images"])["mask_scores"]
    monkeypatch.setattr("kmaskrcnn.model._MASKS_AT_ONCE", 4)
    np.testing.assert_allclose(model(batch["images"])["mask_scores"], expected, rtol=1e-5, atol=1e-7)
    bias = model.mask_iou_head.ious.bias
    for value, factor in ((-50.0, 0.0), (50.0, 1.0)):
        bias.assign(np.full(bias.shape, value))
        found = model(batch["images"])
        np.testing.assert_allclose(found["mask_scores"], found["scores"] * factor, rtol=1e-6)


def test_the_error_reaches_the_mask_head_and_no_target_does(tiny_settings, batch):
    """As in mmdetection, where the MaskIoU head reads a mask with its gradient."""
    model = scoring(tiny_settings)
    with tf.GradientTape() as tape:
        loss = model(batch, training=True)[MASK_IOU_LOSS]
    variables = [model.mask_head.deconv.kernel.value, model.box_head.class_logits.kernel.value]
    mask, box = tape.gradient(loss, variables)
    assert np.abs(mask).max() > 0 and box is None


def test_images_without_objects_have_no_mask_iou_loss(tiny_settings):
    losses = scoring(tiny_settings)(make_batch(filled=(0, 0)), training=True)
    assert losses[MASK_IOU_LOSS] == 0 and losses["class"] > 0


def test_off_there_is_nothing_of_it(tiny_model, batch):
    assert "mask_scores" not in tiny_model(batch["images"]) and set(tiny_model(batch, training=True)) == set(LOSSES)
    assert not [w.path for w in tiny_model.weights if "mask_iou" in w.path]


def test_widths_are_the_last_of_the_other_heads(tiny_settings):
    def widths(**more):
        head = MaskRCNN(**tiny_settings | more, mask_scoring=True).mask_iou_head
        return head.convs[0].filters, head.fcs[0].units

    assert widths() == (32, 64)
    assert widths(mask_conv_channels=(8, 16), box_fc_channels=(24, 40)) == (16, 40)
    assert widths(mask_conv_channels=(), box_fc_channels=()) == (32, 32)
    default = Config().model
    assert (default.mask_conv_channels[-1], default.box_fc_channels[-1]) == (256, 1024)
