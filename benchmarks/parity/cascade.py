"""The losses of a cascade's stages on the RoIs and the features that Detectron2 had, beside its own."""

import functools

import numpy as np
import tensorflow as tf

from benchmarks.parity.compare import relative
from kmaskrcnn.layers.box_head import RoISample, box_head_losses
from kmaskrcnn.ops import boxes as box_ops

LOSS_BOUND, GRADIENT_BOUND = 1e-4, 1e-3


def compare_losses(table, name, model, dump):
    """Rows for each loss, and for the gradient of their sum at each level of the pyramid.

    Args:
        table: gets the rows.
        name: of the model.
        model: as `import_file` gave it.
        dump: of `detectron2_side.first_losses`.
    """
    features = {f"P{level}": tf.constant(dump[f"p{level}"]) for level in (2, 3, 4, 5)}
    classes, boxes = dump["roi_classes"].astype(np.int32), dump["boxes"]
    overlap = np.asarray(box_ops.iou(dump["rois"], boxes))
    sample = RoISample(
        tf.constant(dump["rois"]),
        tf.constant(classes),
        tf.constant(overlap.argmax(-1).astype(np.int32)),
        tf.constant(classes > 0),
        tf.ones(classes.shape, tf.bool),
    )
    valid = np.ones(dump["classes"].shape, bool)
    truth = (tf.constant(boxes), tf.constant(dump["classes"].astype(np.int32)), valid, ~valid)

    @tf.function(autograph=False)
    def compute(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            run = functools.partial(model._run_box_head, features, True)
            logits, deltas = run(model.box_head, sample.boxes)
            count = float(classes.size)
            losses = box_head_losses(logits, deltas, sample, truth[0], count, model.config)
            losses |= model.cascade.stage_losses(run, deltas, sample, truth, dump["shapes"], count, model.config)
            total = tf.add_n(list(losses.values()))
        return losses, tape.gradient(total, features)

    losses, gradients = compute(features)
    for ours, value in losses.items():
        kind, _, stage = ours.partition("_stage")
        theirs = f"loss_loss_{'cls' if kind == 'class' else 'box_reg'}_stage{int(stage or 1) - 1}"
        print(f"{name} loss {ours}: {float(value):.6f} and {float(dump[theirs]):.6f}")
        table.add(name, f"loss {ours}", relative(value, dump[theirs]), LOSS_BOUND)
    for level, gradient in gradients.items():
        table.add(name, f"gradient {level}", relative(gradient, dump[f"gradient_{level.lower()}"]), GRADIENT_BOUND)
