"""Our side, run by `run.py`: python -m benchmarks.speed.our_side WEIGHTS [--frozen | --constants].

With --frozen TensorFlow takes the weights for frozen, as in `kmaskrcnn predict`; with --constants it is the SavedModel
of `kmaskrcnn export --optimize=latency`.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf
from keras import ops

from benchmarks.speed import roof, workloads
from benchmarks.speed.workloads import NUM_CLASSES, Stages
from kmaskrcnn import Config, MaskRCNN, Predictor
from kmaskrcnn.config import TrainConfig
from kmaskrcnn.data.sets.masks import resample_area
from kmaskrcnn.export.saved_model import export_saved_model
from kmaskrcnn.layers.box_head import detect_boxes
from kmaskrcnn.layers.roi_align import RoIAlign
from kmaskrcnn.layers.rpn import level_anchors, propose
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.mask_paste import paste_mask
from kmaskrcnn.training.step import TrainStep, build_optimizer
from kmaskrcnn.weights.torchvision import load_torchvision, torchvision_settings

WEIGHTS = None
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def make_model(dtype):
    keras.backend.clear_session()
    model = MaskRCNN(dtype=POLICIES[dtype], **torchvision_settings(WEIGHTS))
    load_torchvision(model, WEIGHTS)
    return model


def make_predictor(height, width, dtype):
    labels = Labels(tuple(map(str, range(1, NUM_CLASSES + 1))), tuple(range(1, NUM_CLASSES + 1)))
    config = Config().replace(min_size=min(height, width), max_size=max(height, width))
    model = make_model(dtype)
    return Predictor(model, config.replace(**vars(model.config)), labels)


def batch_of(height, width, batch):
    shapes = np.tile(np.array([[height, width]], np.int32), (batch, 1))
    scales = np.ones((batch, 2), np.float32)
    images = workloads.pictures(height, width, batch)
    return {"images": images, "image_shapes": shapes, "scales": scales, "original_shapes": shapes}


def inference(height, width, batch, dtype, paste):
    """The whole model as a user calls it, masks pasted at full size or left as the network gives them."""
    predictor, inputs = make_predictor(height, width, dtype), batch_of(height, width, batch)

    def once():
        found = predictor.predict_batch(inputs)
        return found, [[p.mask(i) for i in range(len(p))] for p in found if paste]

    found, pasted = once()
    assert all(m.shape == (height, width) for own in pasted for m in own)
    first = found[0]
    told = {
        "proposals": count_proposals(predictor.model, inputs),
        "detections": [len(p) for p in found],
        "found": workloads.detections(
            first.boxes, first.scores, first.classes, None if paste else first.mask_probabilities
        ),
    }
    once()
    return (lambda: once() and None), told


def constants(height, width, batch, dtype, paste):
    """`inference` of the exported model."""
    assert not paste
    with tempfile.TemporaryDirectory() as folder:
        # Anew each time, as the code may have changed; by another process, whose memory is then free again.
        export = [
            sys.executable,
            "-m",
            "benchmarks.speed.our_side",
            WEIGHTS,
            "--export",
            folder,
            str(height),
            str(width),
            str(batch),
        ]
        subprocess.run(export, check=True, stdout=subprocess.DEVNULL)
        proposals = json.loads((pathlib.Path(folder) / "proposals.json").read_text())
        served = tf.saved_model.load(f"{folder}/1")
    inputs = batch_of(height, width, batch)
    run, images = served.signatures["serving_tensor"], tf.constant(inputs["images"])

    def once():
        return {name.removeprefix("detection_"): value.numpy() for name, value in run(images=images).items()}

    found = once()
    counts = found["num_detections"].astype(int).tolist()
    boxes, scores, classes, masks = (found[name][0, : counts[0]] for name in ("boxes", "scores", "classes", "masks"))
    boxes = boxes * np.array([height, width] * 2, np.float32)
    told = {
        "proposals": proposals,
        "detections": counts,
        "found": workloads.detections(boxes, scores, classes.astype(int), masks),
    }
    once()
    # The signature does not keep the model that it is of.
    return (lambda: served is None or once() is None), told


def export_constants(folder, height, width, batch):
    """Write what `constants` runs, and how many proposals the model has for its images."""
    predictor = make_predictor(height, width, "float32")
    export_saved_model(predictor.model, predictor.config, predictor.labels, folder, constant_weights=True)
    proposals = count_proposals(predictor.model, batch_of(height, width, batch))
    (pathlib.Path(folder) / "proposals.json").write_text(json.dumps(proposals))


def network_parts(model):
    """The stages of `MaskRCNN.call` and `MaskRCNN.detect`, as functions of what the one before gave."""

    def proposals(rpn_outputs, features, shapes):
        return propose(rpn_outputs, level_anchors(features, model.config), shapes, model.config, False)

    def rpn(features):
        return {level: model.rpn_head(feature) for level, feature in features.items()}

    def flat(features, boxes):
        pooled = model.box_roi_align(features, boxes)
        return ops.reshape(pooled, (-1, *pooled.shape[2:]))

    def box_head(pooled, boxes):
        logits, deltas = model.box_head(pooled)
        rois = boxes.shape[1]
        return ops.reshape(logits, (-1, rois, logits.shape[-1])), ops.reshape(deltas, (-1, rois, *deltas.shape[1:]))

    def nms(logits, deltas, boxes, scores, shapes):
        return detect_boxes(logits, deltas, boxes, scores, shapes, model.config)

    def pool_masks(features, boxes, count):
        rows, columns = (ops.cast(x, "int32") for x in ops.nonzero(ops.arange(boxes.shape[1]) < count[:, None]))
        chosen = ops.take(ops.reshape(boxes, (-1, 4)), rows * boxes.shape[1] + columns, axis=0)
        return model.mask_roi_align.pool(features, chosen, rows)

    def mask_head(pooled, classes, count):
        own = tf.boolean_mask(classes, ops.arange(classes.shape[1]) < count[:, None])
        return ops.sigmoid(model.mask_head(pooled, own))

    parts = {
        "preprocess": model.preprocess,
        "backbone + FPN": model.pyramid,
        "RPN": rpn,
        "proposals": proposals,
        "RoIAlign, boxes": flat,
        "box head": box_head,
        "NMS": nms,
        "RoIAlign, masks": pool_masks,
        "mask head": mask_head,
    }
    return {name: tf.function(part) for name, part in parts.items()}


def count_proposals(model, inputs):
    parts = network_parts(model)
    images, shapes = parts["preprocess"](inputs["images"], inputs["image_shapes"])
    features = parts["backbone + FPN"](images)
    _, scores = parts["proposals"](parts["RPN"](features), features, shapes)
    return np.sum(scores > -np.inf, axis=1).tolist()


def stages(height, width, batch, dtype):
    """The same stage by stage."""
    model, inputs = make_model(dtype), batch_of(height, width, batch)
    parts = network_parts(model)

    def once():
        stage = Stages()

        def run(name, *arguments):
            # A function of TensorFlow's returns when it is done, on a CPU.
            return stage(name, parts[name], *arguments)

        images, shapes = run("preprocess", inputs["images"], inputs["image_shapes"])
        features = run("backbone + FPN", images)
        outputs = run("RPN", features)
        boxes, scores = run("proposals", outputs, features, shapes)
        pooled = run("RoIAlign, boxes", features, boxes)
        logits, deltas = run("box head", pooled, boxes)
        boxes, _, classes, count = run("NMS", logits, deltas, boxes, scores, shapes)
        pooled = run("RoIAlign, masks", features, boxes, count)
        masks = run("mask head", pooled, classes, count).numpy()
        boxes = np.concatenate([b[:n] for b, n in zip(boxes.numpy(), count.numpy(), strict=True)])
        stage("paste", paste_all, masks, boxes, height, width, model.config.mask_paste)
        return stage.seconds

    once()
    return once, {}


def bare_convolutions(height, width, batch, dtype, paste=False):
    """The roof of the network's stages; nothing is left to run."""
    return (lambda: None), roof.measure(make_model(dtype), height, width, batch, dtype)


