"""The cascade against its definition in float64, and in the whole model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn import MaskRCNN
from kmaskrcnn.config import Config
from kmaskrcnn.layers.box_head import RoISample
from kmaskrcnn.layers.cascade import Cascade, scale_gradient
from kmaskrcnn.model import LOSSES
from tests.conftest import make_batch

IOUS = (0.5, 0.6, 0.7)
CLASSES, ROIS, SHAPES = 3, 40, np.array([[60, 90], [50, 40]])
STAGES = [f"{loss}_stage{stage}" for stage in (2, 3) for loss in ("class", "box")]


@pytest.fixture
def answers():
    """What each head says of the RoIs: logits (2, R, C + 1) and deltas (2, R, 1, 4), of stages 1 to 3."""
    rng = np.random.default_rng(4)
    logits = [rng.normal(0, 2, (2, ROIS, CLASSES + 1)).astype(np.float32) for _ in IOUS]
    deltas = [rng.normal(0, 0.7, (2, ROIS, 1, 4)).astype(np.float32) for _ in IOUS]
    deltas[1][0, 3, 0] = [-1000, 0, 0, 0]  # above the image, so nothing of it is left
    return list(zip(logits, deltas, strict=True))


@pytest.fixture
def truth():
    """Five rows an image: a crowd region and padding among them."""
    boxes = np.array([[5, 5, 35, 40], [20, 30, 58, 88], [0, 50, 30, 90], [30, 0, 60, 30], [0, 0, 0, 0]], np.float32)
    boxes = np.stack([boxes, boxes * [0.8, 0.4, 0.8, 0.4]]).astype(np.float32)
    classes = np.array([[1, 3, 2, 1, 0], [2, 2, 3, 1, 0]], np.int32)
    crowd = np.zeros((2, 5), bool)
    crowd[:, 3] = True
    return boxes, classes, classes > 0, crowd


@pytest.fixture
def rois(truth):
    """Near the objects, so that a step or two of the stages changes which of them are positives."""
    rng = np.random.default_rng(2)
    boxes = np.repeat(truth[0][:, :4], ROIS // 4, axis=1) + rng.normal(0, 3, (2, ROIS, 4))
    boxes[1, -1] = 0  # a row that holds no RoI
    return boxes.astype(np.float32)


def reference_move(deltas, boxes, stage, clipped=True):
    """The box (R, 4) that deltas (R, 4) of a stage make of boxes, by Fast R-CNN's appendix C, cut at the image."""
    d = deltas.astype(np.float64) / (stage * np.array([10, 10, 5, 5]))
    size = boxes[..., 2:] - boxes[..., :2]
    center = (boxes[..., 2:] + boxes[..., :2]) / 2 + d[..., :2] * size
    size = size * np.exp(d[..., 2:])
    moved = np.concatenate([center - size / 2, center + size / 2], axis=-1)
    limits = np.tile(SHAPES, 2)[:, None]
    return np.clip(moved, 0, limits) if clipped else moved


