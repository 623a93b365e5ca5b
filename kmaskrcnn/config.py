"""One tree of frozen dataclasses: every setting of the model, the data, the training and the evaluation.

A setting is written once, here, with its help text. The command-line flags (`kmaskrcnn.programs.flags`), the keywords
of `MaskRCNN` and the `config.json` beside the checkpoints all derive from these fields, so field names are unique over
the whole tree.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any


class ConfigError(ValueError):
    """An unknown or impossible setting. The message names the setting and what it accepts."""


def _setting(default: Any, help: str, choices: tuple | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The keywords of `MaskRCNN`. Defaults are Mask R-CNN R50-FPN as published (He et al. 2017, Detectron2 1x)."""

    num_classes: int = _setting(80, "Number of object classes, background not counted.")
    # Backbone and FPN.
    backbone: str = _setting(
        "resnet50",
        "Feature extractor.",
        ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2", "efficientnet_lite0"),
    )
    backbone_norm: str = _setting("frozen_bn", "Normalisation in the backbone.", ("frozen_bn", "bn", "sync_bn", "gn"))
    backbone_stride_in_1x1: bool = _setting(
        False, "ResNet bottlenecks stride in their first 1x1 convolution (caffe) instead of the 3x3 (v1.5)."
    )
    frozen_stages: int = _setting(2, "Leading backbone stages that are not trained: 0 none, 1 the stem, 2 also C2, ...")
    image_mean: tuple[float, ...] = _setting((), "RGB mean in 0..255 taken from the image; empty: the backbone's own.")
    image_std: tuple[float, ...] = _setting((), "RGB deviation the image is divided by; empty: the backbone's own.")
    fpn_channels: int = _setting(256, "Width of P2..P6.")
    fpn_norm: str = _setting("none", "Normalisation after each FPN convolution.", ("none", "bn", "sync_bn", "gn"))
    # Anchors and the RPN.
    anchor_sizes: tuple[float, ...] = _setting((32, 64, 128, 256, 512), "Anchor side in pixels on P2..P6.")
    anchor_aspect_ratios: tuple[float, ...] = _setting((0.5, 1.0, 2.0), "Anchor height / width.")
    round_anchors: bool = _setting(False, "Round the anchors of a cell to whole pixels, as torchvision does.")
    fit_anchor_strides: bool = _setting(
        False, "Anchors of P6 are image side // map side apart, as in torchvision, which is below 64 on odd maps."
    )
    rpn_conv_layers: int = _setting(1, "3x3 convolutions before the RPN's two 1x1 outputs.")
    rpn_channels: int = _setting(0, "Width of the RPN's 3x3 convolutions; 0: fpn_channels.")
    rpn_batch_size: int = _setting(256, "Anchors sampled an image for the RPN losses.")
    rpn_positive_fraction: float = _setting(0.5, "Largest share of positives among the sampled anchors.")
    rpn_positive_iou: float = _setting(0.7, "Anchors with at least this IoU are positives.")
    rpn_negative_iou: float = _setting(0.3, "Anchors with less than this IoU are negatives.")
    rpn_pre_nms_top_k_train: int = _setting(2000, "Proposals kept on each level before NMS, in training.")
    rpn_pre_nms_top_k: int = _setting(1000, "Proposals kept on each level before NMS, in inference.")
    rpn_nms_iou: float = _setting(0.7, "IoU above which the NMS of each level drops a proposal.")
    rpn_post_nms_top_k_train: int = _setting(1000, "Proposals kept an image over all levels after NMS, in training.")
    rpn_post_nms_top_k: int = _setting(1000, "Proposals kept an image over all levels after NMS, in inference.")
    rpn_min_size: float = _setting(0.0, "Proposals with a side of at most this many pixels are dropped.")
    rpn_box_loss_beta: float = _setting(0.0, "Smooth-L1 turning point of the RPN box loss; 0 is plain L1.")
    rpn_loss_normalizer: str = _setting(
        "batch_size",
        "RPN losses are divided by rpn_batch_size (Detectron2) or by the number of anchors sampled (torchvision).",
        ("batch_size", "sampled"),
    )
    # The RoI stage.
    roi_batch_size: int = _setting(512, "RoIs sampled an image for the box head.")
    roi_positive_fraction: float = _setting(0.25, "Largest share of positives among the sampled RoIs.")
    roi_positive_iou: float = _setting(0.5, "RoIs with at least this IoU are positives, the others negatives.")
    roi_sampling_ratio: int = _setting(2, "Bilinear samples along each side of a RoIAlign bin.")
    roi_aligned: bool = _setting(False, "RoIAlign with the half-pixel shift (Detectron2); False as in torchvision.")
    roi_align_implementation: str = _setting(
        "auto",
        "RoIAlign kernel; auto is crop_and_resize on TensorFlow, lookup is for TFLite.",
        ("auto", "crop_and_resize", "gather", "lookup"),
    )
    box_pool_size: int = _setting(7, "Side of the RoIAlign output for the box head.")
    box_conv_channels: tuple[int, ...] = _setting((), "Widths of 3x3 convolutions in the box head; 4conv1fc has four.")
    box_fc_channels: tuple[int, ...] = _setting((1024, 1024), "Widths of the box head's fully connected layers.")
    box_loss_beta: float = _setting(0.0, "Smooth-L1 turning point of the box head's loss; 0 is plain L1.")
    mask_pool_size: int = _setting(14, "Side of the RoIAlign output for the mask head; masks are twice that.")
    mask_conv_channels: tuple[int, ...] = _setting((256, 256, 256, 256), "Widths of the mask head's 3x3 convolutions.")
    head_norm: str = _setting("none", "Normalisation in the box and mask heads.", ("none", "bn", "sync_bn", "gn"))
    binary_mask_targets: bool = _setting(
        True, "Mask targets are thresholded at one half (Detectron2); False leaves them soft (torchvision)."
    )
    mask_target_samples: int = _setting(
        2, "Samples along each side of a mask target's cell; 0: one a pixel (torchvision), not for XLA."
    )
    max_mask_rois: int = _setting(
        0, "Positive RoIs an image, at most, that train the mask head; 0: every positive RoI of the sample."
    )
    # Detections.
    score_threshold: float = _setting(0.05, "Detections with a score of at most this are dropped.")
    nms_iou: float = _setting(0.5, "IoU above which the NMS of each class drops a detection.")
    max_detections: int = _setting(100, "Detections kept an image over all classes.")
    mask_paste: str = _setting(
        "pixel_centers",
        "How masks are pasted: sampled at pixel centres (Detectron2) or into boxes cut to whole pixels (torchvision).",
        ("pixel_centers", "rounded_boxes"),
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from and what happens to them before the model."""

    train_annotations: str = _setting(
        "shapes",
        "Set to train on (COCO JSON, or another form of docs/guide/data.md), or 'shapes' for the built-in one.",
    )
    train_images: str = _setting("", "Folder of the training images; empty: that of the JSON, or where the form says.")
    val_annotations: str = _setting("", "Set to evaluate on, 'shapes', or empty for no evaluation.")
    val_images: str = _setting("", "Folder of the evaluation images; empty: that of the JSON, or where the form says.")
    data_format: str = _setting(
        "auto",
        "Form of both sets; auto tells it by what is there.",
        ("auto", "coco", "labelme", "via", "voc", "masks", "tfrecord"),
    )
    class_names: tuple[str, ...] = _setting(
        (), "Names of the classes in order, or a file of them (one a line, or a .pbtxt label map); empty: those found."
    )
    class_map: tuple[str, ...] = _setting(
        (), "OLD=NEW,... or a file of such lines (or JSON): renames and joins classes, OLD= leaves one out."
    )
    on_bad_record: str = _setting(
        "error", "A broken image or annotation stops the run or is left out.", ("error", "skip")
    )
    resize_mode: str = _setting(
        "short_side",
        "short_side: keep the aspect, short side to min_size unless the long side passes max_size. "
        "native: multiply by native_scale.",
        ("short_side", "native"),
    )
    min_size: int = _setting(800, "Short side in pixels (evaluation, and training without min_size_train).")
    min_size_train: tuple[int, ...] = _setting((), "Short sides, one drawn an image in training (multi-scale).")
    max_size: int = _setting(1333, "Largest long side in pixels.")
    native_scale: float = _setting(1.0, "Factor on the image's own size with resize_mode=native.")
    crop_size: int = _setting(0, "Training images are cropped or padded to this square; 0: whole images.")
    scale_jitter: tuple[float, ...] = _setting(
        (), "Least and largest extra factor drawn in training, e.g. 0.1,2.0; needs crop_size."
    )
    horizontal_flip: bool = _setting(True, "Flip half of the training images left-right.")
    vertical_flip: bool = _setting(False, "Flip half of the training images top-bottom.")
    rotate90: bool = _setting(False, "Turn training images by a random multiple of 90 degrees; needs crop_size.")
    max_rotation: float = _setting(0.0, "Turn training images by up to this many degrees either way.")
    crop_probability: float = _setting(
        0.0, "Share of training images of which a part that keeps its objects whole is magnified; not with crop_size."
    )
    copy_paste_probability: float = _setting(0.0, "Share of training images that get objects of another one.")
    color_jitter: float = _setting(0.0, "Strength of random brightness, contrast, saturation and hue (0..1).")
    invert_probability: float = _setting(0.0, "Share of training images whose intensities are inverted (microscopy).")
    blur_probability: float = _setting(0.0, "Share of training images that are blurred a little.")
    jpeg_probability: float = _setting(0.0, "Share of training images that get the noise of JPEG compression.")
    max_instances: int = _setting(100, "Ground-truth rows an image; further instances are left out and counted.")
    mask_resolution: int = _setting(112, "Ground-truth masks are stored cropped to their box at this side.")
    shapes_images: int = _setting(400, "Training images of the built-in shapes set.")
    shapes_val_images: int = _setting(60, "Held-out images of the built-in shapes set.")
    shapes_size: int = _setting(128, "Side in pixels of the built-in shapes images.")
    data_threads: int = _setting(0, "Parallel decode and augment calls; 0 lets tf.data choose.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    model_dir: str = _setting("", "Folder for checkpoints, config.json, logs and pictures.")
    init_weights: str = _setting(
        "", "Weights to start from: a backbone file (.npz, .pth), 'imagenet' or 'none', or a kmaskrcnn folder or file."
    )
    batch_size: int = _setting(2, "Images a step, over all devices, workers and accumulated parts.")
    accumulate_steps: int = _setting(1, "Parts that the batch of a step is worked off in, one after another.")
    steps: int = _setting(90000, "Optimiser steps.")
    epochs: float = _setting(0.0, "Passes over the training images, which then set steps; 0: go by steps.")
    max_minutes: float = _setting(
        0.0, "Wall-clock budget; the schedule then runs over this time instead of over steps. 0: no limit."
    )
    optimizer: str = _setting("sgd", "Optimiser.", ("sgd", "adamw"))
    learning_rate: float = _setting(0.02, "Peak learning rate at reference_batch_size images a step.")
    reference_batch_size: int = _setting(0, "Scale the rate by batch_size / this (linear rule); 0: no scaling.")
    momentum: float = _setting(0.9, "SGD momentum.")
    weight_decay: float = _setting(1e-4, "L2 through the momentum for sgd, decoupled for adamw.")
    norm_weight_decay: float = _setting(0.0, "The same for the scale and offset of normalisation layers.")
    warmup_steps: int = _setting(1000, "Steps of linear warm-up.")
    warmup_factor: float = _setting(0.001, "Share of the rate at the first step.")
    schedule: str = _setting("step", "Learning-rate schedule.", ("step", "cosine", "constant"))
    drop_at: tuple[float, ...] = _setting((0.66667, 0.88889), "Shares of the run after which the rate drops tenfold.")
    clip_norm: float = _setting(0.0, "Clip gradients to this global norm; 0: off.")
    ema_decay: float = _setting(0.0, "Decay of the moving average of weights that is evaluated and exported; 0: off.")
    dtype: str = _setting("float32", "Precision of the network.", ("float32", "mixed_bfloat16", "mixed_float16"))
    strategy: str = _setting(
        "one",
        "Devices that train together: one; mirrored, those of this machine; multi_worker, those of all workers in the "
        "environment's TF_CONFIG; tpu (not tested).",
        ("one", "mirrored", "multi_worker", "tpu"),
    )
    num_devices: int = _setting(
        0, "GPUs of this process to use, 0 for all; without a GPU and with --strategy=mirrored, parts of its CPU."
    )
    num_local_workers: int = _setting(0, "Start this many workers on this machine; 0: this process is one by itself.")
    stall_timeout: float = _setting(
        900.0, "Seconds without a step, an evaluated batch or a checkpoint after which the run ends; 0: never."
    )
    deterministic: bool = _setting(False, "Only operators that give the same bits each time.")
    on_nonfinite: str = _setting(
        "skip",
        "A step with a loss or gradient that is not finite is left out (ten in a row end the run), or ends the run.",
        ("skip", "stop"),
    )
    profile_steps: tuple[int, ...] = _setting((), "First and last step of a TensorBoard profile, e.g. 20,25.")
    seed: int = _setting(0, "Seed of initialisation, data order, augmentation and sampling.")
    log_every: int = _setting(
        0, "Steps between lines of progress and rows of numbers; 0: a line every 10 seconds, a row every 20 steps."
    )
    logger: tuple[str, ...] = _setting(
        ("tensorboard",), "Where numbers go besides metrics.jsonl: tensorboard, wandb, mlflow."
    )
    checkpoint_every: int = _setting(1000, "Steps between checkpoints.")
    keep_checkpoints: int = _setting(2, "Newest checkpoints kept; the best by evaluation is kept besides.")
    eval_every: int = _setting(0, "Steps between evaluations during training; 0: only at the end.")
    patience: int = _setting(
        0, "Evaluations in a row without a better mask AP after which the run ends (needs eval_every); 0: never."
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """COCO evaluation, and how pictures are predicted in it and by `Predictor`."""

    eval_batch_size: int = _setting(1, "Images a step in evaluation and prediction.")
    eval_max_images: int = _setting(0, "Evaluate on the first this many images; 0: all.")
    eval_max_detections: int = _setting(100, "Detections an image that COCO evaluation counts.")
    eval_pictures: int = _setting(4, "Pictures of predictions drawn after each evaluation.")
    tile_size: int = _setting(
        0, "Pictures with a longer side are predicted in square tiles of so many of their pixels; 0: in one piece."
    )
    tile_overlap: int = _setting(
        128, "Pixels that neighbouring tiles share, at least; best more than an object is long."
    )
    tta_flip: bool = _setting(False, "Test-time augmentation: predict the mirrored picture as well.")
    tta_scales: tuple[float, ...] = _setting(
        (), "Test-time augmentation: predict at these factors of the network's size, e.g. 0.8,1,1.25."
    )

    @property
    def augmented(self) -> bool:
        """Whether a picture is predicted in several forms."""
        return self.tta_flip or bool(self.tta_scales)


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole tree."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvalConfig = EvalConfig()

    def replace(self, **settings: Any) -> Config:
        """A copy with settings of any group replaced by name; raises ConfigError on an unknown name."""
        groups = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        owner = {f.name: group for group, value in groups.items() for f in dataclasses.fields(value)}
        changes: dict[str, dict[str, Any]] = {group: {} for group in groups}
        for name, value in settings.items():
            if name not in owner:
                raise ConfigError(f"unknown setting {name!r}")
            changes[owner[name]][name] = value
        config = Config(**{g: dataclasses.replace(v, **changes[g]) for g, v in groups.items()})
        validate(config)
        return config

    def to_json(self) -> str:
        """The tree as JSON text, groups as objects."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read what `to_json` wrote; raises ConfigError on text that is not it."""
        try:
            tree = json.loads(text)
            settings = {name: value for group in tree.values() for name, value in group.items()}
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"not a kmaskrcnn config.json: {error}") from None
        return cls().replace(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


def fields() -> dict[str, tuple[dataclasses.Field, type, bool]]:
    """Every setting by name: (dataclass field, scalar type, whether it is a tuple of that type)."""
    result = {}
    for group in dataclasses.fields(Config):
        group_type = typing.get_type_hints(Config)[group.name]
        hints = typing.get_type_hints(group_type)
        for field in dataclasses.fields(group_type):
            hint = hints[field.name]
            is_tuple = typing.get_origin(hint) is tuple
            assert not isinstance(hint, types.UnionType), field.name
            result[field.name] = (field, typing.get_args(hint)[0] if is_tuple else hint, is_tuple)
    return result


def groups() -> dict[str, list[str]]:
    """The names of the settings by group: model, data, train, evaluation."""
    types_of = typing.get_type_hints(Config)
    return {g.name: [f.name for f in dataclasses.fields(types_of[g.name])] for g in dataclasses.fields(Config)}


_POSITIVE = (
    "num_classes fpn_channels rpn_conv_layers rpn_batch_size roi_batch_size box_pool_size mask_pool_size "
    "roi_sampling_ratio max_detections rpn_pre_nms_top_k rpn_pre_nms_top_k_train rpn_post_nms_top_k "
    "rpn_post_nms_top_k_train min_size max_size native_scale max_instances mask_resolution shapes_images "
    "shapes_val_images batch_size steps learning_rate eval_batch_size eval_max_detections "
    "checkpoint_every keep_checkpoints accumulate_steps"
).split()
_SHARES = (
    "rpn_positive_fraction rpn_positive_iou rpn_negative_iou rpn_nms_iou roi_positive_fraction roi_positive_iou "
    "score_threshold nms_iou momentum ema_decay color_jitter invert_probability warmup_factor "
    "crop_probability copy_paste_probability blur_probability jpeg_probability"
).split()


def validate(config: Config) -> None:
    """Check types, ranges and settings that exclude each other; raises ConfigError naming the setting."""
    values = {}
    for group in dataclasses.fields(config):
        values |= dataclasses.asdict(getattr(config, group.name))
    for name, (field, scalar, is_tuple) in fields().items():
        value = values[name]
        if is_tuple != isinstance(value, tuple):
            raise ConfigError(f"{name}={value!r}: expected {'a tuple' if is_tuple else 'one value'}")
        for item in value if is_tuple else (value,):
            number = scalar is float and isinstance(item, int) and not isinstance(item, bool)
            if not number and type(item) is not scalar:
                raise ConfigError(f"{name}={value!r}: expected {scalar.__name__}")
        choices = field.metadata["choices"]
        if choices and value not in choices:
            raise ConfigError(f"{name}={value!r}: choose one of {', '.join(choices)}")

    def require(condition: bool, name: str, why: str) -> None:
        if not condition:
            raise ConfigError(f"{name}={values[name]!r}: {why}")

    for name in _POSITIVE:
        require(values[name] > 0, name, "must be above 0")
    for name in _SHARES:
        require(0 <= values[name] <= 1, name, "must lie in 0..1")
    for name, length in (("image_mean", 3), ("image_std", 3), ("scale_jitter", 2), ("profile_steps", 2)):
        require(len(values[name]) in (0, length), name, f"needs {length} numbers or none")
    for name in ("anchor_sizes", "image_std", "scale_jitter", "anchor_aspect_ratios", "min_size_train", "tta_scales"):
        require(all(v > 0 for v in values[name]), name, "every number must be above 0")
    for name in ("box_conv_channels", "box_fc_channels", "mask_conv_channels"):
        require(all(v > 0 for v in values[name]), name, "every width must be above 0")
    require(len(values["anchor_sizes"]) == 5, "anchor_sizes", "needs five sizes, for P2..P6")
    require(len(values["anchor_aspect_ratios"]) > 0, "anchor_aspect_ratios", "needs at least one ratio")
    require(0 <= values["frozen_stages"] <= 5, "frozen_stages", "must lie in 0..5")
    require(
        values["rpn_negative_iou"] <= values["rpn_positive_iou"], "rpn_negative_iou", "must not pass rpn_positive_iou"
    )
    jitter = values["scale_jitter"]
    require(not jitter or jitter[0] <= jitter[1], "scale_jitter", "the least factor must come first")
    require(values["crop_size"] % 32 == 0, "crop_size", "must be a multiple of 32 (the stride of C5)")
    for name in ("scale_jitter", "rotate90"):
        # Without a crop the padded size of an image would depend on the draw, and graphs be traced without end.
        require(not values[name] or values["crop_size"] > 0, name, "needs crop_size")
    require(not values["crop_probability"] or not values["crop_size"], "crop_probability", "not with crop_size")
    require(0 <= values["max_rotation"] <= 180, "max_rotation", "must lie in 0..180")
    require(values["min_size"] <= values["max_size"], "min_size", "must not pass max_size")
    tile, overlap = values["tile_size"], values["tile_overlap"]
    require(tile == 0 or tile >= 32, "tile_size", "must be 0 or at least 32")
    require(overlap >= 0 and (not tile or overlap <= tile // 2), "tile_overlap", "must lie in 0..tile_size / 2")
    for name in (
        "warmup_steps max_minutes clip_norm weight_decay eval_every max_mask_rois mask_target_samples rpn_channels "
        "num_devices num_local_workers stall_timeout epochs patience log_every"
    ).split():
        require(values[name] >= 0, name, "must not be below 0")
    loggers = {"tensorboard", "wandb", "mlflow"}
    require(set(values["logger"]) <= loggers, "logger", f"choose from {', '.join(sorted(loggers))}")
    require(not values["patience"] or values["eval_every"] > 0, "patience", "needs eval_every")
    profile = values["profile_steps"]
    require(not profile or 0 <= profile[0] <= profile[1], "profile_steps", "needs the first step, then the last")
    require(list(values["drop_at"]) == sorted(values["drop_at"]), "drop_at", "must be in increasing order")
