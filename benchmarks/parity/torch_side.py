"""torchvision's side of the comparison, run by `run.py` in an environment with torch and torchvision.

    python -m benchmarks.parity.torch_side MODEL FOLDER [--coco=DIR]

Writes MODEL's state dict as model.pth, for each case of `CASES` what every stage of torchvision gave as NAME.npz, for
training the five losses (train.npz) and the gradients under the parameters' names (gradients.pth), and coco.npz.
"""

import argparse
import copy
import json
import pathlib

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools import mask as mask_utils
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from benchmarks.parity.torch_models import build, calibrate, make_images, to_list

# Name -> heights and widths of the images of one batch, which is padded to the largest, in multiples of 32.
CASES = {
    "one": [(256, 384)],
    "padded": [(256, 352), (224, 320)],
    "odd": [(250, 333)],
    "mixed": [(200, 317), (321, 193)],
}
TRAIN_SIZES = [(192, 256), (176, 224)]
TRAIN_PROPOSALS = 60
POOLED_KEPT = 64  # RoIs of which the pooled features are compared; all of them would be a gigabyte
# Features are disturbed by this share of their deviation to find the decisions that rounding can turn.
DISTURBANCE, DISTURBED_RUNS = 1e-5, 4
COCO_MIN_SIZE, COCO_MAX_SIZE = 256, 448
STRIDES = (4, 8, 16, 32, 64)
# Our names of the losses, and torchvision's.
LOSSES = {
    "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
    "class": "loss_classifier",
    "box": "loss_box_reg",
    "mask": "loss_mask",
}
LOSS_IMAGES = 12


def yxyx(boxes):
    return boxes.detach().numpy()[..., [1, 0, 3, 2]]


def pack(results, name, boxes, scores, labels):
    """Add the detections of a batch to the arrays of its file."""
    for i in range(len(boxes)):
        results[f"{name}_boxes{i}"] = yxyx(boxes[i])
        results[f"{name}_scores{i}"] = scores[i].numpy()
        results[f"{name}_classes{i}"] = labels[i].numpy()


@torch.no_grad()
def dump_case(model, images, pooled_kept=POOLED_KEPT, disturbed_runs=DISTURBED_RUNS):
    """Every stage of inference on one batch."""
    results = {f"image{i}": image for i, image in enumerate(images)}
    image_list = to_list(images)
    features = model.backbone(image_list.tensors)
    for level, value in zip(("P2", "P3", "P4", "P5", "P6"), features.values(), strict=True):
        results[level] = value.permute(0, 2, 3, 1).numpy()
    proposals = dump_rpn(model, image_list, features, results)
    heads = model.roi_heads
    pooled = heads.box_roi_pool(features, proposals, image_list.image_sizes)
    class_logits, box_deltas = heads.box_predictor(heads.box_head(pooled))
    start = 0
    for i, own in enumerate(proposals):
        stop = start + len(own)
        results[f"proposals{i}"] = yxyx(own)
        results[f"pooled{i}"] = pooled[start : min(stop, start + pooled_kept)].permute(0, 2, 3, 1).numpy()
        results[f"class_logits{i}"] = class_logits[start:stop].numpy()
        results[f"box_deltas{i}"] = yxyx(box_deltas[start:stop].view(len(own), -1, 4))
        start = stop
    detections, _ = heads(features, proposals, image_list.image_sizes)
    pack(results, "final", *([found[key] for found in detections] for key in ("boxes", "scores", "labels")))
    for i, found in enumerate(detections):
        results[f"final_masks{i}"] = found["masks"].numpy()[:, 0]
        pasted = paste_masks_in_image(found["masks"], found["boxes"], image_list.image_sizes[i])[:, 0]
        results[f"pasted{i}"] = np.packbits((pasted > 0.5).numpy(), axis=-1)
    dump_disturbed(model, image_list, features, disturbed_runs, results)
    return results


def dump_rpn(model, image_list, features, results):
    """The stages of the RPN; returns its proposals."""
    maps = list(features.values())
    logits, deltas = model.rpn.head(maps)
    anchors = model.rpn.anchor_generator(image_list, maps)
    batch = len(image_list.image_sizes)
    per_level = [x.shape[1] * x.shape[2] * x.shape[3] for x in logits]
    logits, deltas = detection.rpn.concat_box_prediction_layers(logits, deltas)
    decoded = model.rpn.box_coder.decode(deltas, anchors).view(batch, -1, 4)
    logits = logits.view(batch, -1)
    results["anchors"] = yxyx(anchors[0])
    results["rpn_sizes"] = np.array(per_level)
    results["rpn_logits"] = logits.numpy()
    results["rpn_deltas"] = yxyx(deltas.view(batch, -1, 4))
    results["decoded"] = yxyx(decoded)
    return model.rpn.filter_proposals(decoded, logits, image_list.image_sizes, per_level)[0]


