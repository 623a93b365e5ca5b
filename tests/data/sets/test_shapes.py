"""The built-in set."""

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

from kmaskrcnn.config import Config
from kmaskrcnn.data import make_shapes, open_dataset


def _files(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_shapes(tmp_path / name, 4, 64, seed)
    assert _files(tmp_path / "a") == _files(tmp_path / "b")
    assert _files(tmp_path / "a")["00000.png"] != _files(tmp_path / "c")["00000.png"]


def test_masks_are_apart_and_boxes_tight(tmp_path):
    tree = json.loads(Path(make_shapes(tmp_path, 30, 96, 0)).read_text())
    assert {a["category_id"] for a in tree["annotations"]} == {1, 2, 3, 4}
    overlapping = 0
    for image in tree["images"]:
        total = np.zeros((96, 96), int)
        boxes = []
        for annotation in tree["annotations"]:
            if annotation["image_id"] != image["id"]:
                continue
            mask = mask_utils.decode(annotation["segmentation"])
            total += mask
            y, x = np.nonzero(mask)
            assert annotation["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert annotation["area"] == mask.sum()
            boxes.append(annotation["bbox"])
        assert total.max() == 1
        iou = mask_utils.iou(np.array(boxes, float), np.array(boxes, float), [0] * len(boxes))
        overlapping += (iou - np.eye(len(boxes)) > 0).any()
    assert overlapping > 3  # hidden parts are what makes masks worth learning


def test_an_unchanged_folder_is_used_again_and_another_request_replaces_it(tmp_path):
    path = Path(make_shapes(tmp_path, 3, 64, 0))
    stamp = (tmp_path / "00000.png").stat().st_mtime_ns
    make_shapes(tmp_path, 3, 64, 0)
    assert (tmp_path / "00000.png").stat().st_mtime_ns == stamp
    make_shapes(tmp_path, 3, 96, 0)
    assert json.loads(path.read_text())["images"][0]["height"] == 96


def test_training_and_validation_pictures_differ(tmp_path):
    config = Config().replace(
        model_dir=str(tmp_path), val_annotations="shapes", shapes_images=3, shapes_val_images=3, shapes_size=64
    )
    train, val = open_dataset(config, "train"), open_dataset(config, "val")
    assert not set(map(bytes, (train.image(i) for i in range(3)))) & set(map(bytes, (val.image(i) for i in range(3))))
    assert open_dataset(config.replace(val_annotations=""), "val") is None
