"""torchvision's side of `training.py`: `init` writes a model, `train` trains it and writes COCO results.

The data goes through what torchvision's references do: whole masks, a random horizontal flip, GeneralizedRCNNTransform.
"""

import argparse
import json
import pathlib
import time

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.misc import FrozenBatchNorm2d

from benchmarks.parity.torch_models import four_levels

CHANNELS, HIDDEN, MASK_CHANNELS = 64, 256, (64, 64)
TAPS = {"3": "0", "6": "1", "13": "2", "17": "3"}


def build(recipe):
    """A MobileNetV2-FPN with narrow heads."""
    features = torchvision.models.mobilenet_v2(weights=None, norm_layer=FrozenBatchNorm2d).features
    anchors = AnchorGenerator(tuple((size,) for size in recipe["anchor_sizes"]), ((0.5, 1.0, 2.0),) * 5)
    classes = recipe["num_classes"] + 1
    return detection.MaskRCNN(
        BackboneWithFPN(features, TAPS, [24, 32, 96, 320], CHANNELS),
        box_head=detection.faster_rcnn.TwoMLPHead(CHANNELS * 7**2, HIDDEN),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(HIDDEN, classes),
        mask_head=detection.mask_rcnn.MaskRCNNHeads(CHANNELS, MASK_CHANNELS, 1),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(MASK_CHANNELS[-1], MASK_CHANNELS[-1], classes),
        min_size=recipe["min_size"],
        max_size=recipe["max_size"],
        rpn_pre_nms_top_n_train=recipe["rpn_pre_nms_top_k"],
        rpn_post_nms_top_n_train=recipe["rpn_post_nms_top_k"],
        rpn_pre_nms_top_n_test=recipe["rpn_pre_nms_top_k"],
        rpn_post_nms_top_n_test=recipe["rpn_post_nms_top_k"],
        box_batch_size_per_image=recipe["roi_batch_size"],
        box_detections_per_img=recipe["max_detections"],
        **four_levels(pool_size=7) | {"rpn_anchor_generator": anchors},
    )


def load_imagenet(body, path):
    """ImageNet weights from arrays in the order of the network, kernels HWIO; torchvision nests their names deeper."""
    with np.load(path) as arrays:
        values = [torch.from_numpy(v.transpose(3, 2, 0, 1) if v.ndim == 4 else v) for v in arrays.values()]
    own = body.state_dict()
    # Depthwise kernels are stored as (H, W, C, 1).
    state = {name: value.reshape(own[name].shape) for name, value in zip(own, values, strict=False)}
    body.load_state_dict(state)


class Photographs(torch.utils.data.Dataset):
    """Images with boxes, labels and whole masks; flipped at random."""

    def __init__(self, annotations, images):
        self.coco, self.images = COCO(annotations), pathlib.Path(images)
        usable = {a["image_id"] for a in self.coco.loadAnns(self.coco.getAnnIds(iscrowd=False))}
        self.ids = sorted(usable)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        record = self.coco.loadImgs(self.ids[index])[0]
        with Image.open(self.images / record["file_name"]) as file:
            image = torchvision.transforms.functional.to_tensor(file.convert("RGB"))
        objects = self.coco.loadAnns(self.coco.getAnnIds(self.ids[index], iscrowd=False))
        masks = torch.from_numpy(np.stack([self.coco.annToMask(o) for o in objects]))
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        labels = torch.tensor([o["category_id"] for o in objects])
        if torch.rand(()) < 0.5:
            width = image.shape[-1]
            image, masks = image.flip(-1), masks.flip(-1)
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        return image, {"boxes": boxes[keep], "labels": labels[keep], "masks": masks[keep]}


def train(model, data, recipe, seed):
    """SGD with a linear warm-up; returns the mean loss of the last 20 steps."""
    torch.manual_seed(seed)
    model.train()
    optimizer = torch.optim.SGD(
        model.parameters(), recipe["learning_rate"], recipe["momentum"], weight_decay=recipe["weight_decay"]
    )
    warmup = recipe["warmup_steps"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, 1))
    losses, order = [], []
    for _ in range(recipe["steps"]):
        if len(order) < recipe["batch_size"]:
            order = torch.randperm(len(data)).tolist()
        batch = [data[order.pop()] for _ in range(recipe["batch_size"])]
        loss = sum(model([image for image, _ in batch], [target for _, target in batch]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses[-20:]))


@torch.no_grad()
def results(model, annotations, images):
    """Detections of every image as COCO results."""
    model.eval()
    coco, found = COCO(annotations), []
    for image_id in coco.getImgIds():
        with Image.open(pathlib.Path(images) / coco.loadImgs(image_id)[0]["file_name"]) as file:
            image = torchvision.transforms.functional.to_tensor(file.convert("RGB"))
        out = model([image])[0]
        for box, label, score, mask in zip(*(out[k] for k in ("boxes", "labels", "scores", "masks")), strict=True):
            code = mask_utils.encode(np.asfortranarray((mask[0] > 0.5).numpy().astype(np.uint8)))
            x0, y0, x1, y1 = box.tolist()
            base = {"image_id": image_id, "category_id": label.item(), "score": score.item()}
            segmentation = {"size": code["size"], "counts": code["counts"].decode()}
            found.append(base | {"bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": segmentation})
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("init", "train"))
    parser.add_argument("folder", type=pathlib.Path, help="with recipe.json; gets model.pth or torch-SEED.json")
    parser.add_argument("--imagenet", help="init: MobileNetV2's arrays")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    recipe = json.loads((options.folder / "recipe.json").read_text())
    torch.manual_seed(0)
    model = build(recipe)
    if options.action == "init":
        load_imagenet(model.backbone.body, options.imagenet)
        torch.save(model.state_dict(), options.folder / "model.pth")
        return
    model.load_state_dict(torch.load(options.folder / "model.pth"))
    start = time.perf_counter()
    loss = train(model, Photographs(recipe["train_annotations"], recipe["train_images"]), recipe, options.seed)
    seconds = time.perf_counter() - start
    found = results(model, recipe["val_annotations"], recipe["val_images"])
    written = {"loss": loss, "seconds": seconds, "results": found}
    (options.folder / f"torch-{options.seed}.json").write_text(json.dumps(written))


if __name__ == "__main__":
    main()