def dump_disturbed(model, image_list, features, runs, results):
    """What comes out where the features differ by rounding: proposals and detections that then change are ties."""
    heads = model.roi_heads
    for run in range(runs):
        torch.manual_seed(run)
        noisy = {k: v + DISTURBANCE * v.std() * torch.randn_like(v) for k, v in features.items()}
        proposals, _ = model.rpn(image_list, noisy)
        for i, own in enumerate(proposals):
            results[f"disturbed{run}_proposals{i}"] = yxyx(own)
        pooled = heads.box_head(heads.box_roi_pool(noisy, proposals, image_list.image_sizes))
        found = heads.postprocess_detections(*heads.box_predictor(pooled), proposals, image_list.image_sizes)
        pack(results, f"disturbed{run}", *found)


def make_targets(masks, num_classes):
    """Ground truth of `make_images`' masks: tight boxes, random classes."""
    random = np.random.default_rng(6)
    targets = []
    for own in masks:
        boxes = [[x.min(), y.min(), x.max() + 1, y.max() + 1] for y, x in (np.nonzero(m) for m in own)]
        targets.append(
            {
                "boxes": torch.tensor(np.array(boxes), dtype=torch.float32),
                "labels": torch.from_numpy(random.integers(1, num_classes, len(own))),
                "masks": torch.from_numpy(own.astype(np.uint8)),
            }
        )
    return targets


