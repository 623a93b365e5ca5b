"""State dicts with the names and shapes that torchvision writes, small where the architecture allows it."""

import json
import pathlib
import re

import numpy as np

from tests.golden.seeded import seeded

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "backbones.json").read_text())
CLASSIFIER = ("fc.", "classifier.", "features.18.")
C5 = {"resnet18": (64, 128, 256, 512), "resnet50": (256, 512, 1024, 2048), "mobilenet_v2": (24, 32, 96, 320)}


def _conv(shapes, name, out, channels, side, bias=True):
    shapes[f"{name}.weight"] = (out, channels, side, side)
    if bias:
        shapes[f"{name}.bias"] = (out,)


def _norm(shapes, name, width, counters):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        shapes[f"{name}.{leaf}"] = (width,)
    if counters:
        shapes[f"{name}.num_batches_tracked"] = ()


def torchvision_shapes(backbone="resnet18", channels=8, fc=16, classes=3, v2=False):
    """Name -> shape of a Mask R-CNN; `v2` as maskrcnn_resnet50_fpn_v2, or as the first version."""
    shapes = {}
    for name, shape in GOLDEN[backbone]["tensors"].items():
        if not name.startswith(CLASSIFIER) and (v2 or not name.endswith("num_batches_tracked")):
            shapes[f"backbone.body.{name.removeprefix('features.')}"] = tuple(shape)
            if v2 and name.endswith("running_var"):
                shapes[f"backbone.body.{name.removesuffix('running_var')}num_batches_tracked"] = ()
    for i, width in enumerate(C5[backbone]):
        for kind, inputs, side in (("inner", width, 1), ("layer", channels, 3)):
            _conv(shapes, f"backbone.fpn.{kind}_blocks.{i}.0", channels, inputs, side, bias=not v2)
            if v2:
                _norm(shapes, f"backbone.fpn.{kind}_blocks.{i}.1", channels, True)
    for i in range(2 if v2 else 1):
        _conv(shapes, f"rpn.head.conv.{i}.0", channels, channels, 3)
    _conv(shapes, "rpn.head.cls_logits", 3, channels, 1)
    _conv(shapes, "rpn.head.bbox_pred", 12, channels, 1)
    for kind, count in (("box_head", 4 if v2 else 0), ("mask_head", 4)):
        for i in range(count):
            _conv(shapes, f"roi_heads.{kind}.{i}.0", channels, channels, 3, bias=not v2)
            if v2:
                _norm(shapes, f"roi_heads.{kind}.{i}.1", channels, True)
    layers = {"5": 49 * channels} if v2 else {"fc6": 49 * channels, "fc7": fc}
    layers = {f"box_head.{name}": (fc, inputs) for name, inputs in layers.items()}
    layers |= {"box_predictor.cls_score": (classes + 1, fc), "box_predictor.bbox_pred": (4 * (classes + 1), fc)}
    for name, (out, inputs) in layers.items():
        shapes |= {f"roi_heads.{name}.weight": (out, inputs), f"roi_heads.{name}.bias": (out,)}
    _conv(shapes, "roi_heads.mask_predictor.conv5_mask", channels, channels, 2)
    _conv(shapes, "roi_heads.mask_predictor.mask_fcn_logits", classes + 1, channels, 1)
    return shapes


def torchvision_state(**options):
    """The same with seeded values."""
    return {
        name: np.zeros((), "int64") if name.endswith("num_batches_tracked") else seeded(name, shape)
        for name, shape in torchvision_shapes(**options).items()
    }


def cascade_state(stages=3):
    """What Detectron2 saves for a cascade: class-agnostic box heads, numbered."""
    result = {}
    for name, value in detectron2_state().items():
        match = re.fullmatch(r"roi_heads\.(box_head|box_predictor)\.(.*)", name)
        if not match:
            result[name] = value
            continue
        value = value[:4] if "bbox_pred" in name else value
        for stage in range(stages):
            own = seeded(f"{name} {stage}", value.shape) if stage else value
            result[f"roi_heads.{match[1]}.{stage}.{match[2]}"] = own
    return result


