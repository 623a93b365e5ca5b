import keras
import numpy as np
import pytest
import tensorflow as tf

from kmaskrcnn import ConfigError, MaskRCNN
from kmaskrcnn.model import LOSSES
from tests.conftest import make_batch


def test_r50_fpn_has_the_published_number_of_parameters():
    model = MaskRCNN(num_classes=90)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    count = sum(int(np.prod(w.shape)) for w in model.weights if w.name not in names and "seed" not in w.path)
    assert count == 44_401_393  # torchvision maskrcnn_resnet50_fpn, whose frozen batch norms hold no parameters


def test_frozen_stages_leave_stem_and_c2_out_of_training(tiny_settings):
    trained = [len(MaskRCNN(**tiny_settings | {"frozen_stages": n}).trainable_variables) for n in range(6)]
    assert trained == sorted(trained, reverse=True)
    assert len(set(trained)) == 6


def test_detections_are_valid_sorted_and_inside(tiny_model, batch):
    shapes = np.array([[96, 96], [70, 50]], np.int32)
    detections = {k: np.asarray(v) for k, v in tiny_model({"images": batch["images"], "image_shapes": shapes}).items()}
    assert {k: v.shape for k, v in detections.items()} == {
        "boxes": (2, 20, 4),
        "scores": (2, 20),
        "classes": (2, 20),
        "masks": (2, 20, 28, 28),
        "num_detections": (2,),
    }
    for i in range(2):
        count = detections["num_detections"][i]
        assert count > 0
        boxes, scores, classes = (detections[k][i, :count] for k in ("boxes", "scores", "classes"))
        assert (np.diff(scores) <= 0).all() and (scores > tiny_model.config.score_threshold).all()
        assert (boxes[:, :2] < boxes[:, 2:]).all() and (boxes >= 0).all()
        assert (boxes[:, 2:] <= shapes[i]).all()
        assert ((classes >= 1) & (classes <= 3)).all()
        assert (detections["masks"][i, :count] > 0).all()
        for name in ("boxes", "scores", "classes", "masks"):
            assert not detections[name][i, count:].any()


def test_padding_content_does_not_matter(tiny_model, batch):
    shapes = np.array([[64, 80], [96, 96]], np.int32)
    noisy = batch["images"].copy()
    noisy[0, 64:] = 255
    noisy[0, :, 80:] = 255
    a = tiny_model({"images": batch["images"], "image_shapes": shapes})
    b = tiny_model({"images": noisy, "image_shapes": shapes})
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_sides_that_are_no_multiple_of_32_are_padded_inside(tiny_model, batch):
    images = batch["images"][:, :75, :61]
    padded = np.pad(images, ((0, 0), (0, 21), (0, 3), (0, 0)))
    a = tiny_model(images)
    b = tiny_model({"images": padded, "image_shapes": np.array([[75, 61]] * 2)})
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-5)


@pytest.mark.parametrize("padded", [(80, 64), (96, 96), (128, 160), (256, 96), (352, 224)])
def test_an_image_in_any_padding_gives_the_same_detections(tiny_model, batch, padded):
    image = batch["images"][:1, :75, :61]
    found = tiny_model(image)
    padding = [(0, 0), (0, padded[0] - 75), (0, padded[1] - 61), (0, 0)]
    again = tiny_model({"images": np.pad(image, padding, constant_values=9), "image_shapes": np.array([[75, 61]])})
    assert found["num_detections"] > 0
    for name in found:
        np.testing.assert_allclose(again[name], found[name], atol=1e-4)


def test_unknown_size_in_a_graph_gives_the_eager_result(tiny_model, batch):
    spec = {
        "images": tf.TensorSpec((None, None, None, 3), tf.uint8),
        "image_shapes": tf.TensorSpec((None, 2), tf.int32),
    }
    inputs = {k: batch[k] for k in spec}
    graph = tf.function(tiny_model, input_signature=[spec], autograph=False)(inputs)
    for name, value in tiny_model(inputs).items():
        np.testing.assert_allclose(graph[name], value, atol=1e-4)


