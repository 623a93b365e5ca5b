"""Class names with blanks around them, and photographs without annotations."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmaskrcnn.data import DataError, load_dataset
from kmaskrcnn.data.doctor.examine import examine
from kmaskrcnn.data.readers import read_raw

HEIGHT, WIDTH = 48, 64


def _picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(path)


def _labelme(folder, name="one.json", **changes):
    shape = {"label": "cat", "points": [[5, 5], [14, 12]], "shape_type": "rectangle"}
    tree = {"shapes": [shape], "imagePath": "one.jpg", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    (folder / name).write_text(json.dumps(tree | changes))


def _two_masks():
    first, second = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    first[3:13, 4:24] = 1
    second[20:40, 30:44] = 1
    return first, second


def test_a_photograph_without_its_labelme_file_is_said(tmp_path):
    _labelme(tmp_path)
    _labelme(tmp_path, "gone.json", imagePath="gone.jpg", imageData="!")  # named already, as a bad record
    for name in ("one.jpg", "two.jpg", "gone.png"):
        _picture(tmp_path / name)
    summary = load_dataset(tmp_path, on_bad_record="skip").summary()
    assert "note: 1 x unlisted-image: an image file that no record names" in summary
    assert "two.jpg: has no LabelMe file and is not used" in summary
    (tmp_path / "gone.json").unlink()
    (tmp_path / "gone.png").unlink()
    assert examine(read_raw(str(tmp_path))).findings.counts() == {"unlisted-image": 1}


def test_a_mask_without_its_image_is_said(tmp_path):
    first, second = _two_masks()
    _picture(tmp_path / "images" / "a.jpg")
    for name in ("a.png", "gone.png", "gone too/1.png", "gone too/2.png", "cat/lost.png"):
        target = tmp_path / "masks" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(first + 2 * second).save(target)
    notes = [finding for finding in read_raw(str(tmp_path)).problems if finding.code == "unlisted-mask"]
    places = [finding.place.removeprefix(f"{tmp_path}/masks/") for finding in notes]
    assert sorted(places) == ["cat/lost.png", "gone too", "gone.png"]
    assert "note: 3 x unlisted-mask: a mask file that belongs to no image" in load_dataset(tmp_path).summary()


def test_masks_in_folders_of_classes_are_told_from_those_without_an_image(tmp_path):
    first, _ = _two_masks()
    _picture(tmp_path / "images" / "a.jpg")
    for name in ("cat/a.png", "dog/a.png", "dog/gone.png"):
        target = tmp_path / "masks" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(first).save(target)
    assert [Path(finding.place).name for finding in read_raw(str(tmp_path)).problems] == ["gone.png"]


def test_blanks_around_a_label_make_no_class(tmp_path):
    shapes = [
        {"label": label, "points": [[x, 5], [x + 9, 12]], "shape_type": "rectangle", "group_id": group}
        for label, x, group in (("cat", 5, 1), (" cat\u00a0", 20, 1), ("cat ", 35, None))
    ]
    _picture(tmp_path / "one.jpg")
    _labelme(tmp_path, shapes=shapes)
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ["cat"]
    assert len(dataset.classes) == 2  # one of two shapes
    _labelme(tmp_path, shapes=[{**shapes[0], "label": "  "}])
    with pytest.raises(DataError, match="needs a text 'label'"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("form", ["coco", "voc", "masks", "cvat", "label_studio", "yolo", "tfrecord"])
def test_blanks_around_names_make_no_class_in_any_form(tmp_path, form):
    path = tmp_path
    if form == "voc":
        for folder in ("Annotations", "SegmentationObject"):
            (tmp_path / folder).mkdir()
        _picture(tmp_path / "JPEGImages" / "a.jpg")
        Image.fromarray(_two_masks()[0] + 2 * _two_masks()[1]).save(tmp_path / "SegmentationObject" / "a.png")
        objects = "".join(f"<object><name>{name}</name></object>" for name in ("cat", " cat\n"))
        (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation>{objects}</annotation>")
    elif form == "masks":
        for name, mask in zip(("cat", "cat "), _two_masks(), strict=True):
            (tmp_path / "masks" / name).mkdir(parents=True)
            Image.fromarray(mask).save(tmp_path / "masks" / name / "a.png")
        _picture(tmp_path / "images" / "a.jpg")
    else:
        _picture(tmp_path / "images" / "a.jpg")
        size = {"height": HEIGHT, "width": WIDTH}
        if form == "coco":
            boxes = [{"bbox": [x, 4, 9, 9], "segmentation": [[x, 4, x + 9, 4, x + 9, 13, x, 13]]} for x in (4, 30)]
            tree = {
                "images": [{"id": 1, "file_name": "images/a.jpg", **size}],
                "annotations": [{"id": i, "image_id": 1, "category_id": i, **box} for i, box in enumerate(boxes, 1)],
                "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat "}],
            }
            path = tmp_path / "a.json"
            path.write_text(json.dumps(tree))
        elif form == "cvat":
            shape = '<polygon label="{}" points="4,4;20,4;20,12"/>'
            shapes = shape.format("cat") + shape.format(" cat ")
            path = tmp_path / "a.xml"
            image = f'<image name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
            path.write_text(f"<annotations>{image}</annotations>")
        elif form == "label_studio":
            side = {"original_height": HEIGHT, "original_width": WIDTH}
            results = [
                {
                    "type": "rectanglelabels",
                    **side,
                    "value": {**box, "width": 10, "height": 10, "rectanglelabels": [name]},
                }
                for box, name in (({"x": 5, "y": 5}, "cat"), ({"x": 50, "y": 50}, " cat"))
            ]
            path = tmp_path / "a.json"
            path.write_text(json.dumps([{"data": {"image": "images/a.jpg"}, "annotations": [{"result": results}]}]))
        elif form == "yolo":
            (tmp_path / "labels").mkdir()
            (tmp_path / "labels" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
            path = tmp_path / "data.yaml"
            path.write_text("train: images\nnames: [' cat ']\n")
        else:
            png = io.BytesIO()
            Image.fromarray(_two_masks()[0]).save(png, "PNG")

            def feature(values):
                kind, one = (
                    ("bytes_list", tf.train.BytesList)
                    if isinstance(values[0], bytes)
                    else ("float_list", tf.train.FloatList)
                )
                return tf.train.Feature(**{kind: one(value=values)})

            sides = {"ymin": 3 / HEIGHT, "xmin": 4 / WIDTH, "ymax": 13 / HEIGHT, "xmax": 24 / WIDTH}
            features = {f"image/object/bbox/{side}": feature([share] * 2) for side, share in sides.items()}
            features["image/object/class/text"] = feature([b"cat", b" cat"])
            features["image/object/mask"] = feature([png.getvalue()] * 2)
            features["image/encoded"] = feature([(tmp_path / "images" / "a.jpg").read_bytes()])
            path = tmp_path / "a.tfrecord"
            with tf.io.TFRecordWriter(str(path)) as writer:
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    dataset = load_dataset(path)
    assert dataset.class_names == ["cat"]
    assert len(dataset.classes) == (1 if form == "yolo" else 2)