def overlap(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(height, 0) * max(width, 0)


def area(box):
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def reference_losses(logits, deltas, boxes, exists, truth, iou, stage):
    """Sums of the losses of a stage, and how many RoIs were positive, negative and neither."""
    sums, kinds = np.zeros(2), [0, 0, 0]
    for image in range(2):
        gt, classes, valid, crowd = (x[image] for x in truth)
        for box, own, delta, there in zip(boxes[image], logits[image], deltas[image], exists[image], strict=True):
            if not there or not area(box):
                kinds[2] += 1
                continue
            ious = [
                overlap(box, g) / (area(box) + area(g) - overlap(box, g)) if v and not c else -1
                for g, v, c in zip(gt, valid, crowd, strict=True)
            ]
            best, wanted = int(np.argmax(ious)), 0
            if ious[best] >= iou:
                wanted = classes[best]
                target = reference_encode(gt[best], box, stage)
                sums[1] += np.abs(delta[0] - target).sum()
            elif any(overlap(box, g) >= 0.5 * area(box) for g, c in zip(gt, crowd, strict=True) if c):
                kinds[2] += 1
                continue
            kinds[0 if wanted else 1] += 1
            own = own.astype(np.float64)
            sums[0] += np.log(np.exp(own).sum()) - own[wanted]
    return sums, kinds


def reference_encode(gt, box, stage):
    size, own = gt[2:] - gt[:2], box[2:] - box[:2]
    shift = ((gt[2:] + gt[:2]) - (box[2:] + box[:2])) / 2 / own
    return stage * np.array([10, 10, 5, 5]) * np.concatenate([shift, np.log(size / own)])


def fake_run(answers, seen):
    def run(head, boxes):
        seen.append(np.asarray(boxes))
        return answers[int(head.name.removeprefix("stage")) - 1]

    return run


def test_each_stage_is_trained_on_the_boxes_of_the_one_before(answers, truth, rois):
    exists = np.ones((2, ROIS), bool)
    exists[1, -1] = False
    sample = RoISample(rois, None, None, None, exists)
    config = Config().replace(num_classes=CLASSES, cascade_ious=IOUS).model
    seen = []
    found = Cascade(3, CLASSES, fc_channels=(8,)).stage_losses(
        fake_run(answers, seen), answers[0][1], sample, truth, SHAPES, 50.0, config
    )
    assert list(found) == STAGES
    boxes, kinds = rois.astype(np.float64), []
    for stage, iou in enumerate(IOUS[1:], 2):
        boxes = reference_move(answers[stage - 2][1][:, :, 0], boxes, stage - 1)
        np.testing.assert_allclose(seen[stage - 2], boxes, atol=1e-4)
        sums, counts = reference_losses(*answers[stage - 1], boxes, exists, truth, iou, stage)
        np.testing.assert_allclose(found[f"class_stage{stage}"], sums[0] / 50, rtol=1e-5)
        np.testing.assert_allclose(found[f"box_stage{stage}"], sums[1] / 50, rtol=1e-4)
        kinds.append(counts)
    assert min(min(counts) for counts in kinds) > 3 and kinds[0] != kinds[1]  # or the test would show little
    assert not area(boxes[0, 3])


def test_inference_is_the_mean_of_the_scores_and_the_last_boxes(answers, rois):
    cascade = Cascade(3, CLASSES, fc_channels=(8,))
    logits, deltas, boxes = cascade.refine(fake_run(answers, []), *answers[0], rois, SHAPES)
    expected = np.mean([np.exp(a) / np.exp(a).sum(-1, keepdims=True) for a, _ in answers], axis=0)
    np.testing.assert_allclose(keras.ops.softmax(logits), expected, rtol=1e-5, atol=1e-7)
    moved = rois.astype(np.float64)
    for stage, (_, own) in enumerate(answers, 1):
        before, moved = moved, reference_move(own[:, :, 0], moved, stage, clipped=stage < 3)
    np.testing.assert_allclose(boxes, before, atol=1e-4)
    np.testing.assert_allclose(reference_move(np.asarray(deltas)[:, :, 0], before, 1, False), moved, atol=1e-4)


def test_a_scaled_gradient_leaves_the_value_as_it_is():
    x = tf.constant(np.random.default_rng(0).normal(0, 1e3, 100), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = scale_gradient(x, 1 / 3)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_allclose(tape.gradient(y, x), np.full(100, 1 / 3), rtol=1e-6)


@pytest.fixture
def cascaded(tiny_settings):
    """A small model whose boxes move."""
    keras.utils.set_random_seed(7)
    model = MaskRCNN(**tiny_settings, cascade_ious=IOUS)
    rng = np.random.default_rng(1)
    for head in (model.box_head, *model.cascade.heads):
        head.deltas.kernel.assign(rng.normal(0, 0.01, head.deltas.kernel.shape))
    return model


def test_every_stage_is_trained(cascaded, batch):
    with tf.GradientTape() as tape:
        losses = cascaded(batch, training=True)
        total = cascaded.compute_loss(y_pred=losses)
    assert set(losses) == {*LOSSES, *STAGES} and all(value > 0 for value in losses.values())
    np.testing.assert_allclose(total, sum(losses.values()), rtol=1e-6)
    gradients = tape.gradient(total, cascaded.trainable_variables)
    for variable, gradient in zip(cascaded.trainable_variables, gradients, strict=True):
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 0, variable.path


def test_a_stage_gives_the_pyramid_its_share_of_the_gradient_and_its_own_layers_all(cascaded, tiny_settings, batch):
    plain = MaskRCNN(**tiny_settings, box_class_agnostic=True)
    values = {variable.path: variable for variable in cascaded.weights}
    for variable in plain.weights:
        variable.assign(values[variable.path])

    def gradients(model):
        with tf.GradientTape() as tape:
            loss = model(batch, training=True)["class"]
        return tape.gradient(loss, [model.fpn.output_convs[0].kernel.value, model.box_head.class_logits.kernel.value])

    (pyramid, own), (pyramid_of_one, own_of_one) = gradients(cascaded), gradients(plain)
    assert np.abs(pyramid).max() > 0
    np.testing.assert_allclose(3 * pyramid, pyramid_of_one, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(own, own_of_one, rtol=1e-4, atol=1e-7)


def test_losses_of_images_add_up_under_the_normalizers_of_all(cascaded):
    """What replicas and gradient accumulation rest on."""
    batch = make_batch()
    counts = cascaded(batch, training=True, counts_only=True)
    whole = cascaded(batch, training=True)
    parts = [
        cascaded({name: value[i : i + 1] for name, value in batch.items()} | {"normalizers": counts}, training=True)
        for i in range(2)
    ]
    for name in (*LOSSES, *STAGES):
        np.testing.assert_allclose(parts[0][name] + parts[1][name], whole[name], rtol=2e-5, err_msg=name)


def test_static_and_dynamic_shapes_agree_and_a_saved_model_comes_back(cascaded, batch, tmp_path):
    found = cascaded(batch["images"])
    assert (found["num_detections"] > 5).numpy().all()
    cascaded.static_shapes = True
    for name, value in cascaded(batch["images"]).items():
        np.testing.assert_allclose(value, found[name], atol=1e-4, err_msg=name)
    cascaded.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.config == cascaded.config
    for name, value in loaded(batch["images"]).items():
        np.testing.assert_array_equal(value, found[name], err_msg=name)
    layer = Cascade.from_config(cascaded.cascade.get_config())
    assert layer.get_config() == cascaded.cascade.get_config() and len(layer.heads) == 2


def test_images_without_objects_are_negatives_of_every_stage(cascaded):
    losses = cascaded(make_batch(filled=(0, 0)), training=True)
    assert all(losses[name] == 0 for name in ("box", "box_stage2", "box_stage3", "mask"))
    assert all(losses[name] > 0 for name in ("class", "class_stage2", "class_stage3"))