def paste_all(masks, boxes, height, width, method):
    return [paste_mask(m, b, height, width, method) for m, b in zip(masks, boxes, strict=True)]


def training(size, batch, objects, dtype):
    """A step: losses, gradients, SGD with momentum and weight decay."""
    model = make_model(dtype)
    config = TrainConfig(learning_rate=1e-6, dtype=POLICIES[dtype])
    step = TrainStep(model, build_optimizer(config, model), config)
    rows = workloads.ground_truth(size, batch, objects)
    cells = 112  # as the data pipeline has them
    masks = np.zeros((batch, objects, cells, cells), np.uint8)
    for own, (boxes, _, full) in zip(masks, rows, strict=True):
        for cell, box, mask in zip(own, boxes.astype(int), full, strict=True):
            cell[:] = resample_area(mask[box[0] : box[2], box[1] : box[3]], cells)
    boxes = np.stack([boxes for boxes, _, _ in rows])
    inputs = {
        "images": workloads.pictures(size, size, batch),
        "image_shapes": np.full((batch, 2), size, np.int32),
        "boxes": boxes,
        "classes": np.stack([classes for _, classes, _ in rows]).astype(np.int32),
        "is_crowd": np.zeros((batch, objects), bool),
        "masks": masks,
        "mask_frames": boxes,
    }
    inputs = {name: tf.constant(value) for name, value in inputs.items()}
    positives = []
    head = model.mask_head.call

    def counting(features, *arguments, **settings):
        positives.append(tf.shape(features)[0])
        return head(features, *arguments, **settings)

    model.mask_head.call = counting
    # In a graph, as the step itself: run op by op, the forward pass alone takes more memory than a step.
    mask_rois = tf.function(lambda: (model(inputs, training=True), positives[-1])[1])()
    model.mask_head.call = head
    step([inputs], 1e-6, 0).numpy()
    told = {"mask_rois": int(mask_rois), "trained": sum(int(np.prod(v.shape)) for v in model.trainable_variables)}
    return (lambda: step([inputs], 1e-6, 1).numpy() is None), told


