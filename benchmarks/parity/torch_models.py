"""torchvision's models with random weights of a useful size, and images for them. Needs torch and torchvision."""

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.misc import FrozenBatchNorm2d

NUM_CLASSES = 91  # with the background
PROPOSALS = 300  # an image after NMS; torchvision's 1000 would only take longer


def build(kind, proposals=PROPOSALS):
    """A Mask R-CNN of torchvision's classes as its published checkpoints have them, without weights.

    `proposals` are what is kept an image after NMS, in inference.
    """
    if kind == "r50_fpn":
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
        return detection.MaskRCNN(backbone, NUM_CLASSES, rpn_post_nms_top_n_test=proposals)
    if kind in ("r18_fpn", "r101_fpn"):
        depth = kind.removesuffix("_fpn").removeprefix("r")
        backbone = resnet_fpn_backbone(backbone_name=f"resnet{depth}", weights=None, trainable_layers=3)
        return detection.MaskRCNN(backbone, NUM_CLASSES, rpn_post_nms_top_n_test=proposals)
    if kind == "r50_fpn_v2":
        return detection.maskrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=NUM_CLASSES, rpn_post_nms_top_n_test=proposals
        )
    if kind == "mobilenet_v2_fpn":
        features = torchvision.models.mobilenet_v2(weights=None, norm_layer=FrozenBatchNorm2d).features
        taps = {"3": "0", "6": "1", "13": "2", "17": "3"}  # the last block at each stride
        backbone = BackboneWithFPN(features, taps, [24, 32, 96, 320], 256)
        return detection.MaskRCNN(backbone, NUM_CLASSES, rpn_post_nms_top_n_test=proposals, **four_levels(pool_size=7))
    if kind == "tiny":
        body = torchvision.models.resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
        taps = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
        backbone = BackboneWithFPN(body, taps, [64, 128, 256, 512], 16)
        return detection.MaskRCNN(
            backbone,
            box_head=detection.faster_rcnn.TwoMLPHead(16 * 7**2, 32),
            box_predictor=detection.faster_rcnn.FastRCNNPredictor(32, 6),
            mask_head=detection.mask_rcnn.MaskRCNNHeads(16, (16, 16), 1),
            mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(16, 16, 6),
            rpn_post_nms_top_n_test=40,
            box_detections_per_img=20,
            **four_levels(pool_size=7),
        )
    raise SystemExit(f"unknown model {kind}")


def four_levels(pool_size):
    """The anchors of the paper and pooling from P2..P5, whatever the backbone calls its maps."""
    sizes = tuple((size,) for size in (32, 64, 128, 256, 512))
    pool = {"featmap_names": ["0", "1", "2", "3"], "sampling_ratio": 2}
    return {
        "rpn_anchor_generator": detection.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        "box_roi_pool": torchvision.ops.MultiScaleRoIAlign(output_size=pool_size, **pool),
        "mask_roi_pool": torchvision.ops.MultiScaleRoIAlign(output_size=2 * pool_size, **pool),
    }


def make_images(sizes, seed):
    """Smooth noise with bright ellipses: uint8 (H, W, 3) images, and for each its masks (N, H, W)."""
    random = np.random.default_rng(seed)
    images, masks = [], []
    for height, width in sizes:
        coarse = random.normal(size=(1, 3, height // 8 + 2, width // 8 + 2)).astype(np.float32)
        noise = F.interpolate(torch.from_numpy(coarse), (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
        image = 110 + 45 * noise
        y, x = np.mgrid[:height, :width]
        own = []
        for _ in range(6):
            radii = random.uniform(0.07, 0.3, 2) * min(height, width)
            center = random.uniform(0.2, 0.8, 2) * (height, width)
            inside = ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 < 1
            image[inside] = 0.3 * image[inside] + 0.7 * random.uniform(0, 255, 3)
            own.append(inside)
        images.append(np.clip(image, 0, 255).round().astype(np.uint8))
        masks.append(np.stack(own))
    return images, masks


def to_list(images):
    """Images as torchvision's transform hands them on, without its resizing."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    tensors = [((torch.from_numpy(i).float() / 255 - mean) / std).permute(2, 0, 1) for i in images]
    height, width = (-(-max(i.shape[d] for i in images) // 32) * 32 for d in (0, 1))
    batch = torch.zeros(len(images), 3, height, width)
    for row, tensor in zip(batch, tensors, strict=True):
        row[:, : tensor.shape[1], : tensor.shape[2]] = tensor
    return ImageList(batch, [tuple(t.shape[1:]) for t in tensors])


def yxyx(boxes):
    return boxes.detach().numpy()[..., [1, 0, 3, 2]]


@torch.no_grad()
def calibrate(model, sizes):
    """Set weights of which hundreds of proposals and dozens of detections of many classes come out.

    The body is made as smooth as a trained one: a normalization's output is mostly above 0. Where half of the units lie
    around the kink of their ReLU, rounding alone turns gradients by a hundredth.
    """
    model.eval()
    images = to_list(make_images(sizes, 99)[0])
    kinds = (FrozenBatchNorm2d, torch.nn.BatchNorm2d)
    for norm in [m for m in model.backbone.body.modules() if isinstance(m, kinds)]:
        norm.weight.uniform_(0.3, 0.6)
        norm.bias.normal_(1.0, 0.2)
        norm.register_forward_pre_hook(take_statistics)
    for name, value in model.named_parameters():
        if name.endswith("bias") and not name.startswith("backbone.body"):
            value.normal_(0, 0.1)
    model.backbone(images.tensors)
    for norm in model.backbone.body.modules():
        norm._forward_pre_hooks.clear()
    for i, block in enumerate(model.backbone.fpn.layer_blocks):
        scale = model.backbone(images.tensors)[str(i)].std()
        last = [m for m in block.modules() if list(m.parameters(recurse=False))][-1]
        for parameter in last.parameters():
            parameter.div_(scale)
    features = model.backbone(images.tensors)
    maps = list(features.values())
    standardize(model.rpn.head.cls_logits, [model.rpn.head.conv(x) for x in maps], 3.0)
    standardize(model.rpn.head.bbox_pred, [model.rpn.head.conv(x) for x in maps], 0.25)
    proposals, _ = model.rpn(images, features)
    heads = model.roi_heads
    pooled = heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
    standardize(heads.box_predictor.cls_score, [pooled], 2.5)
    standardize(heads.box_predictor.bbox_pred, [pooled], 0.6)
    few = [p[:60] for p in proposals]
    pooled = heads.mask_head(heads.mask_roi_pool(features, few, images.image_sizes))
    predictor = heads.mask_predictor
    standardize(predictor.mask_fcn_logits, [predictor.relu(predictor.conv5_mask(pooled))], 2.0, 1.5)


def take_statistics(norm, inputs):
    """A hook: the normalization's statistics become those of its input."""
    norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
    norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)) + 1e-3)


def standardize(layer, inputs, deviation, mean=0.0):
    """Scale and shift a layer so that each of its outputs has the mean and the deviation over the inputs."""
    outputs = [layer(x).transpose(0, 1).flatten(1) for x in inputs]  # (channels, positions)
    outputs = torch.cat(outputs, dim=1)
    scale = deviation / outputs.std(dim=1)
    layer.bias.copy_((layer.bias - outputs.mean(dim=1)) * scale + mean)
    layer.weight.mul_(scale.reshape(-1, *[1] * (layer.weight.ndim - 1)))
