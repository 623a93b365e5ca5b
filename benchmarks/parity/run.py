"""Compares kmaskrcnn with torchvision, stage by stage, and exits with 1 past a bound.

    python -m benchmarks.parity.run --torch_python=PATH [--models=r50_fpn,...] [--work=FOLDER] [--table=FILE]

PATH is the Python of an environment with torch and torchvision. torchvision's models get random weights of a useful
size, their state dicts go through the importer, and both run on the same images.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf

from benchmarks.parity.compare import Found, Table, relative, unexplained
from benchmarks.parity.photographs import compare_files, compare_scores, one_class, theirs_of
from kmaskrcnn import Config, MaskRCNN
from kmaskrcnn.data import load_dataset, training_dataset
from kmaskrcnn.data.input.pipeline import steps_per_epoch
from kmaskrcnn.keras_interface import LOSSES
from kmaskrcnn.layers.box_head import detect_boxes
from kmaskrcnn.layers.rpn import LEVELS, level_anchors, propose
from kmaskrcnn.ops import boxes as box_ops
from kmaskrcnn.ops.mask_targets import mask_targets
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.mask_paste import paste_mask
from kmaskrcnn.results.prediction import Prediction
from kmaskrcnn.weights.convert import import_file
from kmaskrcnn.weights.torchvision import load_torchvision, torchvision_entries, torchvision_settings

ROOT = pathlib.Path(__file__).resolve().parents[2]

STAGE_BOUND, GRADIENT_BOUND = 1e-4, 1e-3
NOISE_BOUND = 10  # times what torchvision's own gradient in float32 is off from that in float64
COCO_BOUND = 1e-4
COCO_IMAGES = 60
FIRST_LOSS_BOUND = 0.01
STRIDES = (4, 8, 16, 32, 64)
PIXELS_BOUND = 1e-4  # share of the pixels of pasted masks
# torchvision's model -> what its file does not tell
MODELS = {
    "r50_fpn": {"frozen_stages": 2},
    "r50_fpn_v2": {},
    "mobilenet_v2_fpn": {"frozen_stages": 0},
    "r18_fpn": {"frozen_stages": 2},
    "r101_fpn": {"frozen_stages": 2},
}
TOP_K = {"rpn_post_nms_top_k": 300}  # as in torch_models.py
CASES = ("one", "padded", "odd", "mixed")


def stack(dump, name, fill=0.0):
    """The arrays NAME0, NAME1 .. of a batch, padded to the longest."""
    rows = [dump[f"{name}{i}"] for i in range(sum(key.startswith("image") for key in dump))]
    shape = np.max([r.shape for r in rows], axis=0)
    return np.stack([np.pad(r, [(0, n - m) for m, n in zip(r.shape, shape, strict=True)], constant_values=fill)
                     for r in rows])  # fmt: skip


def inputs_of(dump):
    images = [dump[f"image{i}"] for i in range(sum(key.startswith("image") for key in dump))]
    shapes = np.array([image.shape[:2] for image in images], np.int32)
    return stack(dump, "image").astype(np.uint8), shapes


def compare_case(table, name, model, dump):
    """Every stage of inference on one batch, each fed what torchvision fed its own, then the whole model."""
    config = model.config
    images, shapes = inputs_of(dump)

    def add(stage, ours, theirs, bound=STAGE_BOUND):
        table.add(name, stage, relative(ours, theirs), bound)

    features = model.pyramid(model.preprocess(images, shapes)[0])
    for level in LEVELS:
        add("FPN maps", features[level], dump[level])
    features = {level: tf.constant(dump[level]) for level in LEVELS}
    outputs = {level: model.rpn_head(feature) for level, feature in features.items()}
    add("RPN logits", np.concatenate([outputs[level][0] for level in LEVELS], 1), dump["rpn_logits"])
    add("RPN box offsets", np.concatenate([outputs[level][1] for level in LEVELS], 1), dump["rpn_deltas"])
    anchors = level_anchors(features, config)
    add("anchors", np.concatenate([anchors[level] for level in LEVELS]), dump["anchors"])
    add("decoded proposals", box_ops.decode(tf.constant(dump["rpn_deltas"]), dump["anchors"]), dump["decoded"])

    splits = np.cumsum(dump["rpn_sizes"])[:-1]
    theirs = zip(np.split(dump["rpn_logits"], splits, 1), np.split(dump["rpn_deltas"], splits, 1), strict=True)
    theirs = {level: tuple(map(tf.constant, pair)) for level, pair in zip(LEVELS, theirs, strict=True)}
    compare_proposals(table, name, "kept proposals", propose(theirs, anchors, shapes, config, False), dump)

    proposals = tf.constant(stack(dump, "proposals"))
    counts = [len(dump[f"proposals{i}"]) for i in range(len(images))]
    scores = np.where(np.arange(proposals.shape[1]) < np.array(counts)[:, None], 0.0, -np.inf).astype(np.float32)
    logits, deltas = model._run_box_head(features, False, model.box_head, proposals)
    for i, count in enumerate(counts):
        kept = len(dump[f"pooled{i}"])
        pooled = model.box_roi_align.pool(features, proposals[i, :kept], np.full(kept, i, np.int32))
        add("pooled RoI features", pooled, dump[f"pooled{i}"])
        add("class logits", logits[i, :count], dump[f"class_logits{i}"])
        add("class box offsets", deltas[i, :count], dump[f"box_deltas{i}"])
    logits, deltas = (tf.constant(stack(dump, key)) for key in ("class_logits", "box_deltas"))
    boxes, scores, classes, number = detect_boxes(logits, deltas, proposals, scores, shapes, config)
    found = {"boxes": boxes, "scores": scores, "classes": classes, "num_detections": number}
    compare_detections(table, name, "final boxes and scores", found, dump)

    for i, (height, width) in enumerate(shapes):
        theirs = detections_of(dump, "final", i)
        rows = np.full(len(theirs.boxes), i, np.int32)
        pooled = model.mask_roi_align.pool(features, tf.constant(theirs.boxes), rows)
        masks = tf.sigmoid(model.mask_head(pooled, tf.constant(theirs.classes, tf.int32)))
        add("mask probabilities", masks, theirs.masks)
        pasted = np.unpackbits(dump[f"pasted{i}"], axis=-1, count=width).astype(bool)
        ours = [
            paste_mask(m, b, height, width, "rounded_boxes") for m, b in zip(masks.numpy(), theirs.boxes, strict=True)
        ]
        table.add(name, "pasted masks (share of pixels)", np.sum(ours != pasted) / max(pasted.sum(), 1), PIXELS_BOUND)

    found = model({"images": images, "image_shapes": shapes})
    compare_detections(table, name, "end to end", found, dump)


def detections_of(dump, name, i):
    return Found(*(dump.get(f"{name}_{part}{i}") for part in ("boxes", "classes", "scores", "masks")))


def compare_proposals(table, name, stage, result, dump, runs=True):
    boxes, scores = (np.asarray(x) for x in result)
    names = sorted({key.split("_")[0] for key in dump if key.startswith("disturbed")}) if runs else []
    for i in range(len(boxes)):
        ours, theirs = Found(boxes[i][scores[i] > -np.inf]), Found(dump[f"proposals{i}"])
        disturbed = [Found(dump[f"{run}_proposals{i}"]) for run in names]
        rest, lines, pairs = unexplained(ours, theirs, disturbed)
        table.add(name, f"{stage}: unmatched, no tie", rest, 0)
        own, other = np.array(pairs, int).reshape(-1, 2).T
        table.add(name, f"{stage}: boxes", relative(ours.boxes[own], theirs.boxes[other]), STAGE_BOUND)
        table.ties += [f"{name} {stage}, image {i}: {line}" for line in lines]


def compare_detections(table, name, stage, found, dump):
    found = {key: np.asarray(value) for key, value in found.items()}
    names = sorted({key.split("_")[0] for key in dump if key.startswith("disturbed")})
    for i, count in enumerate(found["num_detections"]):
        ours = Found(*(found[key][i, :count] for key in ("boxes", "classes", "scores")))
        theirs = detections_of(dump, "final", i)
        rest, lines, pairs = unexplained(ours, theirs, [detections_of(dump, run, i) for run in names])
        table.add(name, f"{stage}: unmatched, no tie", rest, 0)
        own, other = np.array(pairs, int).reshape(-1, 2).T
        table.add(name, f"{stage}: boxes", relative(ours.boxes[own], theirs.boxes[other]), STAGE_BOUND)
        table.add(
            name, f"{stage}: scores (absolute)", np.abs(ours.scores[own] - theirs.scores[other]).max(initial=0), 1e-3
        )
        if "masks" in found:
            table.add(name, f"{stage}: masks", relative(found["masks"][i][own], theirs.masks[other]), 10 * STAGE_BOUND)
        table.ties += [f"{name} {stage}, image {i}: {line}" for line in lines]


def training_batch(dump):
    """torchvision's targets as a batch: whole masks, and frames that put their samples where torchvision reads them."""
    images, shapes = inputs_of(dump)
    boxes = stack(dump, "boxes")
    side = max(images.shape[1:3])
    masks = np.zeros((*boxes.shape[:2], side, side), np.uint8)
    for i in range(len(images)):
        own = dump[f"masks{i}"]
        # torchvision goes on with the last row and column past the image's border.
        rest = [(0, 0), (0, side - own.shape[1]), (0, side - own.shape[2])]
        masks[i, : len(own)] = 255 * np.pad(own, rest, mode="edge")
    # torchvision takes pixel i to lie at i, not at i + 1/2: half a pixel is in the frame.
    frames = np.broadcast_to(np.array([-0.5, -0.5, side - 0.5, side - 0.5], np.float32), boxes.shape)
    return {
        "images": images,
        "image_shapes": shapes,
        "boxes": boxes,
        "classes": stack(dump, "classes").astype(np.int32),
        "is_crowd": np.zeros(boxes.shape[:2], bool),
        "masks": masks,
        "mask_frames": frames,
    }


