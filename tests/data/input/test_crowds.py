"""Crops of a large crowded image: what they show alone is read, and all of it is trained on."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from kmaskrcnn.config import Config
from kmaskrcnn.data import load_coco
from kmaskrcnn.data.input.augment import draw_transform
from kmaskrcnn.data.input.examples import ExampleMaker

HEIGHT, WIDTH, PITCH = 640, 960, 20  # 1,536 objects of 12 x 12 pixels


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crowd")
    image, annotations = np.zeros((HEIGHT, WIDTH, 3), np.uint8), []
    for y in range(4, HEIGHT, PITCH):
        for x in range(4, WIDTH, PITCH):
            image[y : y + 12, x : x + 12] = 255
            polygon = [x, y, x + 12, y, x + 12, y + 12, x, y + 12]
            record = {"id": len(annotations) + 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 144}
            annotations.append({**record, "bbox": [x, y, 12, 12], "segmentation": [polygon]})
    Image.fromarray(image).save(folder / "1.png")
    images = [{"id": 1, "file_name": "1.png", "height": HEIGHT, "width": WIDTH}]
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(tree))
    return load_coco(folder / "instances.json")


def _config(**changes):
    base = {"resize_mode": "native", "crop_size": 128, "scale_jitter": (0.8, 1.25), "mask_resolution": 14}
    return Config().replace(**(base | changes)).data


@pytest.mark.parametrize("changes", [{}, {"rotate90": True, "max_rotation": 25.0}, {"copy_paste_probability": 1.0}])
def test_masks_are_made_of_what_the_crop_shows_and_nothing_is_lost_by_it(crowd, monkeypatch, changes):
    config, made = _config(max_instances=2000, **changes), []
    masks, instances = crowd.masks, crowd.instances
    monkeypatch.setattr(crowd, "masks", lambda rows, cells: made.append(len(rows)) or masks(rows, cells))
    quick = [ExampleMaker(crowd, config, 3).draw(0, epoch) for epoch in range(8)]
    # A crop of 160 pixels reaches 9 x 9 of them.
    assert np.mean(made) > 30 and max(made) <= 81
    monkeypatch.setattr(crowd, "instances", lambda index, cells, window: instances(index, cells))
    for epoch, drawn in enumerate(quick):
        for ours, all_of_them in zip(drawn, ExampleMaker(crowd, config, 3).draw(0, epoch), strict=True):
            np.testing.assert_array_equal(ours, all_of_them)


def test_objects_beyond_max_instances_are_no_background(crowd, caplog):
    caplog.set_level(logging.WARNING)
    maker, all_of_them = (ExampleMaker(crowd, _config(max_instances=n), 0) for n in (10, 2000))
    for epoch in range(3):
        few, many = maker.draw(0, epoch), all_of_them.draw(0, epoch)
        assert len(few.masks) == len(few.mask_frames) == 10
        assert len(few.boxes) == len(many.boxes) > 10
        assert set(map(tuple, few.boxes)) == set(map(tuple, many.boxes))
    assert caplog.text.count("more than max_instances=10") == 1  # said once, and only of what a crop shows


def test_crops_show_objects_and_empty_ground():
    rng = np.random.default_rng(0)
    # 30 objects in a corner of a photograph of 2000 x 3000.
    corners = rng.uniform(100, 500, (30, 2))
    boxes = np.concatenate([corners, corners + 15], axis=1).astype(np.float32)
    config, seen = _config(crop_size=448, scale_jitter=()), []
    for seed in range(1000):
        y, x, height, width = draw_transform(2000, 3000, boxes, config, np.random.default_rng(seed)).window
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        seen.append(((centers > (y, x)) & (centers < (y + height, x + width))).all(axis=1).any())
    assert 0.88 < np.mean(seen) < 0.97
