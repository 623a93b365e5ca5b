"""Detectron2's side of the comparison, run by `run_detectron2.py` in an environment with torch and torchvision.

    PYTHONPATH=CHECKOUT python -m benchmarks.parity.detectron2_side MODEL FOLDER --checkout=CHECKOUT --coco=DIR

CHECKOUT is Detectron2's source; its FPN models need no compiled operator. Writes MODEL's weights as model.pth, its
settings as config.yaml, and what its own predictor finds on photographs as photographs.npz; of a cascade also the
losses of its stages as losses.npz.
"""

import argparse
import json
import pathlib

from benchmarks import parity  # noqa: F401  makes torchvision importable
from benchmarks.parity.torch_models import make_images, standardize, take_statistics, yxyx

import numpy as np  # isort: skip
import torch  # isort: skip
import torchvision  # isort: skip
from detectron2.checkpoint import DetectionCheckpointer  # isort: skip
from detectron2.config import get_cfg  # isort: skip
from detectron2.data import detection_utils, transforms  # isort: skip
from detectron2.layers import FrozenBatchNorm2d  # isort: skip
from detectron2.modeling import build_model  # isort: skip
from detectron2.structures import Boxes, Instances  # isort: skip
from detectron2.utils.events import EventStorage  # isort: skip

MIN_SIZE, MAX_SIZE = 256, 448
# As the recipes with large-scale jitter are: RGB, trained normalization everywhere, two RPN layers, 4conv1fc.
LSJ = {
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.RPN.CONV_DIMS": [-1, -1],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "SyncBN",
    "MODEL.ROI_MASK_HEAD.NORM": "SyncBN",
}
AGNOSTIC = {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": True}
# Name -> the file of its settings in the checkout, and what is changed of them.
MODELS = {
    "R50 1x": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", {}),
    "R101": ("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml", {}),
    "R50 GN": ("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml", {}),
    "R50 LSJ": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", LSJ),
    "R50 Cascade": ("Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml", {}),
    "R50 class-agnostic": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", AGNOSTIC),
}
STATISTICS = (FrozenBatchNorm2d, torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm)
NORMS = (*STATISTICS, torch.nn.GroupNorm)


def settings_of(name, checkout):
    """The model's settings on the CPU, for images of the size of the comparison."""
    path, changes = MODELS[name]
    settings = get_cfg()
    settings.merge_from_file(str(checkout / "configs" / path))
    for key, value in changes.items():
        settings.merge_from_list([key, value])
    settings.MODEL.DEVICE, settings.MODEL.WEIGHTS = "cpu", ""
    settings.MODEL.RPN.POST_NMS_TOPK_TEST = 300
    settings.INPUT.MIN_SIZE_TEST, settings.INPUT.MAX_SIZE_TEST = MIN_SIZE, MAX_SIZE
    return settings


def as_inputs(model, images):
    """Detectron2's inputs of RGB images (H, W, 3)."""
    order = slice(None) if model.input_format == "RGB" else slice(None, None, -1)
    return [{"image": torch.from_numpy(np.ascontiguousarray(i[..., order].transpose(2, 0, 1)))} for i in images]


@torch.no_grad()
def calibrate(model):
    """As `torch_models.calibrate`: weights under which hundreds of proposals and dozens of detections survive."""
    model.eval()
    images = model.preprocess_image(as_inputs(model, make_images([(320, 448), (320, 448)], 99)[0]))
    body = [m for m in model.backbone.bottom_up.modules() if isinstance(m, NORMS)]
    for norm in body:
        norm.weight.uniform_(0.3, 0.6)
        norm.bias.normal_(1.0, 0.2)
        if isinstance(norm, STATISTICS):
            norm.register_forward_pre_hook(take_statistics)
    for name, value in model.named_parameters():
        if name.endswith("bias") and not name.startswith("backbone.bottom_up"):
            value.normal_(0, 0.1)
    model.backbone(images.tensor)
    for norm in body:
        norm._forward_pre_hooks.clear()
        if isinstance(norm, FrozenBatchNorm2d):  # as MSRA's weights are in Detectron2: a scale and a shift
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            norm.bias.sub_(norm.running_mean * scale)
            norm.weight.copy_(scale)
            norm.running_mean.zero_()
            norm.running_var.fill_(1 - norm.eps)
    for level in (2, 3, 4, 5):
        scale = model.backbone(images.tensor)[f"p{level}"].std()
        layer = getattr(model.backbone, f"fpn_output{level}")
        for parameter in (layer.norm or layer).parameters():
            parameter.div_(scale)
    features = model.backbone(images.tensor)
    head, heads = model.proposal_generator.rpn_head, model.roi_heads
    maps = [head.conv(features[name]) for name in model.proposal_generator.in_features]
    standardize(head.objectness_logits, maps, 3.0)
    standardize(head.anchor_deltas, maps, 0.25)
    boxes = [p.proposal_boxes for p in model.proposal_generator(images, features)[0]]
    maps = [features[name] for name in heads.box_in_features]
    is_cascade = isinstance(heads.box_head, torch.nn.ModuleList)
    stages = [(heads.box_head, heads.box_predictor)]
    if is_cascade:
        stages = list(zip(heads.box_head, heads.box_predictor, strict=True))
    for head, predictor in stages:
        pooled = head(heads.box_pooler(maps, boxes))
        standardize(predictor.cls_score, [pooled], 2.5)
        standardize(predictor.bbox_pred, [pooled], 0.6)
        if is_cascade:
            moved = predictor.box2box_transform.apply_deltas(predictor(pooled)[1], torch.cat([b.tensor for b in boxes]))
            proposals = heads._create_proposals_from_boxes(moved.split([len(b) for b in boxes]), images.image_sizes)
            boxes = [p.proposal_boxes for p in proposals]
    pooled = heads.mask_pooler(maps, [b[:60] for b in boxes])
    for name, layer in heads.mask_head.named_children():
        if name != "predictor":
            pooled = layer(pooled)
    standardize(heads.mask_head.predictor, [pooled], 2.0, 1.5)


def first_losses(model):
    """The losses of a cascade's stages on RoIs that its own sampler draws, and their gradient at the pyramid."""
    images = model.preprocess_image(as_inputs(model, make_images([(608, 832), (576, 640)], 5)[0]))
    features = {name: map_.detach().requires_grad_() for name, map_ in model.backbone(images.tensor).items()}
    random, targets, proposals = np.random.default_rng(6), [], []
    for size in images.image_sizes:
        start, sides = random.uniform(0, 0.2, (6, 2)), random.uniform(0.05, 0.8, (6, 2))
        boxes = torch.tensor(np.concatenate([start, start + sides], -1) * (size[::-1] * 2), dtype=torch.float32)
        targets.append(Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(random.integers(0, 80, 6))))
        noise = random.normal(0, 0.25, (600, 4)) * np.tile(np.repeat(sides * size[::-1], 100, 0), 2)
        near = Boxes(boxes.repeat_interleave(100, 0) + torch.tensor(noise, dtype=torch.float32))
        near.clip(size)
        near = near[near.nonempty()]
        proposals.append(Instances(size, proposal_boxes=near, objectness_logits=torch.zeros(len(near))))
    heads = model.roi_heads.train()
    heads.batch_size_per_image = 128  # of which there are enough in each image
    with EventStorage():
        sampled = heads.label_and_sample_proposals(proposals, targets)
        losses = heads._forward_box(features, sampled, targets)
    sum(losses.values()).backward()
    results = {f"loss_{name}": value.detach().numpy() for name, value in losses.items()}
    for name in heads.box_in_features:
        results[name] = features[name].detach().numpy().transpose(0, 2, 3, 1)
        results[f"gradient_{name}"] = features[name].grad.numpy().transpose(0, 2, 3, 1)
    results["rois"] = np.stack([yxyx(s.proposal_boxes.tensor) for s in sampled])
    results["roi_classes"] = np.stack([(s.gt_classes.numpy() + 1) % 81 for s in sampled])
    results["boxes"] = np.stack([yxyx(t.gt_boxes.tensor) for t in targets])
    results["classes"] = np.stack([t.gt_classes.numpy() + 1 for t in targets])
    return results | {"shapes": np.array(images.image_sizes)}


