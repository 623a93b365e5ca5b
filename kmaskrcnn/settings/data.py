"""Settings of the data: where images come from, how they are resized and augmented."""

from __future__ import annotations

import dataclasses

from kmaskrcnn.settings.field import POSITIVE, SHARE, setting


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where images come from and what happens to them before the model."""

    train_annotations: str = setting(
        "shapes",
        "Data set to train on (COCO JSON or another format of docs/guide/data.md), or 'shapes', the built-in one.",
    )
    train_images: str = setting(
        "", "Folder of the training images; empty: that of the JSON, or where the format has them."
    )
    val_annotations: str = setting("", "Data set to evaluate on, or 'shapes'; empty: no evaluation.")
    val_images: str = setting(
        "", "Folder of the evaluation images; empty: that of the JSON, or where the format has them."
    )
    data_format: str = setting(
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
    class_names: tuple[str, ...] = setting(
        (), "Class names in order, or a file of them (one per line, or a .pbtxt label map); empty: from the data."
    )
    class_map: tuple[str, ...] = setting(
        (), "OLD=NEW,... or a file of such lines (or JSON): renames and merges classes; OLD= drops one."
    )
    on_bad_record: str = setting(
        "error", "A broken image or annotation stops the run (error) or is left out (skip).", ("error", "skip")
    )
    resize_mode: str = setting(
        "short_side",
        "short_side: keep the aspect ratio, short side to min_size unless the long side would exceed max_size. "
        "native: multiply by native_scale.",
        ("short_side", "native"),
    )
    resize_method: str = setting(
        "antialias",
        "antialias: with an antialiasing filter, sides rounded; torchvision: no filter, sides rounded down, "
        "pixels not rounded to whole levels; "
        "detectron2: with Pillow, sides rounded half up.",
        ("antialias", "torchvision", "detectron2"),
    )
    min_size: int = setting(800, "Short side in pixels (evaluation, and training without min_size_train).", low=32)
    min_size_train: tuple[int, ...] = setting(
        (), "Multi-scale training: short sides, one drawn at random per image.", low=32
    )
    max_size: int = setting(1333, "Largest long side in pixels.", low=32)
    native_scale: float = setting(1.0, "Scale factor for resize_mode=native.", above=0, high=16)
    crop_size: int = setting(0, "Training images are cropped or padded to this square; 0: whole images.", low=0)
    scale_jitter: tuple[float, ...] = setting(
        (),
        "Scale jitter (LSJ): smallest and largest random scale factor in training, e.g. 0.1,2.0; needs crop_size.",
        **POSITIVE,
        lengths=(0, 2),
    )
    horizontal_flip: bool = setting(True, "Flip half of the training images left-right.")
    vertical_flip: bool = setting(False, "Flip half of the training images top-bottom.")
    rotate90: bool = setting(False, "Rotate training images by a random multiple of 90 degrees; needs crop_size.")
    max_rotation: float = setting(0.0, "Rotate training images by up to this many degrees either way.", low=0, high=180)
    crop_probability: float = setting(
        0.0,
        "Share of training images cropped to a part that keeps its objects whole, and enlarged; not with crop_size.",
        **SHARE,
    )
    copy_paste_probability: float = setting(
        0.0, "Copy-paste augmentation: share of training images that get objects of another one.", **SHARE
    )
    color_jitter: float = setting(0.0, "Strength of random brightness, contrast, saturation and hue (0..1).", **SHARE)
    invert_probability: float = setting(
        0.0, "Share of training images whose intensities are inverted (microscopy).", **SHARE
    )
    blur_probability: float = setting(0.0, "Share of training images that are blurred a little.", **SHARE)
    jpeg_probability: float = setting(0.0, "Share of training images that get JPEG compression artifacts.", **SHARE)
    repeat_factor_threshold: float = setting(
        0.0,
        "Class imbalance: images of a class found in a share f of them are repeated sqrt(this / f) times; 0: off.",
        **SHARE,
    )
    max_instances: int = setting(
        100, "Most masks per image in training; of further objects the boxes alone are trained on.", **POSITIVE
    )
    mask_resolution: int = setting(
        112, "Side in pixels at which ground-truth masks are kept, each cropped to its box.", **POSITIVE
    )
    shapes_images: int = setting(400, "Training images of the built-in shapes set.", **POSITIVE)
    shapes_val_images: int = setting(60, "Held-out images of the built-in shapes set.", **POSITIVE)
    shapes_size: int = setting(128, "Side in pixels of the built-in shapes images.", low=32)
    data_threads: int = setting(0, "Parallel decode and augment calls; 0 lets tf.data choose.", low=0)
