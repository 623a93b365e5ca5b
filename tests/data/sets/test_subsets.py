"""Split, sample and merge: deterministic, whole, and as a user starts them."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kmaskrcnn.data import DataError, files, load_coco, load_dataset
from kmaskrcnn.data.readers import read_raw
from kmaskrcnn.data.readers.write_tfrecord import write_shards
from kmaskrcnn.data.sets.subsets import merge_coco, sample_coco, split_coco, tree_of
from kmaskrcnn.outputs import OutputError
from tests.processes import run_program, run_python


def _tree(count=12, first=1, names=("cat", "dog")):
    """Images in order; the second class is in every fourth only."""
    images = [{"id": first + i, "file_name": f"{first + i}.png", "height": 30, "width": 40} for i in range(count)]
    annotations = []
    for i in range(count):
        for category in (1, 2) if i % 4 == 0 else (1,):
            record = {"id": len(annotations) + 1, "image_id": first + i, "category_id": category, "iscrowd": 0}
            box = {"bbox": [2, 3, 10, 9], "area": 90.0, "segmentation": [[2, 3, 12, 3, 12, 12, 2, 12]]}
            annotations.append({**record, **box})
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _ids(tree):
    return {image["id"] for image in tree["images"]}


def test_a_smaller_sample_is_part_of_a_larger_one():
    tree = _tree()
    small, large = sample_coco(tree, 3, seed=1), sample_coco(tree, 7, seed=1)
    assert _ids(small) < _ids(large)
    assert len(_ids(large)) == 7
    assert sample_coco(tree, 3, seed=1) == small
    assert _ids(sample_coco(tree, 7, seed=2)) != _ids(large)
    assert {a["image_id"] for a in large["annotations"]} == _ids(large)
    shuffled = {**tree, "images": tree["images"][::-1]}
    assert _ids(sample_coco(shuffled, 3, seed=1)) == _ids(small)  # the order of the file does not matter


def test_a_sample_has_images_of_each_class():
    for seed in range(5):
        drawn = sample_coco(_tree(), 4, seed=seed, each_class=2)
        for category in (1, 2):
            assert len({a["image_id"] for a in drawn["annotations"] if a["category_id"] == category}) >= 2
        assert len(_ids(drawn)) == 4
    with pytest.raises(DataError, match="each_class=3 needs"):
        sample_coco(_tree(), 2, each_class=3)
    with pytest.raises(DataError, match="images=13"):
        sample_coco(_tree(), 13)


def test_split_keeps_categories():
    first, second = split_coco(_tree(), 2, seed=0)
    assert first["categories"] == second["categories"]
    assert _ids(first) | _ids(second) == _ids(_tree())


def test_draws_follow_the_seed_and_the_ids_alone_where_no_file_is_named_twice():
    tree, ids = _tree(), list(range(1, 13))
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(ids).tolist()
        for count in (1, 5, 11):
            assert _ids(split_coco(tree, count, seed)[1]) == _ids(sample_coco(tree, count, seed)) == set(order[:count])
        first, *others = [i for i in order if i % 4 == 1]  # the images with the second class
        rest = [i for i in order if i not in (first, others[0])]
        assert _ids(sample_coco(tree, 5, seed, each_class=2)) == {first, others[0], *rest[:3]}


@pytest.mark.parametrize("shards", [False, True])
def test_records_of_one_file_are_drawn_together(shards):
    tree = _tree()
    for i, image in enumerate(tree["images"]):  # files of 1, 2 and 3 records
        file = (0, 1, 1, 2, 2, 2)[i % 6] + 3 * (i // 6)
        image["file_name"] = "./" * (i % 2) + f"{file}.png"
        if shards:
            image |= {"file_name": f"{i}.png", "shard": "a.tfrecord", "offset": file, "length": 9}
    groups = [{1}, {2, 3}, {4, 5, 6}, {7}, {8, 9}, {10, 11, 12}]
    more = []
    for seed in range(8):
        smaller = set()
        for count in range(1, 12):
            first, second = map(_ids, split_coco(tree, count, seed))
            assert first and second and not first & second
            assert abs(len(second) - count) < 3
            drawn = _ids(sample_coco(tree, count, seed))
            assert abs(len(drawn) - count) < 3
            assert smaller <= drawn
            each = _ids(sample_coco(tree, max(count, 6), seed, each_class=2))
            for part in (first, second, drawn, each):
                assert all(group <= part or not group & part for group in groups)
            more.append(len(second) - count)
            smaller = drawn
        assert _ids(sample_coco(tree, 12, seed)) == set(range(1, 13))
    assert min(more) < 0 < max(more)
    for image in tree["images"]:
        image |= {"file_name": "a.png"} | ({"offset": 0} if shards else {})
    with pytest.raises(DataError, match="all 12 image records are of one file"):
        split_coco(tree, 3)


def test_records_without_a_file_name_are_no_records_of_one_file():
    tree = _tree()
    for image in tree["images"]:
        image["file_name"] = None
    assert len(_ids(split_coco(tree, 4)[1])) == 4


def _write(folder, tree, seed=0):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for image in tree["images"]:
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(folder / image["file_name"])
    (folder / "instances.json").write_text(json.dumps(tree))
    return load_coco(folder / "instances.json")


def test_merge_joins_classes_by_name(tmp_path):
    one = _write(tmp_path / "one", _tree(4))
    two = _write(tmp_path / "two", _tree(4, names=("bird", "cat")))
    tree = merge_coco([one, two], str(tmp_path))
    (tmp_path / "all.json").write_text(json.dumps(tree))
    joined = load_coco(tmp_path / "all.json")
    assert joined.class_names == ["bird", "cat", "dog"]
    assert len(joined) == 8
    names = [joined.class_names[c - 1] for c in joined.classes]
    expected = [d.class_names[c - 1] for d in (one, two) for c in d.classes]
    assert names == expected
    np.testing.assert_array_equal(joined.image(5), two.image(1))
    # Sets that agree keep their ids.
    same = merge_coco([one, _write(tmp_path / "three", _tree(4, names=("cat", "cow")) | {"categories": [
        {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 90, "name": "cow"}]})], str(tmp_path))  # fmt: skip
    assert {c["id"]: c["name"] for c in same["categories"]} == {1: "cat", 2: "dog", 90: "cow"}


def test_sets_behind_gfile_are_merged_and_split_by_their_full_paths(tmp_path):
    near = _write(tmp_path / "near", _tree(2))
    tf.io.gfile.makedirs("ram://far")
    for name in ("1.png", "2.png", "instances.json"):
        files.write_bytes(f"ram://far/{name}", (tmp_path / "near" / name).read_bytes())
    far = load_coco("ram://far/instances.json")
    (tmp_path / "all.json").write_text(json.dumps(merge_coco([near, far], str(tmp_path))))
    joined = load_coco(tmp_path / "all.json")
    assert joined.file_names == ["near/1.png", "near/2.png", "ram://far/1.png", "ram://far/2.png"]
    np.testing.assert_array_equal(joined.image(3), near.image(1))
    write_shards(far, "ram://far/shards")
    tree = tree_of(read_raw("ram://far/shards"), str(tmp_path))
    (tmp_path / "shards.json").write_text(json.dumps(tree))
    np.testing.assert_array_equal(load_coco(tmp_path / "shards.json").image(1), near.image(1))


def test_the_commands_as_a_user_starts_them(tmp_path):
    _write(tmp_path / "one", _tree(6))
    _write(tmp_path / "two", _tree(6, first=50), seed=1)

    def start(module, *flags):
        return run_python("-m", "kmaskrcnn", module, *flags)

    one, two = (f"{tmp_path}/{name}/instances.json" for name in ("one", "two"))
    done = start("merge", f"--annotations={one}", f"--with={two}", f"--output={tmp_path}/all.json")
    assert done.returncode == 0, done.stderr
    assert len(load_coco(tmp_path / "all.json")) == 12
    done = start("sample", f"--annotations={tmp_path}/all.json", "--count=5", f"--output={tmp_path}/some.json")
    assert done.returncode == 0, done.stderr
    assert "5 images" in done.stdout
    assert len(load_coco(tmp_path / "some.json")) == 5
    done = start("convert", f"--annotations={tmp_path}/all.json", f"--output={tmp_path}/shards", "--shards=2")
    assert done.returncode == 0, done.stderr
    done = start("split", f"--annotations={tmp_path}/shards", "--val_images=3", f"--output={tmp_path}/split")
    assert done.returncode == 0, done.stderr
    assert [len(load_coco(tmp_path / f"split/{name}.json")) for name in ("train", "val")] == [9, 3]
    bad = start("split", f"--annotations={tmp_path}/none.json", "--val_images=3", f"--output={tmp_path}/split")
    assert bad.returncode == 2
    assert len([line for line in bad.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_tools_leave_what_they_read_alone(tmp_path):
    for name, size in (("1.png", 30), ("2.png", 30), ("3.png", 30)):
        Image.new("RGB", (40, size)).save(tmp_path / name)
    files_before = {}
    for name in ("train.json", "instances.json"):
        (tmp_path / name).write_text(json.dumps(_tree(3)))
        files_before[name] = (tmp_path / name).read_text()
    for arguments, words in (
        (["split", f"--annotations={tmp_path}/train.json", "--val_images=1", f"--output={tmp_path}"], "is an input"),
        (["split", f"--annotations={tmp_path}/instances.json", "--val_images=1", f"--output={tmp_path}"], "exists"),
        (["sample", f"--annotations={tmp_path}/train.json", "--count=1", f"--output={tmp_path}/1.png"], "exists"),
    ):
        result = run_program("-m", "kmaskrcnn", *arguments)
        assert result.returncode == 2, result.stderr
        (line,) = result.stderr.splitlines()
        assert words in line
    dataset = load_coco(str(tmp_path / "train.json"), str(tmp_path))
    with pytest.raises(OutputError, match=r"instances\.json: already exists"):
        write_shards(dataset, str(tmp_path))
    for _ in range(2):  # a conversion may be repeated, though not over what it reads itself
        write_shards(dataset, str(tmp_path / "shards"))
    shards = load_dataset(str(tmp_path / "shards"))
    with pytest.raises(OutputError, match="is an input"):
        write_shards(shards, str(tmp_path / "shards"))
    with pytest.raises(OutputError, match="is an input"):
        write_shards(shards, str(tmp_path / "shards"), "other", read=[str(tmp_path / "shards")])
    assert {name: (tmp_path / name).read_text() for name in files_before} == files_before
    assert not (tmp_path / "val.json").exists()


def test_records_that_a_sample_cannot_place_are_named(tmp_path):
    for key, value in (("category_id", 7), ("image_id", 99)):
        tree = _tree()
        tree["annotations"][3][key] = value
        with pytest.raises(DataError, match=f"annotation 4: {key} {value} is not listed"):
            sample_coco(tree, 3, each_class=1)
        assert len(sample_coco(tree, 3)["images"]) == 3  # without each_class no annotation is looked at
    tree = _tree()
    del tree["categories"][1]["id"]
    (tmp_path / "a.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"a\.json: categories\[1\]: needs an integer 'id'"):
        tree_of(read_raw(str(tmp_path / "a.json")), str(tmp_path))