@torch.no_grad()
def find(model, settings, folder, count):
    """What Detectron2's predictor finds on the first photographs of a COCO set, by its own reading and resizing."""
    truth = json.loads(next(folder.glob("instances_*.json")).read_text())
    resize = transforms.ResizeShortestEdge([MIN_SIZE, MIN_SIZE], MAX_SIZE)
    results = {"image_ids": np.array([image["id"] for image in truth["images"][:count]])}
    for i, record in enumerate(truth["images"][:count]):
        image = detection_utils.read_image(next(folder.glob(f"*/{record['file_name']}")), settings.INPUT.FORMAT)
        height, width = image.shape[:2]
        pixels = resize.get_transform(image).apply_image(image).astype("float32").transpose(2, 0, 1)
        found = model([{"image": torch.as_tensor(pixels), "height": height, "width": width}])[0]["instances"]
        results[f"boxes{i}"] = yxyx(found.pred_boxes.tensor)
        results[f"scores{i}"] = found.scores.numpy()
        results[f"classes{i}"] = found.pred_classes.numpy() + 1
        results[f"masks{i}"] = np.packbits(found.pred_masks.numpy(), axis=-1)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--checkout", type=pathlib.Path, required=True)
    parser.add_argument("--coco", type=pathlib.Path, required=True)
    parser.add_argument("--images", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    settings = settings_of(options.model, options.checkout)
    model = build_model(settings)
    calibrate(model)
    DetectionCheckpointer(model, str(options.folder)).save("model")
    (options.folder / "config.yaml").write_text(settings.dump())
    np.savez(options.folder / "photographs.npz", **find(model, settings, options.coco, options.images))
    if settings.MODEL.ROI_HEADS.NAME == "CascadeROIHeads":
        np.savez(options.folder / "losses.npz", **first_losses(model))
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    (options.folder / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
