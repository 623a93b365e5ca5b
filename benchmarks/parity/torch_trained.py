"""torchvision's side of `trained.py`: trains a model on photographs; writes model.pth and its detections, coco.npz."""

import argparse
import json
import pathlib

import numpy as np
import torch
from PIL import Image

from benchmarks.parity.torch_models import build, calibrate
from benchmarks.parity.torch_side import COCO_MAX_SIZE, COCO_MIN_SIZE, coco_targets, dump_coco
from benchmarks.parity.torch_training import load_imagenet

IMAGES = 60
BATCH, LEARNING_RATE, WARMUP, ROIS, CLIP_NORM = 2, 0.01, 30, 128, 5.0


@torch.no_grad()
def fresh_outputs(model):
    """Start the outputs near zero, as torchvision does: `calibrate` makes them large."""
    heads = model.roi_heads
    outputs = (model.rpn.head.cls_logits, model.rpn.head.bbox_pred, heads.mask_predictor.mask_fcn_logits)
    for layer in (*outputs, heads.box_predictor.cls_score, heads.box_predictor.bbox_pred):
        layer.weight.normal_(0, 0.01)
        layer.bias.zero_()


def train(model, folder, steps):
    """SGD on the first photographs of the set, flipped at random."""
    truth = json.loads(next(folder.glob("instances_*.json")).read_text())
    objects = {a["image_id"] for a in truth["annotations"] if not a.get("iscrowd", 0)}
    records = [image for image in truth["images"][:IMAGES] if image["id"] in objects]
    model.train()
    model.transform.min_size, model.transform.max_size = (COCO_MIN_SIZE,), COCO_MAX_SIZE
    model.roi_heads.fg_bg_sampler.batch_size_per_image = ROIS
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, 0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARMUP, 1))
    order = []
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(records)).tolist()
        images, targets = [], []
        for record in (records[order.pop()] for _ in range(BATCH)):
            path = next(folder.glob(f"*/{record['file_name']}"))
            image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
            target = coco_targets(truth, record)
            if torch.rand(()) < 0.5:
                boxes, width = target["boxes"], image.shape[2]
                boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
                image, target = image.flip(-1), target | {"boxes": boxes, "masks": target["masks"].flip(-1)}
            images.append(image)
            targets.append(target)
        losses = model(images, targets)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            parts = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            print(f"step {step + 1} of {steps}: loss {loss:.3f}  {parts}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--coco", type=pathlib.Path, required=True)
    parser.add_argument("--imagenet", required=True)
    parser.add_argument("--steps", type=int, required=True)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = build(options.model)
    if options.model.startswith("mobilenet"):
        load_imagenet(model.backbone.body, options.imagenet)
    else:
        calibrate(model, [(320, 448), (320, 448)])
        fresh_outputs(model)
    train(model, options.coco, options.steps)
    torch.save(model.state_dict(), options.folder / "model.pth")
    np.savez(options.folder / "coco.npz", **dump_coco(model, options.coco, IMAGES))


if __name__ == "__main__":
    main()
