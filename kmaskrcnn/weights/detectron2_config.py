"""What a config.yaml of Detectron2 says of a model beyond its weights: pixels, strides, anchors, thresholds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kmaskrcnn.errors import WeightsError, reason
from kmaskrcnn.layers.cascade import coding_weights

_NORMS = {"FrozenBN": "frozen_bn", "BN": "bn", "SyncBN": "sync_bn", "nnSyncBN": "sync_bn", "naiveSyncBN": "sync_bn"}
_NORMS |= {"GN": "gn"}
_ROI_HEADS = ("StandardROIHeads", "CascadeROIHeads", "PointRendROIHeads")
_POOLERS = ("ROIAlignV2", "ROIAlign")
_LARGEST, _DEEPEST, _MOST_ALIASES = 1 << 17, 16, 32
# Where it differs, the model is another one: (path, what it must be, what it is else).
_MUST_BE = (
    ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "the architecture"),
    ("MODEL.MASK_ON", True, "masks are off: fresh_masks=True loads a Faster R-CNN;"),
    ("MODEL.KEYPOINT_ON", False, "keypoints"),
    ("MODEL.RESNETS.NUM_GROUPS", 1, "ResNeXt groups"),
    ("MODEL.ANCHOR_GENERATOR.OFFSET", 0.0, "the offset of the anchors"),
)
# Of the same, what configs that leave it out have by default.
_BY_DEFAULT = (
    ("MODEL.RPN.BBOX_REG_WEIGHTS", [1.0] * 4, "the coding of the RPN's boxes"),
    ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", False, "classes that each have a sigmoid"),
    ("MODEL.FPN.FUSE_TYPE", "sum", "a pyramid of means"),
)
_ONE_STAGE_BY_DEFAULT = (("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", [10.0, 10.0, 5.0, 5.0], "the coding of the boxes"),)
_POINT_REND_MUST_BE = (
    ("MODEL.ROI_MASK_HEAD.IN_FEATURES", ["p2"], "other features of the coarse masks"),
    ("MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION", 7, "other sides of the coarse masks"),
    ("MODEL.ROI_MASK_HEAD.POINT_HEAD_ON", True, "a PointRend model without its point head"),
    ("MODEL.POINT_HEAD.NAME", "StandardPointHead", "the point head"),
    ("MODEL.POINT_HEAD.IN_FEATURES", ["p2"], "other features of the points"),
    ("MODEL.POINT_HEAD.COARSE_PRED_EACH_LAYER", True, "the layers of the point head"),
    ("MODEL.POINT_HEAD.SUBDIVISION_NUM_POINTS", 784, "the number of points"),
)
_NUMBERS = {
    "score_threshold": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "nms_iou": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "max_detections": "TEST.DETECTIONS_PER_IMAGE",
    "rpn_nms_iou": "MODEL.RPN.NMS_THRESH",
    "rpn_pre_nms_top_k": "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "rpn_post_nms_top_k": "MODEL.RPN.POST_NMS_TOPK_TEST",
    "rpn_pre_nms_top_k_train": "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
    "rpn_post_nms_top_k_train": "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    "roi_batch_size": "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "roi_positive_fraction": "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "mask_pool_size": "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
    "min_size": "INPUT.MIN_SIZE_TEST",
    "max_size": "INPUT.MAX_SIZE_TEST",
}


class SourceConfig(NamedTuple):
    """What a config.yaml says.

    Attributes:
        settings: of the model and its images.
        rgb: the model takes RGB pixels instead of BGR.
        sampling_ratio: of RoIAlign; 0: as many samples as a bin has cells.
    """

    settings: dict[str, Any]
    rgb: bool
    sampling_ratio: int


def read_source_config(path: str | os.PathLike, fresh_masks: bool = False) -> SourceConfig:
    """Read the config.yaml that Detectron2's training writes beside its checkpoints.

    Args:
        path: the file, with every setting (`cfg.dump()`), not one that refines a base.
        fresh_masks: of a Faster R-CNN that gets a new mask head.

    Raises:
        WeightsError: no such file, a damaged or another one, or one of a model that cannot be read.
    """
    tree, source = _tree(path), os.fspath(path)

    def get(name: str, *default: Any) -> Any:
        value: Any = tree
        for key in name.split("."):
            if not isinstance(value, Mapping) or key not in value:
                if default:
                    return default[0]
                raise WeightsError(f"{source}: has no {name}; give the whole config.yaml that training wrote")
            value = value[key]
        return value

    # CoarseMaskHead is what the project called it at first.
    has_points = get("MODEL.ROI_MASK_HEAD.NAME", "") in ("PointRendMaskHead", "CoarseMaskHead")
    for name, wanted, what in _MUST_BE + (_POINT_REND_MUST_BE if has_points else ()):
        if get(name) != wanted and not (fresh_masks and name == "MODEL.MASK_ON"):
            raise WeightsError(f"{source}: {what} cannot be read, {name} is {get(name)!r} and not {wanted!r}")
    heads = get("MODEL.ROI_HEADS.NAME")
    if heads not in _ROI_HEADS:
        raise WeightsError(f"{source}: MODEL.ROI_HEADS.NAME is {heads!r}, known are {', '.join(_ROI_HEADS)}")
    for name, wanted, what in _BY_DEFAULT + (() if heads == "CascadeROIHeads" else _ONE_STAGE_BY_DEFAULT):
        if (value := get(name, wanted)) != wanted:
            raise WeightsError(f"{source}: {what} cannot be read, {name} is {value!r} and not {wanted!r}")
    norm = get("MODEL.RESNETS.NORM")
    if norm not in _NORMS:
        raise WeightsError(f"{source}: MODEL.RESNETS.NORM is {norm!r}, known are {', '.join(_NORMS)}")
    pooler = get("MODEL.ROI_BOX_HEAD.POOLER_TYPE")
    if pooler not in _POOLERS:
        raise WeightsError(f"{source}: MODEL.ROI_BOX_HEAD.POOLER_TYPE is {pooler!r}, known are {', '.join(_POOLERS)}")
    of_masks = pooler if has_points or fresh_masks else get("MODEL.ROI_MASK_HEAD.POOLER_TYPE", pooler)
    if of_masks != pooler:
        raise WeightsError(f"{source}: MODEL.ROI_MASK_HEAD.POOLER_TYPE is {of_masks!r} and that of boxes {pooler!r}")
    rgb = get("INPUT.FORMAT") == "RGB"
    if get("INPUT.FORMAT") not in ("RGB", "BGR"):
        raise WeightsError(f"{source}: INPUT.FORMAT is {get('INPUT.FORMAT')!r}, known are RGB and BGR")
    sizes, ratios = get("MODEL.ANCHOR_GENERATOR.SIZES"), get("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
    if len(sizes) != 5 or any(len(level) != 1 for level in sizes) or any(r != ratios[0] for r in ratios):
        raise WeightsError(f"{source}: its anchors are not of one size on each of five levels with the same ratios")
    try:
        mean, std = (_floats(get(f"MODEL.PIXEL_{name}")) for name in ("MEAN", "STD"))
        settings = {name: get(theirs) for name, theirs in _NUMBERS.items()}
        settings |= {
            "backbone_norm": _NORMS[norm],
            "backbone_stride_in_1x1": bool(get("MODEL.RESNETS.STRIDE_IN_1X1")) and get("MODEL.RESNETS.DEPTH") >= 50,
            "frozen_stages": int(get("MODEL.BACKBONE.FREEZE_AT")),
            "image_mean": mean if rgb else mean[::-1],
            "image_std": std if rgb else std[::-1],
            "anchor_sizes": tuple(float(level[0]) for level in sizes),
            "anchor_aspect_ratios": _floats(ratios[0]),
            "roi_aligned": pooler == "ROIAlignV2",
            "rpn_min_size": float(get("MODEL.PROPOSAL_GENERATOR.MIN_SIZE", 0)),
            "box_class_agnostic": bool(get("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG")),
            "mask_class_agnostic": bool(get("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK")),
        }
        if has_points:
            settings |= {
                "mask_point_rend": True,
                "mask_class_agnostic": bool(get("MODEL.POINT_HEAD.CLS_AGNOSTIC_MASK")),
                "mask_subdivisions": int(get("MODEL.POINT_HEAD.SUBDIVISION_STEPS")),
            }
        if heads == "CascadeROIHeads":
            weights = [_floats(stage) for stage in get("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS")]
            if weights != [coding_weights(stage) for stage in range(1, len(weights) + 1)]:
                raise WeightsError(
                    f"{source}: MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS are not 10,10,5,5 times 1, 2, 3, ..."
                )
            settings["cascade_ious"] = ious = _floats(get("MODEL.ROI_BOX_CASCADE_HEAD.IOUS"))
            settings |= {"roi_positive_iou": ious[0]} if ious else {}
        for ours, theirs in (("box_loss", "MODEL.ROI_BOX_HEAD"), ("rpn_box_loss", "MODEL.RPN")):
            # Versions before 2020 have neither; of the losses of boxes this one is here.
            if get(f"{theirs}.BBOX_REG_LOSS_TYPE", "smooth_l1") == "giou":
                settings[ours] = "giou"
            settings[f"{ours}_weight"] = float(get(f"{theirs}.BBOX_REG_LOSS_WEIGHT", 1.0))
        return SourceConfig(settings, rgb, int(get("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO")))
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{source}: a setting of another kind than expected ({reason(error)})") from None


def _tree(path: str | os.PathLike) -> Mapping[str, Any]:
    source = os.fspath(path)
    try:
        import yaml
    except ImportError:
        raise WeightsError(f"{source}: reading YAML needs pyyaml: pip install pyyaml") from None
    try:
        if Path(source).stat().st_size > _LARGEST:
            raise WeightsError(f"{source}: is too large for a config.yaml")
        text = Path(source).read_text()
        _check_nesting(yaml, text, source)
        tree = yaml.safe_load(text)
    except OSError as error:
        raise WeightsError(f"{source}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{source}: not readable YAML ({reason(error)})") from None
    if isinstance(tree, Mapping) and "_BASE_" in tree:
        raise WeightsError(f"{source}: refines {tree['_BASE_']}; give the whole config.yaml that training wrote")
    if isinstance(tree, Mapping) and isinstance(tree.get("model"), Mapping) and "_target_" in tree["model"]:
        raise WeightsError(f"{source}: is a LazyConfig, which is not read; give its settings one by one")
    if not isinstance(tree, Mapping) or not isinstance(tree.get("MODEL"), Mapping):
        raise WeightsError(f"{source}: is not a config.yaml of Detectron2, it has no MODEL")
    return tree


def _check_nesting(yaml: Any, text: str, source: str) -> None:
    """Refuse what could become more than any memory: deep trees, and aliases of what holds aliases.

    Detectron2 writes an alias for a list that stands in two places.
    """
    open_parts: list[bool] = []  # whether each part around has a name that an alias can call
    aliases = 0
    for event in yaml.parse(text):
        if isinstance(event, yaml.CollectionStartEvent):
            open_parts.append(event.anchor is not None)
        elif isinstance(event, yaml.CollectionEndEvent):
            open_parts.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if any(open_parts) or aliases > _MOST_ALIASES:
                raise WeightsError(f"{source}: has aliases as no config.yaml of Detectron2 has")
        if len(open_parts) > _DEEPEST:
            raise WeightsError(f"{source}: is nested deep, as no config.yaml of Detectron2 is")


def _floats(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