def losses_on(model, batch, proposals, anchors):
    """The losses on these proposals (B, P, 4), every anchor and RoI sampled."""
    model.config = dataclasses.replace(
        model.config,
        rpn_batch_size=2 * anchors,
        rpn_post_nms_top_k_train=proposals.shape[1],
        roi_batch_size=proposals.shape[1] + batch["boxes"].shape[1],
        roi_positive_fraction=1.0,
    )

    def same_proposals(*arguments):
        return proposals, tf.zeros(proposals.shape[:2])

    with mock.patch("kmaskrcnn.model.propose", same_proposals):
        return model(batch, training=True)


def compare_first_losses(table, name, model, dump, sizes, folder):
    """The losses from the files of photographs: our data path beside the transforms of torchvision's references."""
    annotations = next(folder.glob("instances_*.json"))
    images = next(path for path in folder.iterdir() if path.is_dir())
    config = Config().replace(
        **sizes, resize_method="torchvision", horizontal_flip=False, max_instances=100, mask_resolution=112
    )
    dataset = load_dataset(annotations, images)
    rows = {int(image_id): i for i, image_id in enumerate(dump["image_ids"])}
    ours = {}
    for batch in training_dataset(dataset, config.data, 1, 0).take(steps_per_epoch(dataset, config.data, 1)):
        i = rows.get(int(batch["image_ids"][0]))
        # Here negatives inside of a crowd are left out; torchvision knows no crowds.
        if i is not None and i not in ours and not batch["is_crowd"].numpy().any():
            height, width = (-(-int(side) // 32) * 32 for side in batch["image_shapes"][0])
            batch["images"] = batch["images"][:, :height, :width]  # torchvision pads to 32 and no further
            anchors = sum(3 * -(-height // s) * -(-width // s) for s in STRIDES)
            losses = losses_on(model, batch, tf.constant(dump[f"proposals{i}"][None]), anchors)
            ours[i] = [float(losses[loss]) for loss in LOSSES]
    theirs = np.array([dump[f"losses{i}"] for i in sorted(ours)])
    found = np.array([ours[i] for i in sorted(ours)])
    for loss, own, other in zip(LOSSES, found.mean(axis=0), theirs.mean(axis=0), strict=True):
        print(f"{name} from {len(ours)} files: loss {loss} {own:.5f} and {other:.5f}")
        table.add(name, f"from the file: loss {loss}", abs(own / other - 1), FIRST_LOSS_BOUND)


def compare_losses(table, name, model, dump):
    """Mask targets and the five losses, every anchor and RoI sampled; returns a tape and the sum of the losses."""
    batch = training_batch(dump)
    proposals = tf.constant(stack(dump, "proposals"))
    for i in range(len(proposals)):
        rows = np.arange(proposals.shape[1]) % len(dump[f"masks{i}"])
        targets = mask_targets(batch["masks"][i, rows], batch["mask_frames"][i, rows], proposals[i], 28, False, 0)
        table.add(name, "mask targets", relative(targets, dump[f"mask_targets{i}"]), STAGE_BOUND)
    with tf.GradientTape() as tape:
        losses = losses_on(model, batch, proposals, int(dump["num_anchors"]))
        total = tf.add_n(list(losses.values()))
    for loss, value in losses.items():
        table.add(name, f"loss {loss}", abs(float(value) / float(dump[f"loss_{loss}"]) - 1), STAGE_BOUND)
    return tape, total


def compare_gradients(table, name, model, holder, tape, total, dump):
    """The gradient of every weight; `holder` has torchvision's as its weights."""
    # holder has the same layers in the same order; names are those of the file.
    names = {id(entry.variable): entry.names[0] for entry in torchvision_entries(model)}
    theirs = {
        id(own): other.numpy() for own, other in zip(model.weights, holder.weights, strict=True) if id(own) in names
    }
    gradients = tape.gradient(total, [variable.value for variable in model.trainable_variables])
    firm = 0
    for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
        reference = theirs.pop(id(variable))
        norm = np.linalg.norm(reference)
        error = np.linalg.norm(tf.convert_to_tensor(gradient).numpy() - reference) / max(norm, 1e-30)
        noise = float(dump[f"noise_{names[id(variable)]}"])
        if noise < GRADIENT_BOUND / 10:
            table.add(name, "gradients, in norm (float64)", error, GRADIENT_BOUND)
            firm += 1
        else:  # such as of a shift that the next normalization takes out again
            table.add(name, "gradients that rounding moves: our error / torchvision's", error / noise, NOISE_BOUND)
    table.notes.append(f"{name}: rounding moves {len(gradients) - firm} of {len(gradients)} gradients")
    moved = [gradient for gradient in theirs.values() if np.any(gradient)]
    table.add(name, "parameters trained there and frozen here", len(moved), 0)


def compare_coco(table, name, model, dump, folder):
    """COCO scores of both on the same photographs, from pixels that torchvision has resized."""
    labels = Labels(tuple(map(str, range(1, 91))), tuple(range(1, 91)))
    ids, ours = dump["image_ids"].tolist(), []
    for i in range(len(ids)):
        pixels, (height, width) = dump[f"image{i}"].astype(np.float32), dump[f"size{i}"]
        shape = np.array(pixels.shape[:2], np.int32)
        padded = np.pad(pixels, [(0, -shape[0] % 32), (0, -shape[1] % 32), (0, 0)])
        found = {k: np.asarray(v)[0] for k, v in model({"images": padded[None], "image_shapes": shape[None]}).items()}
        count = int(found["num_detections"])
        boxes = found["boxes"][:count] * np.tile(np.array([height, width], np.float32) / shape.astype(np.float32), 2)
        parts = (boxes, found["scores"][:count], found["classes"][:count], found["masks"][:count])
        ours.append(Prediction(height, width, *parts, labels, model.config.mask_paste))
    bounds = {"AP": COCO_BOUND, "AP50": COCO_BOUND, "AR": COCO_BOUND}
    compare_scores(table, name, "COCO", one_class(folder), ids, ours, theirs_of(dump), bounds)


def build(name, state, dtype="float32"):
    settings = torchvision_settings(state) | TOP_K | MODELS[name]
    # float64 is for comparing gradients; nobody trains in it, so the model refuses it.
    with mock.patch("kmaskrcnn.keras_interface._check_keras_settings"):
        model = MaskRCNN(dtype=dtype, **settings)
    load_torchvision(model, state)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", help="a Python with torch and torchvision; not needed if --work is full")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--work", help="folder for torchvision's side; kept, and used again if it is there")
    parser.add_argument("--coco", type=pathlib.Path, help="folder with instances_*.json and photographs, to score on")
    parser.add_argument("--table", help="also write the table to this file")
    options = parser.parse_args()
    table = Table()
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models.split(","):
            folder = pathlib.Path(options.work or temporary) / name
            if not (folder / "versions.json").exists():
                if not options.torch_python:
                    parser.error("--torch_python: needed to make torchvision's side")
                command = [options.torch_python, "-m", "benchmarks.parity.torch_side", name, folder]
                if options.coco:
                    command += [f"--coco={options.coco}", f"--coco_images={COCO_IMAGES}"]
                subprocess.run(command, check=True, cwd=ROOT)
            model = build(name, folder / "model.pth")
            for case in CASES:
                with np.load(folder / f"{case}.npz") as dump:
                    compare_case(table, name, model, dict(dump))
            with np.load(folder / "train.npz") as dump:
                dump = dict(dump)
                compare_losses(table, name, model, dump)
                # A rounding error that turns one ReLU of a small map moves a gradient by a hundredth: not in float64.
                model = build(name, folder / "model.pth", "float64")
                tape, total = compare_losses(Table(), name, model, dump)
                compare_gradients(table, name, model, build(name, folder / "gradients.pth"), tape, total, dump)
            if (folder / "coco.npz").exists() and options.coco:
                with np.load(folder / "coco.npz") as dump:
                    dump = dict(dump)
                sizes = {"min_size": int(dump["min_size"]), "max_size": int(dump["max_size"])}
                compare_coco(table, name, build(name, folder / "model.pth"), dump, options.coco)
                imported = import_file(folder / "model.pth", **(TOP_K | MODELS[name] | sizes))
                compare_files(table, name, imported, dump, options.coco)
                with np.load(folder / "first_losses.npz") as losses:
                    model = build(name, folder / "model.pth")
                    compare_first_losses(table, name, model, dict(losses), sizes, options.coco)
            print(name, "compared", flush=True)
        versions = json.loads((folder / "versions.json").read_text())
    heading = f"torchvision {versions['torchvision']}, torch {versions['torch']}, TensorFlow {tf.__version__}"
    return table.finish(heading, options.table)


if __name__ == "__main__":
    sys.exit(main())