def align(rois, size, maps, boxes, backward):
    """RoIAlign alone over P2..P5; maps is a .npz of (1, H, W, C) by level, boxes a .npy of (N, 4) yxyx."""
    with np.load(maps) as file:
        features = {name: tf.constant(file[name]) for name in file}
    boxes = tf.constant(np.load(boxes)[:rois])
    layer, owner = RoIAlign(size), tf.zeros(rois, tf.int32)
    upstream = tf.ones((rois, size, size, features["P2"].shape[-1]))

    @tf.function
    def forward(features):
        return layer.pool(features, boxes, owner)

    @tf.function
    def both(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = layer.pool(features, boxes, owner)
        gradient = tape.gradient(pooled, features, upstream)
        # Without pooled among the results the forward pass would be cut from the graph: the gradient is linear.
        return pooled, *(tf.convert_to_tensor(gradient[name]) for name in sorted(gradient))

    function = both if backward else forward
    function(features)
    return (lambda: function(features) is None), {}


def paste(height, width, count):
    """The masks of one image."""
    masks, boxes = workloads.instances(count, height, width)

    def once():
        pasted = paste_all(masks, boxes, height, width, "rounded_boxes")
        assert len(pasted) == count and pasted[0].shape == (height, width)

    once()
    return once, {}


def main():
    global WEIGHTS
    WEIGHTS = sys.argv[1]
    kinds = {f.__name__: f for f in (inference, stages, training, align, paste)} | {"roof": bare_convolutions}
    if sys.argv[2:3] == ["--export"]:
        export_constants(sys.argv[3], *map(int, sys.argv[4:]))
        return
    if "--frozen" in sys.argv:  # as the programs that only run a model
        os.environ["TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"] = "1"
    if "--constants" in sys.argv:
        kinds = {"inference": constants}
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    workloads.serve(lambda kind, **arguments: kinds[kind](**arguments), versions)


if __name__ == "__main__":
    main()
