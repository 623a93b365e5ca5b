"""TFRecord shards: written by the converter and by a writer of the test's own, read back, trained from."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmaskrcnn.config import Config
from kmaskrcnn.data import DataError, evaluation_dataset, load_coco, load_dataset, make_shapes, training_dataset
from kmaskrcnn.data.readers.write_tfrecord import write_shards


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return load_coco(make_shapes(tmp_path_factory.mktemp("shapes"), 7, 64, seed=1))


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _feature(values):
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if isinstance(values[0], float):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _record(**changes):
    """An example of one image with two objects, as create_coco_tf_record.py of the Object Detection API makes it."""
    masks = np.zeros((2, 40, 60), np.uint8)
    masks[0, 5:25, 10:40] = masks[1, 30:38, 3:9] = 1
    features = {
        "image/height": [40],
        "image/width": [60],
        "image/filename": [b"a.png"],
        "image/source_id": [b"31"],
        "image/encoded": [_png(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))],
        "image/format": [b"png"],
        "image/object/bbox/xmin": [10 / 60, 3 / 60],
        "image/object/bbox/ymin": [5 / 40, 30 / 40],
        "image/object/bbox/xmax": [40 / 60, 9 / 60],
        "image/object/bbox/ymax": [25 / 40, 38 / 40],
        "image/object/class/text": [b"cat", b"dog"],
        "image/object/class/label": [17, 18],
        "image/object/is_crowd": [0, 1],
        "image/object/area": [600.0, 48.0],
        "image/object/mask": [_png(m) for m in masks],
    }
    features = {name: v for name, v in (features | changes).items() if v}
    return tf.train.Example(features=tf.train.Features(feature={k: _feature(v) for k, v in features.items()}))


def _shard(path, *examples):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for example in examples:
            writer.write(example if isinstance(example, bytes) else example.SerializeToString())
    return str(path)


@pytest.mark.parametrize("form", ["png", "numbers"])
def test_shards_of_the_object_detection_api(tmp_path, form):
    masks = np.zeros((2, 40, 60), np.float32)
    masks[0, 5:25, 10:40] = masks[1, 30:38, 3:9] = 1
    changes = {"image/object/mask": masks.reshape(-1).tolist()} if form == "numbers" else {}
    other = _record(**{"image/source_id": [b"7"], "image/filename": [b"b.png"]}, **changes)
    _shard(tmp_path / "train.record-00000-of-00002", _record(**changes))
    _shard(tmp_path / "train.record-00001-of-00002", other)
    for path in (tmp_path, tmp_path / "train.record-*", f"{tmp_path}/train.record@2"):
        dataset = load_dataset(path)
        assert dataset.image_ids.tolist() == [31, 7]
        assert dataset.class_names == ["cat", "dog"]
        assert dataset.category_ids == [17, 18]
        assert dataset.is_crowd.tolist() == [False, True] * 2
    np.testing.assert_allclose(dataset.boxes[:2], [[5, 10, 25, 40], [30, 3, 38, 9]], rtol=1e-5)
    assert (dataset.instances(1, 28)["masks"] == 255).all()
    expected = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    np.testing.assert_array_equal(dataset.image(1), expected)


def test_labels_without_names_and_names_without_labels(tmp_path):
    path = _shard(tmp_path / "a.tfrecord", _record(**{"image/object/class/text": []}))
    assert load_dataset(path).class_names == ["class 17", "class 18"]
    path = _shard(tmp_path / "b.tfrecord", _record(**{"image/object/class/label": []}))
    dataset = load_dataset(path)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.category_ids == [1, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image/encoded": []}, "no 'image/encoded'"),
        ({"image/encoded": [b"x"]}, "not an image"),
        ({"image/height": [41]}, "60 x 40, the record 60 x 41"),
        ({"image/object/mask": []}, "2 boxes, but 0 values in 'image/object/mask'"),
        ({"image/object/class/text": [], "image/object/class/label": []}, "'image/object/class/label or class/text'"),
        ({"image/object/bbox/xmax": [0.5]}, "box's sides"),
        ({"image/object/mask": [b"x", b"y"]}, "object 0: the mask is not a PNG"),
        ({"image/object/mask": [_png(np.zeros((4, 4), np.uint8))] * 2}, "object 0: the mask has 4 x 4"),
        ({"image/object/class/text": [b"cow", b"dog"]}, "object 0: class 17 is 'cow' here and 'cat' before"),
    ],
)
def test_errors_name_shard_and_record(tmp_path, changes, words):
    path = _shard(tmp_path / "a.tfrecord", _record(), _record(**changes))
    with pytest.raises(DataError) as error:
        load_dataset(path)
    line = str(error.value).splitlines()[0]
    assert line.startswith(f"{path}: a.tfrecord: record 1")
    assert words in line
    assert len(load_dataset(path, on_bad_record="skip").classes) >= 2


def test_damaged_shards_are_named(tmp_path):
    path = _shard(tmp_path / "a.tfrecord", _record(), _record())
    data = (tmp_path / "a.tfrecord").read_bytes()
    (tmp_path / "a.tfrecord").write_bytes(data[:-100])
    with pytest.raises(DataError, match=r"a\.tfrecord: damaged or cut short after byte \d+"):
        load_dataset(path)
    (tmp_path / "a.tfrecord").write_bytes(b"hello, this is not one")
    with pytest.raises(DataError, match="not a TFRecord file"):
        load_dataset(path)
    with pytest.raises(DataError, match=r"b\.tfrecord: no such TFRecord file"):
        load_dataset(str(tmp_path / "b.tfrecord"))
    path = _shard(tmp_path / "c.tfrecord", b"\xff\xff")
    with pytest.raises(DataError, match=r"record 0: not a tf\.train\.Example"):
        load_dataset(path)


def _same(a, b):
    assert a.class_names == b.class_names
    assert a.category_ids == b.category_ids
    assert a.image_ids.tolist() == b.image_ids.tolist()
    assert a.classes.tolist() == b.classes.tolist()
    assert a.is_crowd.tolist() == b.is_crowd.tolist()
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)
    for i in range(len(a)):
        np.testing.assert_array_equal(a.image(i), b.image(i))
        np.testing.assert_array_equal(a.instances(i, 56)["masks"], b.instances(i, 56)["masks"])


@pytest.mark.parametrize("place", ["local", "ram://tfrecords"])
def test_a_converted_set_is_the_set(tmp_path, shapes, place):
    output = str(tmp_path / "out") if place == "local" else place
    paths = write_shards(shapes, output, shards=3)
    assert [p.rpartition("/")[2] for p in paths] == [f"data-{i:05d}-of-00003.tfrecord" for i in range(3)]
    _same(load_dataset(output), shapes)  # by instances.json
    _same(load_dataset(f"{output}/data-*.tfrecord", data_format="tfrecord"), shapes)  # by the records alone
    config = Config().replace(crop_size=64, mask_resolution=28, max_instances=6, resize_mode="native").data
    for a, b in zip(
        training_dataset(load_dataset(output), config, 2, seed=3).take(4),
        training_dataset(shapes, config, 2, seed=3).take(4),
        strict=True,
    ):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    first = next(iter(evaluation_dataset(load_dataset(output), config, 2)))
    np.testing.assert_array_equal(first["images"], next(iter(evaluation_dataset(shapes, config, 2)))["images"])


def test_conversion_is_the_same_each_time_and_keeps_odd_formats(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(pixels).save(tmp_path / "b.jpg")
    images = [{"id": i, "file_name": n, "height": 40, "width": 60} for i, n in enumerate(("a.webp", "b.jpg"))]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 8, 9], "segmentation": [[1, 2, 9, 2, 9, 11, 1, 11]]}
    tree = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "instances.json").write_text(json.dumps(tree))
    dataset = load_coco(tmp_path / "instances.json")
    first, second = (write_shards(dataset, str(tmp_path / name), threads=2)[0] for name in ("x", "y"))
    assert Path(first).read_bytes() == Path(second).read_bytes()
    again = load_dataset(tmp_path / "x")
    np.testing.assert_array_equal(again.image(0), pixels)
    assert not again.by_pillow.any()
    with pytest.raises(DataError, match="shards=3"):
        write_shards(dataset, str(tmp_path / "z"), shards=3)


def test_a_shard_that_changed_or_went_is_named(tmp_path, shapes):
    paths = write_shards(shapes, str(tmp_path), shards=2)
    with open(paths[1], "ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"00001-of-00002\.tfrecord has \d+ bytes"):
        load_dataset(tmp_path)
    tf.io.gfile.remove(paths[0])
    with pytest.raises(DataError, match=r"00000-of-00002\.tfrecord is missing"):
        load_dataset(tmp_path)