_DETECTRON2 = (
    (r"backbone\.body\.conv1", "backbone.bottom_up.stem.conv1"),
    (r"backbone\.body\.bn1", "backbone.bottom_up.stem.conv1.norm"),
    *((rf"backbone\.body\.layer{i - 1}", f"backbone.bottom_up.res{i}") for i in (2, 3, 4, 5)),
    (r"\.bn(\d)", r".conv\1.norm"),
    (r"downsample\.0", "shortcut"),
    (r"downsample\.1", "shortcut.norm"),
    *((rf"fpn\.inner_blocks\.{i}\.0", f"fpn_lateral{i + 2}") for i in range(4)),
    *((rf"fpn\.layer_blocks\.{i}\.0", f"fpn_output{i + 2}") for i in range(4)),
    *((rf"fpn\.inner_blocks\.{i}\.1", f"fpn_lateral{i + 2}.norm") for i in range(4)),
    *((rf"fpn\.layer_blocks\.{i}\.1", f"fpn_output{i + 2}.norm") for i in range(4)),
    (r"rpn\.head\.cls_logits", "proposal_generator.rpn_head.objectness_logits"),
    (r"rpn\.head\.bbox_pred", "proposal_generator.rpn_head.anchor_deltas"),
    *((rf"mask_head\.{i}\.0", f"mask_head.mask_fcn{i + 1}") for i in range(4)),
    *((rf"mask_head\.{i}\.1", f"mask_head.mask_fcn{i + 1}.norm") for i in range(4)),
    *((rf"box_head\.{i}\.0", f"box_head.conv{i + 1}") for i in range(4)),
    *((rf"box_head\.{i}\.1", f"box_head.conv{i + 1}.norm") for i in range(4)),
    (r"box_head\.fc6", "box_head.fc1"),
    (r"box_head\.fc7", "box_head.fc2"),
    (r"box_head\.5", "box_head.fc1"),
    (r"mask_predictor\.conv5_mask", "mask_head.deconv"),
    (r"mask_predictor\.mask_fcn_logits", "mask_head.predictor"),
)


def detectron2_state(caffe=True, **options):
    """What Detectron2 saves for the network of `torchvision_state(**options)` were it fed BGR pixels.

    As in its model zoo the background is last, and has neither boxes nor masks; `caffe` has the normalizations of
    MSRA's weights.
    """
    result = {}
    for name, value in torchvision_state(**options).items():
        module, _, leaf = name.rpartition(".")
        if name == "backbone.body.conv1.weight":
            value = value[:, ::-1]
        elif module.endswith("cls_score"):
            value = np.concatenate([value[1:], value[:1]])
        elif module == "roi_heads.box_predictor.bbox_pred":
            value = value[4:]
        elif module.endswith("mask_fcn_logits"):
            value = value[1:]
        if caffe and module.startswith("backbone.body") and leaf.startswith("running"):
            value = np.full_like(value, 1 - 1e-5 if leaf == "running_var" else 0)
        convs = ("conv", "conv") if not options.get("v2") else ("conv.conv0", "conv.conv1")
        for i, conv in enumerate(convs):
            module = re.sub(rf"rpn\.head\.conv\.{i}\.0", f"proposal_generator.rpn_head.{conv}", module)
        for pattern, new in _DETECTRON2:
            module = re.sub(pattern + r"(?=\.|$)", new, module)
        result[f"{module}.{leaf}"] = np.ascontiguousarray(value)
    return result


def point_rend_state(width=4, class_agnostic=False):
    """What Detectron2's PointRend project saves, with a coarse head narrower than the pyramid's 8 or wider."""
    channels, classes, fcs, points = 8, 3, (12, 10), (6, 5)
    state = {name: value for name, value in detectron2_state().items() if "mask_head" not in name}
    coarse, point, shapes = "roi_heads.mask_head.coarse_head", "roi_heads.mask_head.point_head", {}
    if channels > width:
        _conv(shapes, f"{coarse}.reduce_channel_dim_conv", width, channels, 1)
    _conv(shapes, f"{coarse}.reduce_spatial_dim_conv", width, min(width, channels), 2)
    layers = {f"{coarse}.fc1": (fcs[0], width * 49), f"{coarse}.fc2": (fcs[1], fcs[0])}
    layers |= {f"{coarse}.prediction": (classes * 49, fcs[1])}
    layers |= {f"{point}.fc1": (points[0], channels + classes, 1), f"{point}.fc2": (points[1], points[0] + classes, 1)}
    layers |= {f"{point}.predictor": (1 if class_agnostic else classes, points[1] + classes, 1)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return state | {name: seeded(name, shape) for name, shape in shapes.items()}
