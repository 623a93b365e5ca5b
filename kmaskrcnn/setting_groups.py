"""Every setting of the model, the data, the training and the evaluation: default, help and range, written once.

The command-line flags (`kmaskrcnn.programs.flags`), the keywords of `MaskRCNN`, the `config.json` beside the
checkpoints and the reference page all derive from these fields, so field names are unique over all groups.
`kmaskrcnn.config` puts the groups together and checks them.
"""

from __future__ import annotations

import dataclasses
from typing import Any


def _setting(
    default: Any,
    help: str,
    choices: tuple | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    lengths: tuple[int, ...] = (),
) -> Any:
    """A field with what it accepts: one of choices, or a number (each number of a tuple) in low..high, or above above.

    lengths are how many numbers a tuple may have.
    """
    allowed = {"choices": choices, "low": low, "high": high, "above": above, "lengths": lengths}
    return dataclasses.field(default=default, metadata={"help": help, **allowed})


_POSITIVE: dict[str, Any] = {"above": 0}
_SHARE: dict[str, Any] = {"low": 0, "high": 1}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The keywords of `MaskRCNN`. Defaults are Mask R-CNN R50-FPN as published (He et al. 2017, Detectron2 1x)."""

    num_classes: int = _setting(80, "Number of object classes, background not counted.", **_POSITIVE)
    # Backbone and FPN.
    backbone: str = _setting(
        "resnet50",
        "Feature extractor.",
        (
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"),
            *("mobilenet_v2", "efficientnet_lite0"),
        ),
    )
    backbone_norm: str = _setting("frozen_bn", "Normalization in the backbone.", ("frozen_bn", "bn", "sync_bn", "gn"))
    backbone_stride_in_1x1: bool = _setting(
        False, "ResNet bottlenecks stride in their first 1x1 convolution (caffe) instead of the 3x3 (v1.5)."
    )
    stem_pool_padding: str = _setting(
        "symmetric",
        "Padding of a ResNet's max-pool: on both sides, or TensorFlow's same, at the bottom and right (matterport).",
        ("symmetric", "same"),
    )
    frozen_stages: int = _setting(
        2, "Backbone stages frozen in training, from the first: 0 none, 1 the stem, 2 also C2, ...", low=0, high=5
    )
    image_mean: tuple[float, ...] = _setting(
        (), "RGB mean in 0..255 subtracted from the image; empty: the backbone's own.", lengths=(0, 3)
    )
    image_std: tuple[float, ...] = _setting(
        (),
        "RGB standard deviation that the image is divided by; empty: the backbone's own.",
        **_POSITIVE,
        lengths=(0, 3),
    )
    fpn_channels: int = _setting(256, "Channels of P2..P6.", **_POSITIVE)
    fpn_norm: str = _setting("none", "Normalization after each FPN convolution.", ("none", "bn", "sync_bn", "gn"))
    # Anchors and the RPN.
    anchor_sizes: tuple[float, ...] = _setting(
        (32, 64, 128, 256, 512), "Anchor side in pixels on P2..P6.", **_POSITIVE, lengths=(5,)
    )
    anchor_aspect_ratios: tuple[float, ...] = _setting((0.5, 1.0, 2.0), "Anchor height / width.", **_POSITIVE)
    round_anchors: bool = _setting(False, "Round the anchors of a cell to whole pixels, as torchvision does.")
    fit_anchor_strides: bool = _setting(
        False, "Anchors of P6 are image side // map side apart, as in torchvision, which is below 64 on odd maps."
    )
    rpn_conv_layers: int = _setting(1, "3x3 convolutions before the RPN's two 1x1 outputs.", **_POSITIVE)
    rpn_channels: int = _setting(0, "Width of the RPN's 3x3 convolutions; 0: fpn_channels.", low=0)
    rpn_batch_size: int = _setting(256, "Anchors sampled per image for the RPN losses.", **_POSITIVE)
    rpn_positive_fraction: float = _setting(0.5, "Largest share of positives among the sampled anchors.", **_SHARE)
    rpn_positive_iou: float = _setting(0.7, "Anchors with at least this IoU are positives.", **_SHARE)
    rpn_negative_iou: float = _setting(0.3, "Anchors with less than this IoU are negatives.", **_SHARE)
    rpn_pre_nms_top_k_train: int = _setting(2000, "Proposals kept on each level before NMS, in training.", **_POSITIVE)
    rpn_pre_nms_top_k: int = _setting(
        1000, "Proposals kept on each level before NMS, in inference; at least twice max_detections.", **_POSITIVE
    )
    rpn_nms_iou: float = _setting(
        0.7, "IoU threshold of non-maximum suppression (NMS) of proposals, per level.", **_SHARE
    )
    rpn_post_nms_top_k_train: int = _setting(
        1000, "Proposals kept per image over all levels after NMS, in training.", **_POSITIVE
    )
    rpn_post_nms_top_k: int = _setting(
        1000,
        "Proposals kept per image over all levels after NMS, in inference; at least twice max_detections.",
        **_POSITIVE,
    )
    rpn_min_size: float = _setting(0.0, "Proposals with a side of at most this many pixels are dropped.", low=0)
    rpn_box_loss: str = _setting("smooth_l1", "Box loss of the RPN: of offsets, or of boxes.", ("smooth_l1", "giou"))
    rpn_box_loss_beta: float = _setting(0.0, "Smooth-L1 beta of the RPN box loss; 0: L1.", low=0)
    rpn_box_loss_weight: float = _setting(1.0, "Weight of the RPN box loss in the total loss.", **_POSITIVE)
    rpn_loss_normalizer: str = _setting(
        "batch_size",
        "RPN losses are divided by rpn_batch_size (Detectron2) or by the number of anchors sampled (torchvision).",
        ("batch_size", "sampled"),
    )
    # The RoI stage.
    roi_batch_size: int = _setting(512, "RoIs sampled per image for the box head.", **_POSITIVE)
    roi_positive_fraction: float = _setting(0.25, "Largest share of positives among the sampled RoIs.", **_SHARE)
    roi_positive_iou: float = _setting(
        0.5, "RoIs with at least this IoU are positives, the others negatives.", **_SHARE
    )
    roi_sampling_ratio: int = _setting(
        2,
        "Bilinear samples along each side of a RoIAlign bin; 0: one per feature pixel (Detectron2), not for XLA.",
        low=0,
    )
    roi_aligned: bool = _setting(False, "RoIAlign with the half-pixel shift (Detectron2); False as in torchvision.")
    roi_align_implementation: str = _setting(
        "auto",
        "RoIAlign kernel; auto is crop_and_resize on TensorFlow, lookup is for TFLite.",
        ("auto", "crop_and_resize", "gather", "lookup"),
    )
    box_pool_size: int = _setting(7, "Side of the RoIAlign output for the box head.", **_POSITIVE)
    box_conv_channels: tuple[int, ...] = _setting(
        (), "Channels of the box head's 3x3 convolutions; 4conv1fc has four.", **_POSITIVE
    )
    box_fc_channels: tuple[int, ...] = _setting(
        (1024, 1024), "Units of the box head's fully connected layers.", **_POSITIVE
    )
    box_class_agnostic: bool = _setting(False, "The box head predicts one box per RoI, whatever its class.")
    cascade_ious: tuple[float, ...] = _setting(
        (),
        "Cascade R-CNN: from which IoU on RoIs are positives, for each box head in a row, e.g. 0.5,0.6,0.7; all are "
        "class-agnostic. Empty: one box head.",
        **_SHARE,
    )
    box_loss: str = _setting(
        "smooth_l1", "Box loss of the box head: of offsets, or of boxes (GIoU).", ("smooth_l1", "giou")
    )
    box_loss_beta: float = _setting(0.0, "Smooth-L1 beta of the box head's loss; 0: L1.", low=0)
    box_loss_weight: float = _setting(1.0, "Weight of the box head's box loss in the total loss.", **_POSITIVE)
    mask_pool_size: int = _setting(
        14, "Side of the RoIAlign output for the mask head; masks are twice that.", **_POSITIVE
    )
    mask_conv_channels: tuple[int, ...] = _setting(
        (256, 256, 256, 256), "Channels of the mask head's 3x3 convolutions.", **_POSITIVE
    )
    mask_class_agnostic: bool = _setting(False, "The mask head predicts one mask per RoI, whatever its class.")
    head_norm: str = _setting("none", "Normalization in the box and mask heads.", ("none", "bn", "sync_bn", "gn"))
    binary_mask_targets: bool = _setting(
        True, "Mask targets are thresholded at one half (Detectron2); False leaves them soft (torchvision)."
    )
    mask_target_samples: int = _setting(
        2, "Samples along each side of a mask target's cell; 0: one per pixel (torchvision), not for XLA.", low=0
    )
    max_mask_rois: int = _setting(
        0, "Most positive RoIs per image that train the mask head; 0: all that are sampled.", low=0
    )
    # Detections.
    score_threshold: float = _setting(0.05, "Detections with this score or less are dropped.", **_SHARE)
    nms_iou: float = _setting(0.5, "IoU threshold of non-maximum suppression (NMS) of detections, per class.", **_SHARE)
    box_min_size: float = _setting(
        0.0, "Boxes of detections with a side of less than this many pixels are dropped.", low=0
    )
    class_agnostic_nms: bool = _setting(
        False, "NMS over all classes at once, so that an object is found as one class only."
    )
    max_detections: int = _setting(100, "Detections kept per image over all classes.", **_POSITIVE)
    mask_paste: str = _setting(
        "pixel_centers",
        "How masks are pasted: sampled at pixel centers (Detectron2), or into boxes of whole pixels (torchvision).",
        ("pixel_centers", "rounded_boxes"),
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from and what happens to them before the model."""

    train_annotations: str = _setting(
        "shapes",
        "Data set to train on (COCO JSON or another format of docs/guide/data.md), or 'shapes', the built-in one.",
    )
    train_images: str = _setting(
        "", "Folder of the training images; empty: that of the JSON, or where the format has them."
    )
    val_annotations: str = _setting("", "Data set to evaluate on, or 'shapes'; empty: no evaluation.")
    val_images: str = _setting(
        "", "Folder of the evaluation images; empty: that of the JSON, or where the format has them."
    )
    data_format: str = _setting(
        "auto",
        "Format of both data sets; auto detects it.",
        (
            "auto",
            "coco",
            "labelme",
            "via",
            "voc",
            "masks",
            "semantic_masks",
            "tfrecord",
            "yolo",
            "cvat",
            "label_studio",
        ),
    )
    class_names: tuple[str, ...] = _setting(
        (), "Class names in order, or a file of them (one per line, or a .pbtxt label map); empty: from the data."
    )
    class_map: tuple[str, ...] = _setting(
        (), "OLD=NEW,... or a file of such lines (or JSON): renames and merges classes; OLD= drops one."
    )
    on_bad_record: str = _setting(
        "error", "A broken image or annotation stops the run (error) or is left out (skip).", ("error", "skip")
    )
    resize_mode: str = _setting(
        "short_side",
        "short_side: keep the aspect ratio, short side to min_size unless the long side would exceed max_size. "
        "native: multiply by native_scale.",
        ("short_side", "native"),
    )
    resize_method: str = _setting(
        "antialias",
        "antialias: with an antialiasing filter, sides rounded; torchvision: no filter, sides rounded down, "
        "pixels not rounded to whole levels; "
        "detectron2: with Pillow, sides rounded half up.",
        ("antialias", "torchvision", "detectron2"),
    )
    min_size: int = _setting(
        800, "Short side in pixels (evaluation, and training without min_size_train).", **_POSITIVE
    )
    min_size_train: tuple[int, ...] = _setting(
        (), "Multi-scale training: short sides, one drawn at random per image.", **_POSITIVE
    )
    max_size: int = _setting(1333, "Largest long side in pixels.", **_POSITIVE)
    native_scale: float = _setting(1.0, "Scale factor for resize_mode=native.", **_POSITIVE)
    crop_size: int = _setting(0, "Training images are cropped or padded to this square; 0: whole images.", low=0)
    scale_jitter: tuple[float, ...] = _setting(
        (),
        "Scale jitter (LSJ): smallest and largest random scale factor in training, e.g. 0.1,2.0; needs crop_size.",
        **_POSITIVE,
        lengths=(0, 2),
    )
    horizontal_flip: bool = _setting(True, "Flip half of the training images left-right.")
    vertical_flip: bool = _setting(False, "Flip half of the training images top-bottom.")
    rotate90: bool = _setting(False, "Rotate training images by a random multiple of 90 degrees; needs crop_size.")
    max_rotation: float = _setting(
        0.0, "Rotate training images by up to this many degrees either way.", low=0, high=180
    )
    crop_probability: float = _setting(
        0.0,
        "Share of training images cropped to a part that keeps its objects whole, and enlarged; not with crop_size.",
        **_SHARE,
    )
    copy_paste_probability: float = _setting(
        0.0, "Copy-paste augmentation: share of training images that get objects of another one.", **_SHARE
    )
    color_jitter: float = _setting(0.0, "Strength of random brightness, contrast, saturation and hue (0..1).", **_SHARE)
    invert_probability: float = _setting(
        0.0, "Share of training images whose intensities are inverted (microscopy).", **_SHARE
    )
    blur_probability: float = _setting(0.0, "Share of training images that are blurred a little.", **_SHARE)
    jpeg_probability: float = _setting(0.0, "Share of training images that get JPEG compression artifacts.", **_SHARE)
    repeat_factor_threshold: float = _setting(
        0.0,
        "Class imbalance: images of a class found in a share f of them are repeated sqrt(this / f) times; 0: off.",
        **_SHARE,
    )
    max_instances: int = _setting(
        100, "Most masks per image in training; of further objects the boxes alone are trained on.", **_POSITIVE
    )
    mask_resolution: int = _setting(
        112, "Side in pixels at which ground-truth masks are kept, each cropped to its box.", **_POSITIVE
    )
    shapes_images: int = _setting(400, "Training images of the built-in shapes set.", **_POSITIVE)
    shapes_val_images: int = _setting(60, "Held-out images of the built-in shapes set.", **_POSITIVE)
    shapes_size: int = _setting(128, "Side in pixels of the built-in shapes images.")
    data_threads: int = _setting(0, "Parallel decode and augment calls; 0 lets tf.data choose.", low=0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training: optimizer, schedule, checkpoints, devices."""

    model_dir: str = _setting("", "Folder for checkpoints, config.json, logs and images.")
    init_weights: str = _setting(
        "",
        "Weights to start from: 'imagenet', 'imagenet_v2' or a backbone file (.npz, .pth, .safetensors, .pkl); the "
        "name of a preset, hf://OWNER/NAME, a model folder or .weights.h5; 'none'. Downloads what is missing.",
    )
    batch_size: int = _setting(
        2, "Images per optimizer step, over all devices, workers and accumulated parts.", **_POSITIVE
    )
    accumulate_steps: int = _setting(
        1, "Gradient accumulation: parts that the batch of a step is split into.", **_POSITIVE
    )
    steps: int = _setting(90000, "Optimizer steps.", **_POSITIVE)
    epochs: float = _setting(
        0.0, "Epochs (passes over the training images) in place of steps; may be a fraction. 0: as steps says.", low=0
    )
    max_minutes: float = _setting(
        0.0,
        "Minutes of training, without evaluations and the tracing of the first step; the learning-rate schedule then "
        "runs over this time instead of over steps. 0: no limit.",
        low=0,
    )
    optimizer: str = _setting("sgd", "Optimizer.", ("sgd", "adamw"))
    learning_rate: float = _setting(
        0.02, "Peak learning rate, for reference_batch_size images per step where that is set.", **_POSITIVE
    )
    reference_batch_size: int = _setting(
        0, "Scale the learning rate by batch_size / this (linear scaling rule); 0: no scaling."
    )
    momentum: float = _setting(0.9, "SGD momentum.", **_SHARE)
    weight_decay: float = _setting(1e-4, "Weight decay: L2 in the gradient for sgd, decoupled for adamw.", low=0)
    norm_weight_decay: float = _setting(0.0, "Weight decay of the scale and offset of normalization layers.", low=0)
    warmup_steps: int = _setting(1000, "Steps of linear warm-up.", low=0)
    warmup_share: float = _setting(
        0.0, "Share of the run that is linear warm-up, in place of warmup_steps; 0: as warmup_steps says.", **_SHARE
    )
    warmup_factor: float = _setting(0.001, "Factor on the learning rate at the first step of the warm-up.", **_SHARE)
    schedule: str = _setting("step", "Learning-rate schedule.", ("step", "cosine", "constant"))
    drop_at: tuple[float, ...] = _setting(
        (0.66667, 0.88889), "schedule=step: shares of the run after which the learning rate drops tenfold."
    )
    clip_norm: float = _setting(0.0, "Gradient clipping by this global norm; 0: off.", low=0)
    ema_decay: float = _setting(
        0.0,
        "Decay of the exponential moving average (EMA) of the weights, which is evaluated and exported; 0: off.",
        **_SHARE,
    )
    dtype: str = _setting(
        "auto",
        "Precision; auto: mixed precision (mixed_bfloat16) where a measurement finds it faster, else float32.",
        ("auto", "float32", "mixed_bfloat16", "mixed_float16"),
    )
    strategy: str = _setting(
        "one",
        "Distributed training: one device; mirrored, all GPUs of this machine; multi_worker, those of all workers "
        "in the environment variable TF_CONFIG; tpu (not tested).",
        ("one", "mirrored", "multi_worker", "tpu"),
    )
    num_devices: int = _setting(
        0, "GPUs that this process uses, 0 for all; without a GPU and with strategy=mirrored, parts of the CPU.", low=0
    )
    num_local_workers: int = _setting(
        0, "Start this many worker processes on this machine; 0: none, this process trains.", low=0
    )
    stall_timeout: float = _setting(
        900.0,
        "End the run after this many seconds without a step, an evaluated batch or a checkpoint; 0: never.",
        low=0,
    )
    deterministic: bool = _setting(False, "Use only operators that give the same bits each time.")
    on_nonfinite: str = _setting(
        "skip",
        "A step with a NaN or infinite loss or gradient is skipped (ten in a row end the run), or ends the run (stop).",
        ("skip", "stop"),
    )
    profile_steps: tuple[int, ...] = _setting(
        (), "First and last step to profile for TensorBoard, e.g. 20,25.", lengths=(0, 2)
    )
    seed: int = _setting(0, "Random seed of initialization, data order, augmentation and sampling.", low=0)
    log_every: int = _setting(
        0, "Steps between progress lines and rows of metrics; 0: a line every 10 seconds, a row every 20 steps.", low=0
    )
    logger: tuple[str, ...] = _setting(
        ("tensorboard",), "Where metrics go besides metrics.jsonl: tensorboard, wandb, mlflow."
    )
    checkpoint_every: int = _setting(1000, "Steps between checkpoints.", **_POSITIVE)
    keep_checkpoints: int = _setting(
        2, "Checkpoints to keep, the newest; the best weights by evaluation are kept as well.", **_POSITIVE
    )
    eval_every: int = _setting(0, "Steps between evaluations during training; 0: only at the end.", low=0)
    patience: int = _setting(
        0,
        "Early stopping: evaluations in a row without a better mask AP that end the run; needs eval_every. 0: never.",
        low=0,
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """COCO evaluation, and how images are predicted, there and by `Predictor`."""

    eval_batch_size: int = _setting(1, "Images per batch in evaluation and prediction.", **_POSITIVE)
    eval_max_images: int = _setting(0, "Evaluate on this many images, the first ones; 0: all.", low=0)
    eval_max_detections: int = _setting(
        0,
        "Detections per image that COCO evaluation counts; 0: 100, or as many as the fullest image has objects if that "
        "is more.",
        low=0,
    )
    eval_overlays: int = _setting(4, "Images drawn with their predictions after each evaluation.", low=0)
    tile_size: int = _setting(
        0, "Predict images that are larger than this in square tiles of this side, in pixels; 0: no tiles."
    )
    tile_overlap: int = _setting(
        128, "Least overlap of neighboring tiles in pixels; best a little more than an object is long.", low=0
    )
    tta_flip: bool = _setting(False, "Test-time augmentation (TTA): also predict the mirrored image.")
    tta_scales: tuple[float, ...] = _setting(
        (), "Test-time augmentation (TTA): also predict at these scale factors, e.g. 0.8,1,1.25.", **_POSITIVE
    )

    @property
    def augmented(self) -> bool:
        """Whether test-time augmentation is on."""
        return self.tta_flip or bool(self.tta_scales)
