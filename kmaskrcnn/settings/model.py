"""Settings of the model, which are the keywords of `MaskRCNN`."""

from __future__ import annotations

import dataclasses

from kmaskrcnn.settings.field import POSITIVE, SHARE, setting


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The keywords of `MaskRCNN`. Defaults are Mask R-CNN R50-FPN as published (He et al. 2017, Detectron2 1x)."""

    num_classes: int = setting(80, "Number of object classes, background not counted.", **POSITIVE)
    # Backbone and FPN.
    backbone: str = setting(
        "resnet50",
        "Feature extractor.",
        (
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"),
            *("convnext_tiny", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_lite0"),
        ),
    )
    backbone_norm: str = setting(
        "frozen_bn",
        "Normalization in the backbone; ConvNeXt has layer normalization and takes the default alone.",
        ("frozen_bn", "bn", "sync_bn", "gn"),
    )
    backbone_stride_in_1x1: bool = setting(
        False, "ResNet bottlenecks stride in their first 1x1 convolution (caffe) instead of the 3x3 (v1.5)."
    )
    stem_pool_padding: str = setting(
        "symmetric",
        "Padding of a ResNet's max-pool: on both sides, or TensorFlow's same, at the bottom and right (matterport).",
        ("symmetric", "same"),
    )
    frozen_stages: int = setting(
        2, "Backbone stages frozen in training, from the first: 0 none, 1 the stem, 2 also C2, ...", low=0, high=5
    )
    image_mean: tuple[float, ...] = setting(
        (), "RGB mean in 0..255 subtracted from the image; empty: the backbone's own.", lengths=(0, 3)
    )
    image_std: tuple[float, ...] = setting(
        (),
        "RGB standard deviation that the image is divided by; empty: the backbone's own.",
        **POSITIVE,
        lengths=(0, 3),
    )
    fpn_channels: int = setting(256, "Channels of P2..P6.", **POSITIVE)
    fpn_norm: str = setting("none", "Normalization after each FPN convolution.", ("none", "bn", "sync_bn", "gn"))
    # Anchors and the RPN.
    anchor_sizes: tuple[float, ...] = setting(
        (32, 64, 128, 256, 512), "Anchor side in pixels on P2..P6.", **POSITIVE, lengths=(5,)
    )
    anchor_aspect_ratios: tuple[float, ...] = setting((0.5, 1.0, 2.0), "Anchor height / width.", **POSITIVE)
    round_anchors: bool = setting(False, "Round the anchors of a cell to whole pixels, as torchvision does.")
    fit_anchor_strides: bool = setting(
        False, "Anchors of P6 are image side // map side apart, as in torchvision, which is below 64 on odd maps."
    )
    rpn_conv_layers: int = setting(1, "3x3 convolutions before the RPN's two 1x1 outputs.", **POSITIVE)
    rpn_channels: int = setting(0, "Width of the RPN's 3x3 convolutions; 0: fpn_channels.", low=0)
    rpn_batch_size: int = setting(256, "Anchors sampled per image for the RPN losses.", **POSITIVE)
    rpn_positive_fraction: float = setting(0.5, "Largest share of positives among the sampled anchors.", **SHARE)
    rpn_positive_iou: float = setting(0.7, "Anchors with at least this IoU are positives.", **SHARE)
    rpn_negative_iou: float = setting(0.3, "Anchors with less than this IoU are negatives.", **SHARE)
    rpn_pre_nms_top_k_train: int = setting(2000, "Proposals kept on each level before NMS, in training.", **POSITIVE)
    rpn_pre_nms_top_k: int = setting(
        1000, "Proposals kept on each level before NMS, in inference; at least twice max_detections.", **POSITIVE
    )
    rpn_nms_iou: float = setting(
        0.7, "IoU threshold of non-maximum suppression (NMS) of proposals, per level.", **SHARE
    )
    rpn_post_nms_top_k_train: int = setting(
        1000, "Proposals kept per image over all levels after NMS, in training.", **POSITIVE
    )
    rpn_post_nms_top_k: int = setting(
        1000,
        "Proposals kept per image over all levels after NMS, in inference; at least twice max_detections.",
        **POSITIVE,
    )
    rpn_min_size: float = setting(0.0, "Proposals with a side of at most this many pixels are dropped.", low=0)
    rpn_box_loss: str = setting("smooth_l1", "Box loss of the RPN: of offsets, or of boxes.", ("smooth_l1", "giou"))
    rpn_box_loss_beta: float = setting(0.0, "Smooth-L1 beta of the RPN box loss; 0: L1.", low=0)
    rpn_box_loss_weight: float = setting(1.0, "Weight of the RPN box loss in the total loss.", **POSITIVE)
    rpn_loss_normalizer: str = setting(
        "batch_size",
        "RPN losses are divided by rpn_batch_size (Detectron2) or by the number of anchors sampled (torchvision).",
        ("batch_size", "sampled"),
    )
    # The RoI stage.
    roi_batch_size: int = setting(512, "RoIs sampled per image for the box head.", **POSITIVE)
    roi_positive_fraction: float = setting(0.25, "Largest share of positives among the sampled RoIs.", **SHARE)
    roi_positive_iou: float = setting(0.5, "RoIs with at least this IoU are positives, the others negatives.", **SHARE)
    roi_sampling_ratio: int = setting(
        2,
        "Bilinear samples along each side of a RoIAlign bin; 0: one per feature pixel (Detectron2), not for XLA.",
        low=0,
    )
    roi_aligned: bool = setting(False, "RoIAlign with the half-pixel shift (Detectron2); False as in torchvision.")
    roi_align_implementation: str = setting(
        "auto",
        "RoIAlign kernel; auto is crop_and_resize on TensorFlow, lookup is for TFLite.",
        ("auto", "crop_and_resize", "gather", "lookup"),
    )
    box_pool_size: int = setting(7, "Side of the RoIAlign output for the box head.", **POSITIVE)
    box_conv_channels: tuple[int, ...] = setting(
        (), "Channels of the box head's 3x3 convolutions; 4conv1fc has four.", **POSITIVE
    )
    box_fc_channels: tuple[int, ...] = setting(
        (1024, 1024), "Units of the box head's fully connected layers.", **POSITIVE
    )
    box_class_agnostic: bool = setting(False, "The box head predicts one box per RoI, whatever its class.")
    cascade_ious: tuple[float, ...] = setting(
        (),
        "Cascade R-CNN: from which IoU on RoIs are positives, for each box head in a row, e.g. 0.5,0.6,0.7; all are "
        "class-agnostic. Empty: one box head.",
        **SHARE,
    )
    box_loss: str = setting(
        "smooth_l1", "Box loss of the box head: of offsets, or of boxes (GIoU).", ("smooth_l1", "giou")
    )
    box_loss_beta: float = setting(0.0, "Smooth-L1 beta of the box head's loss; 0: L1.", low=0)
    box_loss_weight: float = setting(1.0, "Weight of the box head's box loss in the total loss.", **POSITIVE)
    mask_pool_size: int = setting(
        14, "Side of the RoIAlign output for the mask head; masks are twice that (not PointRend's).", **POSITIVE
    )
    mask_conv_channels: tuple[int, ...] = setting(
        (256, 256, 256, 256), "Channels of the mask head's 3x3 convolutions (PointRend: the last alone).", **POSITIVE
    )
    mask_class_agnostic: bool = setting(False, "The mask head predicts one mask per RoI, whatever its class.")
    head_norm: str = setting(
        "none", "Normalization in the box and mask heads (not PointRend's).", ("none", "bn", "sync_bn", "gn")
    )
    binary_mask_targets: bool = setting(
        True, "Mask targets are thresholded at one half (Detectron2); False leaves them soft (torchvision)."
    )
    mask_target_samples: int = setting(
        2, "Samples along each side of a mask target's cell; 0: one per pixel (torchvision), not for XLA.", low=0
    )
    max_mask_rois: int = setting(
        0, "Most positive RoIs per image that train the mask head; 0: all that are sampled.", low=0
    )
    mask_scoring: bool = setting(
        False,
        "Mask Scoring R-CNN: a head predicts the IoU of each mask; mask AP ranks by its product with the score.",
    )
    mask_point_rend: bool = setting(
        False,
        "PointRend in place of the mask head: a coarse mask, and a head that predicts its uncertain points from P2.",
    )
    mask_fc_channels: tuple[int, ...] = setting(
        (1024, 1024), "PointRend: units of the coarse mask's fully connected layers.", **POSITIVE
    )
    mask_point_channels: tuple[int, ...] = setting(
        (256, 256, 256), "PointRend: units of the layers of the point head.", **POSITIVE
    )
    mask_subdivisions: int = setting(
        5,
        "PointRend: how often inference doubles the 7 x 7 of a coarse mask; 5 gives masks of 224 x 224, 3 of 56 x 56.",
        low=1,
        high=6,
    )
    # Detections.
    score_threshold: float = setting(0.05, "Detections with this score or less are dropped.", low=0, below=1)
    nms_iou: float = setting(0.5, "IoU threshold of non-maximum suppression (NMS) of detections, per class.", **SHARE)
    soft_nms_sigma: float = setting(
        0.0,
        "Soft-NMS in place of nms_iou: a better box multiplies the scores of those that it overlaps by "
        "exp(-IoU^2 / sigma), per class; 0.5 as published, 0: off.",
        low=0,
    )
    box_min_size: float = setting(
        0.0, "Boxes of detections with a side of less than this many pixels are dropped.", low=0
    )
    class_agnostic_nms: bool = setting(
        False, "NMS over all classes at once, so that an object is found as one class only."
    )
    max_detections: int = setting(100, "Detections kept per image over all classes.", **POSITIVE)
    mask_paste: str = setting(
        "pixel_centers",
        "How masks are pasted: sampled at pixel centers (Detectron2), or into boxes of whole pixels (torchvision).",
        ("pixel_centers", "rounded_boxes"),
    )