def dump_training(model, sizes, num_proposals):
    """The losses of one batch on which every anchor and every RoI is sampled, and the gradients by name.

    Gradients are in float64; the noise_ entries say how far torchvision's own in float32 are from them.
    """
    images, masks = make_images(sizes, 5)
    image_list = to_list(images)
    heads = model.roi_heads
    targets = make_targets(masks, heads.box_predictor.cls_score.out_features)
    results = {}
    for i, target in enumerate(targets):
        results |= {f"image{i}": images[i], f"boxes{i}": yxyx(target["boxes"]), f"masks{i}": masks[i]}
        results[f"classes{i}"] = target["labels"].numpy()
    height, width = image_list.tensors.shape[2:]
    anchors = sum(3 * -(-height // s) * -(-width // s) for s in STRIDES)
    results["num_anchors"] = np.array(anchors)
    model.rpn.fg_bg_sampler.batch_size_per_image, model.rpn.fg_bg_sampler.positive_fraction = 2 * anchors, 0.5
    heads.fg_bg_sampler.batch_size_per_image = num_proposals + max(map(len, masks))
    heads.fg_bg_sampler.positive_fraction = 1.0
    model.eval()
    with torch.no_grad():  # in evaluation the normalizations keep their statistics
        model.rpn._post_nms_top_n["testing"], testing = num_proposals, model.rpn._post_nms_top_n["testing"]
        proposals, _ = model.rpn(image_list, model.backbone(image_list.tensors))
        model.rpn._post_nms_top_n["testing"] = testing
    model.train()
    exact = copy.deepcopy(model).double()
    losses = backward(model, image_list, proposals, targets)
    double = ImageList(image_list.tensors.double(), image_list.image_sizes)
    backward(exact, double, [p.double() for p in proposals], [t | {"boxes": t["boxes"].double()} for t in targets])
    gradients = {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        if p.grad is not None:
            error, norm = (p.grad - gradients[name]).norm(), gradients[name].norm()
            results[f"noise_{name}"] = (error / norm).item() if norm else 0.0
    for i, own in enumerate(proposals):
        results[f"proposals{i}"] = yxyx(own)
        rows = torch.arange(len(own)) % len(masks[i])
        results[f"mask_targets{i}"] = project_masks_on_boxes(targets[i]["masks"], own, rows, 28).numpy()
    results |= {f"loss_{name}": losses[theirs].item() for name, theirs in LOSSES.items()}
    return results, gradients


def losses_on(model, image_list, proposals, targets):
    """The five losses on these proposals."""
    features = model.backbone(image_list.tensors)
    _, losses = model.rpn(image_list, features, targets)
    return losses | model.roi_heads(features, proposals, image_list.image_sizes, targets)[1]


def backward(model, image_list, proposals, targets):
    """The five losses on these proposals; their gradients go into the parameters."""
    losses = losses_on(model, image_list, proposals, targets)
    sum(losses.values()).backward()
    return losses


def coco_targets(truth, image):
    """What torchvision's references make of an image's annotations: clamped boxes, masks of pixels, no crowds."""
    own = [a for a in truth["annotations"] if a["image_id"] == image["id"] and not a.get("iscrowd", 0)]
    number = {c: i for i, c in enumerate(sorted(c["id"] for c in truth["categories"]), 1)}
    height, width = image["height"], image["width"]
    boxes = torch.tensor([a["bbox"] for a in own], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    codes = [mask_utils.merge(mask_utils.frPyObjects(a["segmentation"], height, width)) for a in own]
    return {
        "boxes": boxes,
        "labels": torch.tensor([number[a["category_id"]] for a in own]),
        "masks": torch.from_numpy(np.stack([mask_utils.decode(code) for code in codes])),
    }


@torch.no_grad()
def dump_first_losses(model, folder, count, num_proposals):
    """The losses on photographs through the transforms of torchvision's references, every anchor and RoI sampled."""
    truth = json.loads(next(folder.glob("instances_*.json")).read_text())
    annotated = {a["image_id"] for a in truth["annotations"] if not a.get("iscrowd", 0)}
    records = [image for image in truth["images"] if image["id"] in annotated][:count]
    results = {"image_ids": np.array([record["id"] for record in records])}
    heads, sampler = model.roi_heads, model.rpn.fg_bg_sampler
    for i, record in enumerate(records):
        path = next(folder.glob(f"*/{record['file_name']}"))
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
        model.eval()
        image_list, targets = model.transform([image], [coco_targets(truth, record)])
        model.rpn._post_nms_top_n["testing"], testing = num_proposals, model.rpn._post_nms_top_n["testing"]
        proposals, _ = model.rpn(image_list, model.backbone(image_list.tensors))
        model.rpn._post_nms_top_n["testing"] = testing
        model.train()
        height, width = image_list.tensors.shape[2:]
        sampler.batch_size_per_image = 2 * sum(3 * -(-height // s) * -(-width // s) for s in STRIDES)
        heads.fg_bg_sampler.batch_size_per_image = num_proposals + len(targets[0]["boxes"])
        losses = losses_on(model, image_list, proposals, targets)
        results[f"proposals{i}"] = yxyx(proposals[0])
        results[f"losses{i}"] = np.array([losses[name].item() for name in LOSSES.values()])
    return results


@torch.no_grad()
def dump_coco(model, folder, count):
    """torchvision's own detections on the first images of a COCO set, and the images as its transform resized them."""
    truth = json.loads(next(folder.glob("instances_*.json")).read_text())
    model.eval()
    model.transform.min_size, model.transform.max_size = (COCO_MIN_SIZE,), COCO_MAX_SIZE
    mean, std = (np.array(getattr(model.transform, name), np.float32) for name in ("image_mean", "image_std"))
    results = {"image_ids": np.array([image["id"] for image in truth["images"][:count]])}
    results |= {"min_size": np.array(COCO_MIN_SIZE), "max_size": np.array(COCO_MAX_SIZE)}
    for i, record in enumerate(truth["images"][:count]):
        path = next(folder.glob(f"*/{record['file_name']}"))
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
        found = model([image])[0]
        resized, _ = model.transform([image])
        height, width = resized.image_sizes[0]
        pixels = resized.tensors[0, :, :height, :width].permute(1, 2, 0).numpy()
        results[f"image{i}"] = (pixels * std + mean) * 255
        pack(results, "coco", [found["boxes"]], [found["scores"]], [found["labels"]])
        for part in ("boxes", "scores", "classes"):
            results[f"{part}{i}"] = results.pop(f"coco_{part}0")
        results[f"masks{i}"] = np.packbits((found["masks"][:, 0] > 0.5).numpy(), axis=-1)
        results[f"size{i}"] = np.array(image.shape[1:])
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--coco", type=pathlib.Path)
    parser.add_argument("--coco_images", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = build(options.model)
    calibrate(model, [(320, 448), (320, 448)])
    torch.save(model.state_dict(), options.folder / "model.pth")
    for seed, (name, sizes) in enumerate(CASES.items()):
        results = dump_case(model, make_images(sizes, seed)[0])
        np.savez(options.folder / f"{name}.npz", **results)
        for i in range(len(sizes)):
            proposals, classes = len(results[f"proposals{i}"]), results[f"final_classes{i}"]
            print(
                f"{options.model} {name} image {i}: {proposals} proposals, {len(classes)} detections "
                f"of {len(set(classes.tolist()))} classes",
                flush=True,
            )
    if options.coco:
        np.savez(options.folder / "coco.npz", **dump_coco(model, options.coco, options.coco_images))
    state = model.state_dict()
    results, gradients = dump_training(model, TRAIN_SIZES, TRAIN_PROPOSALS)
    np.savez(options.folder / "train.npz", **results)
    if options.coco:
        results = dump_first_losses(model, options.coco, LOSS_IMAGES, TRAIN_PROPOSALS)
        np.savez(options.folder / "first_losses.npz", **results)
    torch.save(
        {n: gradients.get(n, torch.zeros_like(v)).float() for n, v in state.items()}, options.folder / "gradients.pth"
    )
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    (options.folder / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
