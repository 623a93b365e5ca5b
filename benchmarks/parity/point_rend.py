"""PointRend's mask heads on the features, boxes and random draws that Detectron2 had, beside its own."""

from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks.parity.compare import relative
from kmaskrcnn.keras_interface import MASK_POINT_LOSS
from kmaskrcnn.layers.box_head import RoISample
from kmaskrcnn.weights.point_rend import point_rend_entries

OUTPUT_BOUND, LOSS_BOUND = 1e-4, 1e-4
# Where two cells are as uncertain but for rounding, either may be the last one refined.
CELL_BOUND, CELLS_BOUND = 1e-4, 1e-4
# A rounding that flips one ReLU changes a gradient, in Detectron2 as here: past this bound ours may be no farther from
# its float64 gradients than its own in float32 are.
GRADIENT_BOUND = 1e-4


def compare_points(table, name, model, dump):
    """Rows for the outputs of both heads, their losses and gradients, and for the masks by subdivision.

    Args:
        table: gets the rows.
        name: of the model.
        model: as `import_file` gave it.
        dump: of `detectron2_side.point_outputs`.
    """
    head, features = model.mask_head, {"P2": tf.constant(dump["p2"])}
    boxes, classes = tf.constant(dump["boxes"]), tf.constant(dump["classes"].astype(np.int32))
    images, objects = classes.shape
    rois = tf.reshape(boxes, (-1, 4)), tf.reshape(classes, (-1,)), tf.repeat(tf.range(images), objects)
    coarse = head.coarse_logits(features, rois[0], rois[2])
    table.add(name, "coarse logits", relative(coarse, dump["coarse"]), OUTPUT_BOUND)
    logits = head.point_logits(features, *rois, tf.constant(dump["coarse"]), tf.constant(dump["points"]))
    table.add(name, "point logits", relative(logits, dump["point_logits"]), OUTPUT_BOUND)
    masks = tf.sigmoid(head(features, *rois)).numpy()
    differences = np.abs(masks - dump["masks"])
    print(f"{name}: masks {masks.shape}, {(differences > CELL_BOUND).sum()} of {masks.size} cells differ")
    table.add(name, "masks by subdivision: cells that differ (share)", np.mean(differences > CELL_BOUND), CELLS_BOUND)
    error = differences[differences <= CELL_BOUND].max()
    table.add(name, "masks by subdivision: the others (probability)", error, OUTPUT_BOUND)
    _compare_losses(table, name, model, dump, features, boxes, classes)


def _compare_losses(table, name, model, dump, features, boxes, classes):
    shape, size = classes.shape, float(dump["gt_masks"].shape[-1])
    sample = RoISample(
        boxes, classes, tf.tile(tf.range(shape[1])[None], (shape[0], 1)), tf.ones(shape, bool), tf.ones(shape, bool)
    )
    frames = np.broadcast_to(np.float32([0, 0, size, size]), (*shape, 4))
    inputs = {"masks": tf.constant(dump["gt_masks"]), "mask_frames": tf.constant(frames)}
    count, entries = classes.shape[0] * classes.shape[1], list(point_rend_entries(model.mask_head))
    noise = tf.constant(0.5 + 0.5 * dump["draws"].reshape(count, -1))
    with mock.patch("kmaskrcnn.ops.points.image_noise", lambda *_: noise), tf.GradientTape() as tape:
        tape.watch(features["P2"])
        losses = model._mask_losses(features, sample, inputs, float(count), tf.zeros(shape[:1], tf.int64), True)
        total = tf.add_n(list(losses.values()))
    gradients = tape.gradient(total, [features["P2"], *(entry.variable.value for entry in entries)])
    for ours, theirs in (("mask", "loss_mask"), (MASK_POINT_LOSS, "loss_mask_point")):
        print(f"{name} {ours}: {float(losses[ours]):.6f} and {float(dump[theirs]):.6f}")
        table.add(name, f"loss {ours}", relative(losses[ours], dump[theirs]), LOSS_BOUND)
    names = {"p2": lambda x: x, **{entry.names[0]: entry.transform for entry in entries}}
    errors, own_errors = [], []
    for (theirs, transform), gradient in zip(names.items(), gradients, strict=True):
        exact = dump[f"exact_gradient_{theirs}"]
        errors.append(relative(tf.convert_to_tensor(gradient), transform(exact)))
        own_errors.append(relative(dump[f"gradient_{theirs}"], exact))
        print(f"{name} gradient {theirs}: {errors[-1]:.1e} off, Detectron2's in float32 {own_errors[-1]:.1e}")
    table.add(name, "gradients of the losses", max(errors), max(GRADIENT_BOUND, *own_errors))
