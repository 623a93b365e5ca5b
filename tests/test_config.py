"""The settings tree: every wrong value is refused with its name, and JSON gives the same tree back."""

import dataclasses
import json

import pytest

from kmaskrcnn import __version__
from kmaskrcnn.config import Config, ConfigError, fields


def test_json_round_trip():
    config = Config().replace(backbone="resnet101", crop_size=256, scale_jitter=(0.5, 2.0), mask_conv_channels=())
    assert Config.from_json(config.to_json()) == config


def test_field_names_are_unique_and_documented():
    groups = [getattr(Config(), f.name) for f in dataclasses.fields(Config)]
    names = [f.name for group in groups for f in dataclasses.fields(group)]
    assert len(names) == len(set(names)) == len(fields())
    assert all(field.metadata["help"] for field, _, _ in fields().values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_clases": 3}, "unknown setting 'num_clases'; did you mean 'num_classes'"),
        ({"something_else": 3}, "unknown setting 'something_else'$"),
        ({"num_classes": 0}, "num_classes=0: must be above 0"),
        ({"num_classes": 2.5}, "num_classes=2.5: expected int"),
        ({"num_classes": True}, "num_classes=True: expected int"),
        ({"backbone": "vgg16"}, "backbone='vgg16': choose one of resnet18"),
        ({"anchor_sizes": (32, 64)}, "anchor_sizes=.*needs 5 numbers"),
        ({"anchor_sizes": 32}, "anchor_sizes=32: expected a tuple"),
        ({"anchor_aspect_ratios": (0.5, -1.0)}, "anchor_aspect_ratios=.*above 0"),
        ({"rpn_negative_iou": 0.8}, "rpn_negative_iou=0.8: must not exceed rpn_positive_iou"),
        ({"nms_iou": 1.5}, "nms_iou=1.5: must lie in 0..1"),
        ({"crop_size": 100}, "crop_size=100: must be a multiple of 32"),
        ({"scale_jitter": (0.5, 2.0)}, "scale_jitter=.*needs crop_size"),
        ({"rotate90": True}, "rotate90=True: needs crop_size"),
        ({"crop_size": 64, "scale_jitter": (2.0, 0.5)}, "smaller factor must come first"),
        ({"min_size": 2000}, "min_size=2000: must not exceed max_size"),
        ({"image_mean": (1.0,)}, "image_mean=.*3 numbers"),
        ({"mask_conv_channels": (256, 0)}, "mask_conv_channels=.*above 0"),
        ({"max_rotation": 200.0}, "max_rotation=200.0: must lie in 0..180"),
        ({"rpn_min_size": -1.0}, "rpn_min_size=-1.0: must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: must be above 0 and at most 10"),
        ({"drop_at": (0.9, 0.6)}, "drop_at=.*increasing"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be above 0"),
        ({"learning_rate": 1000.0}, "learning_rate=1000.0: must be above 0 and at most 10"),
        ({"momentum": 1.0}, "momentum=1.0: must be at least 0 and below 1"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: must be at least 0 and below 1"),
        ({"score_threshold": 1.0}, "score_threshold=1.0: must be at least 0 and below 1"),
        ({"weight_decay": 5.0}, r"weight_decay=5.0: must lie in 0\.\.1"),
        ({"reference_batch_size": -8}, "reference_batch_size=-8: must be at least 0"),
        ({"min_size": 3}, "min_size=3: must be at least 32"),
        ({"min_size_train": (480, 3)}, "min_size_train=.*every number must be at least 32"),
        ({"native_scale": 100.0}, "native_scale=100.0: must be above 0 and at most 16"),
        ({"shapes_size": 0}, "shapes_size=0: must be at least 32"),
        ({"tile_size": -1}, "tile_size=-1: must be at least 0"),
        ({"box_loss": "diou"}, "box_loss='diou': choose one of smooth_l1, giou"),
        ({"rpn_box_loss": "iou"}, "rpn_box_loss='iou': choose one of smooth_l1, giou"),
        ({"box_loss_weight": 0.0}, "box_loss_weight=0.0: must be above 0"),
        ({"rpn_box_loss_weight": -1.0}, "rpn_box_loss_weight=-1.0: must be above 0"),
        ({"box_class_agnostic": 1}, "box_class_agnostic=1: expected bool"),
        ({"mask_class_agnostic": "no"}, "mask_class_agnostic='no': expected bool"),
        ({"cascade_ious": (0.5,)}, "cascade_ious=.*a cascade has at least two box heads"),
        ({"cascade_ious": (0.5, 0.7, 0.6)}, "cascade_ious=.*must be in increasing order"),
        ({"cascade_ious": (0.5, 60.0)}, r"cascade_ious=.*every number must lie in 0\.\.1"),
        ({"cascade_ious": (0.6, 0.7)}, "cascade_ious=.*the first must be roi_positive_iou"),
        ({"cascade_ious": 3}, "cascade_ious=3: expected a tuple"),
        ({"dtype": "float16"}, "dtype='float16': choose one of auto, float32"),
    ],
)
def test_impossible_settings_are_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        Config().replace(**settings)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"model": 3}', '{"model": {"num_clases": 3}}'])
def test_text_that_is_no_config_is_refused(text):
    with pytest.raises(ConfigError):
        Config.from_json(text)


def test_config_json_says_which_version_wrote_it():
    assert json.loads(Config().to_json())["version"] == __version__


def test_a_folder_without_a_version_opens_with_the_defaults_of_what_it_lacks():
    tree = json.loads(Config().replace(num_classes=3).to_json())
    del tree["version"], tree["model"]["class_agnostic_nms"], tree["evaluation"]
    assert Config.from_json(json.dumps(tree)) == Config().replace(num_classes=3)


def test_a_setting_by_its_earlier_name_is_read():
    tree = json.loads(Config().replace(eval_overlays=7).to_json())
    tree["evaluation"]["eval_pictures"] = tree["evaluation"].pop("eval_overlays")
    assert Config.from_json(json.dumps(tree)).evaluation.eval_overlays == 7


@pytest.mark.parametrize("version", ["9.0.0", "0.2.0.dev1"])
def test_a_newer_folder_opens_with_what_is_known_or_names_the_version_it_needs(version, caplog):
    tree = json.loads(Config().replace(num_classes=3).to_json()) | {"version": version}
    tree["model"]["cascade_stages"], tree["train"]["new_schedule"] = 0, "fast"
    assert Config.from_json(json.dumps(tree)) == Config().replace(num_classes=3)
    assert "new_schedule='fast' is unknown here" in caplog.text
    tree["model"]["cascade_stages"] = 3
    with pytest.raises(ConfigError, match=f"cascade_stages=3 needs kmaskrcnn {version}"):
        Config.from_json(json.dumps(tree))
