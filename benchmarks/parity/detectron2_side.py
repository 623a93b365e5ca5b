"""Detectron2's side of the comparison, run by `run_detectron2.py` in an environment with torch and torchvision.

    PYTHONPATH=CHECKOUT python -m benchmarks.parity.detectron2_side MODEL FOLDER --checkout=CHECKOUT --coco=DIR

CHECKOUT is Detectron2's source; its FPN models need no compiled operator. Writes MODEL's weights as model.pth, its
settings as config.yaml, and what its own predictor finds on photographs as photographs.npz; of a cascade also the
losses of its stages as losses.npz, of PointRend what its mask heads give in training and inference as points.npz.
"""

import argparse
import copy
import json
import pathlib
import sys
from unittest import mock

from benchmarks import parity  # noqa: F401  makes torchvision importable
from benchmarks.parity.torch_models import make_images, standardize, take_statistics, yxyx

import numpy as np  # isort: skip
import torch  # isort: skip
import torch.nn.functional as F  # isort: skip
import torchvision  # isort: skip
from detectron2.checkpoint import DetectionCheckpointer  # isort: skip
from detectron2.config import get_cfg  # isort: skip
from detectron2.data import detection_utils, transforms  # isort: skip
from detectron2.layers import FrozenBatchNorm2d  # isort: skip
from detectron2.modeling import build_model  # isort: skip
from detectron2.structures import BitMasks, Boxes, Instances  # isort: skip
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
    "R50 PointRend": ("pointrend_rcnn_R_50_FPN_3x_coco.yaml", {}),
}
POINT_REND = "projects/PointRend"
STATISTICS = (FrozenBatchNorm2d, torch.nn.BatchNorm2d, torch.nn.SyncBatchNorm)
NORMS = (*STATISTICS, torch.nn.GroupNorm)


def settings_of(name, checkout):
    """The model's settings on the CPU, for images of the size of the comparison."""
    path, changes = MODELS[name]
    settings, folder = get_cfg(), checkout / "configs"
    if path.startswith("pointrend"):
        sys.path.append(str(checkout / POINT_REND))
        from point_rend import add_pointrend_config

        add_pointrend_config(settings)
        folder = checkout / POINT_REND / "configs" / "InstanceSegmentation"
    settings.merge_from_file(str(folder / path))
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
    boxes = [b[:60] for b in boxes]
    if hasattr(heads.mask_head, "point_head"):
        calibrate_points(heads.mask_head, features, boxes)
        return
    pooled = heads.mask_pooler(maps, boxes)
    for name, layer in heads.mask_head.named_children():
        if name != "predictor":
            pooled = layer(pooled)
    standardize(heads.mask_head.predictor, [pooled], 2.0, 1.5)


def calibrate_points(head, features, boxes):
    """The mask heads of PointRend, whose coarse masks and points vary as the masks of the others."""
    x = pooled = head._roi_pooler(features, boxes)
    for layer in head.coarse_head.conv_layers:
        x = layer(x)
    x = x.flatten(1)
    for layer in head.coarse_head.fcs:
        x = layer(x).relu()
    standardize(head.coarse_head.prediction, [x], 2.0, 0.5)
    coords = torch.rand(len(pooled), 100, 2)
    fine = head._point_pooler(features, boxes, coords)
    seen = []
    hook = head.point_head.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head._get_point_logits(fine, coords, head.coarse_head(pooled))
    hook.remove()
    standardize(head.point_head.predictor, seen, 2.0, 0.5)


def point_gradients(head, features, instances):
    """The losses of PointRend's mask heads and the gradients of their sum, by name, in the precision of the head."""
    p2, sample = features["p2"].detach().requires_grad_(), F.grid_sample
    head.zero_grad()

    def sample_exactly(x, points, **options):  # Detectron2 makes float32 of boxes and masks
        return sample(x.to(p2.dtype), points.to(p2.dtype), **options)

    with EventStorage(), mock.patch("torch.nn.functional.grid_sample", sample_exactly):
        torch.set_default_dtype(p2.dtype)
        losses = head({"p2": p2}, instances)
        torch.set_default_dtype(torch.float32)
    sum(losses.values()).backward()
    results = {name: value.detach().numpy() for name, value in losses.items()}
    results["gradient_p2"] = p2.grad.numpy().transpose(0, 2, 3, 1)
    named = head.named_parameters(prefix="roi_heads.mask_head")
    return results | {f"gradient_{name}": parameter.grad.numpy().copy() for name, parameter in named}


def point_outputs(model):
    """What PointRend's mask heads give: losses, points and gradients in training, and masks by subdivision."""
    sizes = [(128, 128), (128, 128)]  # whose masks are square, as those of kmaskrcnn's batches
    pictures, masks = make_images(sizes, 5)
    images = model.preprocess_image(as_inputs(model, pictures))
    features = {name: map_.detach() for name, map_ in model.backbone(images.tensor).items()}
    random, instances, classes = np.random.default_rng(6), [], []
    for own in masks:
        edges = [[np.flatnonzero(m.any(axis))[[0, -1]] for axis in (0, 1)] for m in own]  # x, y
        boxes = np.array([[x[0], y[0], x[1] + 1, y[1] + 1] for x, y in edges]) + random.uniform(-6, 6, (len(own), 4))
        boxes = torch.tensor(np.clip(boxes, 2, 126), dtype=torch.float32)
        classes.append(random.integers(0, 80, len(own)))
        bits = BitMasks(torch.tensor(own))
        gt = {"gt_classes": torch.tensor(classes[-1]), "gt_masks": bits}
        found = {"pred_boxes": Boxes(boxes), "pred_classes": torch.tensor(classes[-1])}
        instances.append(Instances(sizes[0], proposal_boxes=Boxes(boxes), **gt, **found))
    head, draws, rand = model.roi_heads.mask_head.train(), [], torch.rand

    def draw(*size, **options):
        draws.append(rand(*size, **options))
        return draws[-1]

    boxes = [x.proposal_boxes for x in instances]
    with mock.patch("torch.rand", draw):
        results = point_gradients(head, features, instances)
    again = iter([x.double() for x in draws])
    with mock.patch("torch.rand", lambda *size, **options: next(again)):
        exact = point_gradients(copy.deepcopy(head).double(), {"p2": features["p2"].double()}, instances)
    results |= {f"exact_{name}": value for name, value in exact.items()}
    with torch.no_grad():
        coarse = head.coarse_head(head._roi_pooler(features, boxes))
        results["coarse"] = coarse.numpy().transpose(0, 2, 3, 1)
        points = rand(len(coarse), 300, 2)
        fine = head._point_pooler(features, boxes, points)
        logits = head._get_point_logits(fine, points, coarse)
        results["point_logits"] = logits[torch.arange(len(coarse)), torch.tensor(np.concatenate(classes))].numpy()
        head.eval()(features, instances)
        results["masks"] = torch.cat([x.pred_masks for x in instances])[:, 0].numpy()
    results |= {"points": points.numpy()[..., ::-1], "draws": torch.cat(draws, dim=1).numpy()[..., ::-1]}
    results["p2"] = features["p2"].numpy().transpose(0, 2, 3, 1)
    results["boxes"] = np.stack([yxyx(b.tensor) for b in boxes])
    return results | {"classes": np.stack(classes) + 1, "gt_masks": np.stack(masks)}


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
    if hasattr(model.roi_heads.mask_head, "point_head"):
        np.savez(options.folder / "points.npz", **point_outputs(model))
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    (options.folder / "versions.json").write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