def test_losses_are_finite_with_gradients_to_every_variable(tiny_model, batch):
    with tf.GradientTape() as tape:
        losses = tiny_model(batch, training=True)
        total = tiny_model.compute_loss(y_pred=losses)
    assert set(losses) == set(LOSSES)
    assert all(np.isfinite(v) and v > 0 for v in losses.values())
    np.testing.assert_allclose(total, sum(losses.values()), rtol=1e-6)
    gradients = tape.gradient(total, tiny_model.trainable_variables)
    for variable, gradient in zip(tiny_model.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(tf.convert_to_tensor(gradient)).all(), variable.path


def test_images_without_objects_are_negatives(tiny_model):
    empty = make_batch(filled=(0, 0))
    losses = tiny_model(empty, training=True)
    assert losses["rpn_box"] == 0 and losses["box"] == 0 and losses["mask"] == 0
    assert losses["rpn_objectness"] > 0 and losses["class"] > 0


@pytest.mark.parametrize("norm", ["none", "bn"])
def test_a_step_on_images_without_objects_is_finite(tiny_settings, norm):
    model = MaskRCNN(**tiny_settings | {"head_norm": norm})

    @tf.function(autograph=False)  # a graph's kernels differ from the eager ones
    def gradients(batch):
        with tf.GradientTape() as tape:
            losses = model(batch, training=True)
            total = model.compute_loss(y_pred=losses)
        gradients = tape.gradient(total, model.trainable_variables)
        return losses["mask"], [tf.convert_to_tensor(g) for g in gradients]

    loss, values = gradients(make_batch(filled=(0, 0), size=64))
    assert loss == 0
    assert all(np.isfinite(value).all() for value in [*values, *(w.numpy() for w in model.weights)])


@pytest.mark.parametrize("static_shapes", [False, True])
def test_rois_that_are_padding_are_in_no_statistics_of_batch_normalization(static_shapes, tiny_settings, batch):
    settings = tiny_settings | {"head_norm": "bn", "box_conv_channels": (16,), "rpn_post_nms_top_k_train": 20}

    def losses(rois):
        keras.utils.set_random_seed(7)
        model = MaskRCNN(**settings | {"roi_batch_size": rois, "roi_positive_fraction": 1.0})
        model.static_shapes = static_shapes
        found = model(batch, training=True)
        means = [w for layer in (model.box_head, model.mask_head) for w in layer.weights if "moving" in w.path]
        return {name: float(value) for name, value in found.items()}, means

    # Every proposal and object is sampled; the rest of 64 rows is padding.
    (few, means), (many, others) = losses(26), losses(64)
    assert few == pytest.approx(many, rel=1e-5)
    for mean, other in zip(means, others, strict=True):
        np.testing.assert_allclose(mean, other, atol=1e-6)


def test_padding_rows_and_their_number_change_nothing(tiny_settings, batch):
    def losses(batch):
        keras.utils.set_random_seed(7)
        return MaskRCNN(**tiny_settings)(batch, training=True)

    more = {k: np.pad(batch[k], [(0, 0), (0, 9)] + [(0, 0)] * (batch[k].ndim - 2)) for k in
            ("boxes", "classes", "is_crowd", "masks", "mask_frames")}  # fmt: skip
    for name, value in losses(batch).items():
        np.testing.assert_allclose(losses(batch | more)[name], value, rtol=1e-6)


def test_static_and_dynamic_mask_branches_agree(tiny_settings):
    batch = make_batch(instances=3, filled=(3,))  # without padded rows both draw the same sample
    values = []
    for static in (False, True):
        keras.utils.set_random_seed(7)
        model = MaskRCNN(**tiny_settings)
        model.static_shapes = static
        values.append((model(batch, training=True), model(batch["images"])))
    for name in LOSSES:
        np.testing.assert_allclose(values[0][0][name], values[1][0][name], rtol=1e-4)
    for name in values[0][1]:
        np.testing.assert_allclose(values[0][1][name], values[1][1][name], atol=1e-4)


def test_save_and_load_round_trip(tiny_model, batch, tmp_path):
    tiny_model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.config == tiny_model.config
    for name, value in tiny_model(batch["images"]).items():
        np.testing.assert_array_equal(loaded(batch["images"])[name], value)


def test_compile_and_fit_learn(tiny_model, batch):
    tiny_model.compile(optimizer=keras.optimizers.Adam(1e-3))
    dataset = tf.data.Dataset.from_tensors(batch).repeat(12)
    first = tiny_model.fit(dataset.take(1), verbose=0).history
    last = tiny_model.fit(dataset, verbose=0, epochs=4).history
    assert set(LOSSES) <= set(first)
    assert last["loss"][-1] < 0.7 * first["loss"][0]


def test_gradients_have_the_same_bits_at_each_run(tiny_model, batch):
    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.add_n(list(tiny_model(batch, training=True).values()))
        found = tape.gradient(loss, [variable.value for variable in tiny_model.trainable_variables])
        return [tf.convert_to_tensor(gradient) for gradient in found]

    first = [gradient.numpy() for gradient in gradients()]
    for _ in range(30):
        for variable, one, other in zip(tiny_model.trainable_variables, first, gradients(), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=variable.path)


def test_summary_lists_the_boxes_of_the_figure(tiny_model):
    lines = []
    tiny_model.summary(print_fn=lambda line, **_: lines.append(line))
    text = "\n".join(lines)
    for part in ("resnet18", "fpn", "rpn_head", "box_roi_align", "box_head", "mask_head"):
        assert part in text


def test_bad_settings_and_batches_are_clear_errors(tiny_model, batch):
    with pytest.raises(ConfigError, match="num_classes=0"):
        MaskRCNN(num_classes=0)
    with pytest.raises(ConfigError, match="'mask_widths'"):
        MaskRCNN(mask_widths=(1,))
    with pytest.raises(ValueError, match="hold the ground truth"):
        tiny_model.compute_loss(y_pred=tiny_model(batch["images"]))


def test_mixed_bfloat16_keeps_boxes_and_losses_in_float32(tiny_settings, batch):
    model = MaskRCNN(dtype="mixed_bfloat16", **tiny_settings)
    assert model.backbone(np.zeros((1, 64, 64, 3), np.float32))["C5"].dtype == "bfloat16"
    assert all(v.dtype == "float32" and np.isfinite(v) for v in model(batch, training=True).values())
    assert model(batch["images"])["boxes"].dtype == "float32"
