"""COCO files: every defect is named with its file and record, and skipping leaves the rest whole."""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from kmaskrcnn.config import Config
from kmaskrcnn.data import DataError, load_coco, load_dataset, open_dataset
from kmaskrcnn.data.doctor.examine import examine
from kmaskrcnn.data.readers import read_raw
from kmaskrcnn.data.sets.subsets import split_coco

HEIGHT, WIDTH = 40, 60


def _mask(y0, x0, y1, x1):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    return mask


def _runs(mask):
    """Uncompressed RLE: lengths of runs of 0 and 1 in turn, column by column."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


@pytest.fixture
def tree(tmp_path):
    """Four images: polygon and uncompressed RLE, compressed RLE and crowd, none, one; category ids with gaps."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "c.png", "d.jpg"):
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / name)
    compressed = mask_utils.encode(_mask(5, 10, 25, 40))
    crowd = mask_utils.encode(_mask(0, 0, 10, 60))

    def annotation(number, image, category, box, segmentation, is_crowd=0):
        area = float(box[2] * box[3])
        return {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": area,
            "iscrowd": is_crowd,
            "segmentation": segmentation,
        }

    return {
        "images": [
            {"id": 10 * i, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for i, name in enumerate(("a.png", "b.jpg", "c.png", "d.jpg"), 1)
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 3, "name": "car"}],
        "annotations": [
            annotation(1, 10, 17, [10, 5, 30, 20], [[10, 5, 40, 5, 40, 25, 10, 25]]),
            annotation(2, 10, 3, [10, 5, 30, 20], {"size": [HEIGHT, WIDTH], "counts": _runs(_mask(5, 10, 25, 40))}),
            annotation(3, 20, 3, [10, 5, 30, 20], {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()}),
            annotation(4, 20, 17, [0, 0, 60, 10], {"size": [HEIGHT, WIDTH], "counts": crowd["counts"].decode()}, 1),
            annotation(5, 40, 17, [50, 30, 10, 10], [[50, 30, 60, 30, 60, 40, 50, 40]]),
        ],
    }


def _write(tmp_path, tree):
    path = tmp_path / "instances.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return str(path)


def test_good_file(tmp_path, tree):
    dataset = load_coco(_write(tmp_path, tree))
    assert dataset.class_names == ["car", "cat"]
    assert dataset.category_ids == [3, 17]
    assert dataset.image_ids.tolist() == [10, 20, 30, 40]
    first = dataset.instances(0, 28)
    assert first["classes"].tolist() == [2, 1]
    np.testing.assert_allclose(first["boxes"], [[5, 10, 25, 40]] * 2)
    assert (first["masks"] == 255).all()  # the polygon and the RLE fill their boxes
    second = dataset.instances(1, 28)
    assert second["is_crowd"].tolist() == [False, True]
    assert len(dataset.instances(2)["boxes"]) == 0
    assert "4 images (1 without objects), 5 instances (1 crowd), 2 classes" in dataset.summary()
    assert dataset.image(0).shape == (HEIGHT, WIDTH, 3)


def test_coco_dict_is_read_by_pycocotools_with_the_same_masks(tmp_path, tree):
    dataset = load_coco(_write(tmp_path, tree))
    coco = COCO()
    coco.dataset = dataset.coco_dict
    coco.createIndex()
    for annotation in tree["annotations"]:
        expected = _mask(0, 0, 10, 60) if annotation["iscrowd"] else None
        mask = coco.annToMask(coco.anns[annotation["id"]])
        assert abs(int(mask.sum()) - annotation["area"]) <= 1
        if expected is not None:
            np.testing.assert_array_equal(mask, expected)
        assert coco.anns[annotation["id"]]["category_id"] == annotation["category_id"]
        assert coco.anns[annotation["id"]]["iscrowd"] == annotation["iscrowd"]


def _set(*path_and_value):
    *path, value = path_and_value

    def change(tree, folder):
        node = tree
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


def _truncate(name):
    def change(tree, folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


def _delete(name):
    return lambda tree, folder: (folder / name).unlink()


ANNOTATION, IMAGE = "annotations", "images"
# change, words of the message, images left with skip, annotations left with skip
DEFECTS = {
    "missing image": (_delete("d.jpg"), ["d.jpg", "file is missing"], 3, 4),
    "truncated JPEG": (_truncate("b.jpg"), ["b.jpg", "truncated"], 3, 3),
    "truncated PNG": (_truncate("a.png"), ["a.png", "truncated"], 3, 3),
    "empty image": (lambda t, f: (f / "a.png").write_bytes(b""), ["a.png", "file is empty"], 3, 3),
    "no image": (lambda t, f: (f / "a.png").write_text("hello"), ["a.png", "not an image"], 3, 3),
    "other size": (_set(IMAGE, 0, "height", 41), ["a.png", "60 x 40"], 3, 3),
    "duplicate image": (_set(IMAGE, 1, "id", 10), ["images[1]", "duplicate image id 10"], 3, None),
    "unknown category": (_set(ANNOTATION, 0, "category_id", 99), ["annotations[0]", "category id 99"], 4, 4),
    "unknown image": (_set(ANNOTATION, 0, "image_id", 99), ["annotations[0]", "image id 99"], 4, 4),
    "duplicate annotation": (_set(ANNOTATION, 1, "id", 1), ["annotations[1]", "duplicate annotation id 1"], 4, 4),
    "box outside": (_set(ANNOTATION, 4, "bbox", [70, 5, 5, 5]), ["annotations[4]", "d.jpg", "outside"], 4, 4),
    "box without area": (_set(ANNOTATION, 4, "bbox", [5, 5, 0, 5]), ["annotations[4]", "no area"], 4, 4),
    "box of NaN": (_set(ANNOTATION, 4, "bbox", [5, 5, float("nan"), 5]), ["annotations[4]", "not finite"], 4, 4),
    "box of three": (_set(ANNOTATION, 4, "bbox", [5, 5, 5]), ["annotations[4]", "four numbers"], 4, 4),
    "two points": (_set(ANNOTATION, 0, "segmentation", [[1, 1, 5, 5]]), ["annotations[0]", "2 points"], 4, 4),
    "flat polygon": (_set(ANNOTATION, 0, "segmentation", [[1, 1, 5, 5, 9, 9]]), ["annotations[0]", "no area"], 4, 4),
    "odd polygon": (_set(ANNOTATION, 0, "segmentation", [[1, 1, 5, 5, 9]]), ["annotations[0]", "odd"], 4, 4),
    "no segmentation": (_set(ANNOTATION, 0, "segmentation", None), ["annotations[0]", "missing"], 4, 4),
    "RLE of another size": (
        _set(ANNOTATION, 2, "segmentation", "size", [WIDTH, HEIGHT]),
        ["annotations[2]", "RLE size"],
        4,
        4,
    ),
    "RLE that does not add up": (
        _set(ANNOTATION, 1, "segmentation", "counts", [3, 4, 5]),
        ["annotations[1]", "do not add up"],
        4,
        4,
    ),
    "RLE of other text": (_set(ANNOTATION, 2, "segmentation", "counts", "\x01\x7f"), ["annotations[2]", "RLE"], 4, 4),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_defects_are_named_or_skipped(tmp_path, tree, name):
    change, words, images, annotations = DEFECTS[name]
    change(tree, tmp_path)
    path = _write(tmp_path, tree)
    with pytest.raises(DataError) as error:
        load_coco(path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(path)
    for word in words:
        assert word in lines[0]
    assert "on_bad_record=skip" in lines[-1]
    dataset = load_coco(path, on_bad_record="skip")
    assert len(dataset) == images
    assert annotations is None or len(dataset.classes) == annotations
    assert dataset.report.total() >= 1
    assert "left out: 1 x" in dataset.summary()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the annotation file is empty"),
        ("{", "not JSON"),
        ("[]", "not a COCO instances file"),
        ('{"images": []}', "'images' has no records"),
        ('{"images": [{}], "annotations": 3}', "no list 'annotations'"),
        ('{"images": [{}], "annotations": [{}], "categories": [{"id": "x"}]}', "categories[0]"),
    ],
)
@pytest.mark.parametrize("on_bad_record", ["error", "skip"])
def test_files_that_are_no_coco_sets(tmp_path, text, words, on_bad_record):
    path = _write(tmp_path, text)
    with pytest.raises(DataError) as error:
        load_coco(path, on_bad_record=on_bad_record)
    assert str(error.value).startswith(path)
    assert words in str(error.value)


def test_missing_annotation_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: no such annotation file"):
        load_coco(tmp_path / "none.json")


def test_many_defects_are_listed_up_to_a_limit_and_counted(tmp_path, tree):
    bad = [dict(copy.deepcopy(tree["annotations"][0]), id=100 + i, image_id=50 + i) for i in range(50)]
    tree["annotations"] += bad
    with pytest.raises(DataError) as error:
        load_coco(_write(tmp_path, tree))
    lines = str(error.value).splitlines()
    assert len(lines) == 22
    assert lines[-2] == "... and 30 more"
    assert lines[-1].startswith("50 bad records")


def test_a_wrong_class_is_said_once_for_all_its_objects(tmp_path, tree):
    tree["annotations"] += [dict(copy.deepcopy(tree["annotations"][0]), id=100 + i, category_id=5) for i in range(50)]
    with pytest.raises(DataError) as error:
        load_coco(_write(tmp_path, tree))
    first, last = str(error.value).splitlines()
    assert first.endswith("unknown category id 5 (and 49 more of it)")
    assert last.startswith("50 bad records; on_bad_record=skip leaves them out")


def test_class_names_of_another_set_are_one_line_with_both_lists(tmp_path, tree):
    names = [c["name"] for c in tree["categories"]]
    with pytest.raises(DataError) as error:
        load_dataset(_write(tmp_path, tree), class_names=["ape", "elk"])
    assert len(str(error.value).splitlines()) == 1
    assert "ape, elk" in str(error.value)
    assert any(name in str(error.value) for name in names)
    with pytest.raises(DataError, match="is not among the class names ape, ") as error:
        load_dataset(_write(tmp_path, tree), class_names=["ape", names[0]])
    assert len(str(error.value).splitlines()) == 2


def test_images_that_are_nowhere_are_one_line_with_the_folder(tmp_path, tree):
    path = _write(tmp_path, tree)
    with pytest.raises(DataError) as error:
        load_dataset(path, tmp_path / "none")
    assert str(error.value) == f"images_dir={tmp_path / 'none'}: no such folder"
    (tmp_path / "other").mkdir()
    for on_bad_record in ("error", "skip"):
        with pytest.raises(DataError) as error:
            load_dataset(path, tmp_path / "other", on_bad_record)
        expected = f"none of its 4 images is in {tmp_path / 'other'}; images_dir names their folder"
        assert str(error.value) == f"{path}: {expected}"


def test_images_without_objects_are_a_set_but_not_one_to_train_on(tmp_path, tree):
    tree["annotations"] = []
    path = _write(tmp_path, tree)
    assert load_dataset(path).summary().startswith("4 images (4 without objects), 0 instances")
    config = Config().replace(train_annotations=path, val_annotations=path)
    with pytest.raises(DataError, match="none of its 4 images has an object"):
        open_dataset(config, "train")
    assert len(open_dataset(config, "val")) == 4
    found = examine(read_raw(path)).findings
    assert found.counts() == {"image-without-objects": 4, "no-objects": 1, "unused-category": len(tree["categories"])}


def test_counts_of_one_are_singular(tmp_path, tree):
    tree["images"], tree["categories"] = tree["images"][:1], tree["categories"][:1]
    tree["annotations"] = tree["annotations"][:1]
    assert (
        load_dataset(_write(tmp_path, tree)).summary() == "1 image (0 without objects), 1 instance (0 crowd), 1 class"
    )
    tree["annotations"][0]["segmentation"] = None
    with pytest.raises(DataError, match="1 bad record; on_bad_record=skip leaves it out"):
        load_dataset(_write(tmp_path, tree))


def test_names_that_differ_in_case_are_both_shown(tmp_path, tree):
    tree["categories"].append({"id": 99, "name": tree["categories"][0]["name"].upper()})
    name = tree["categories"][0]["name"]
    assert f"{name.upper()!r} and {name!r}" in load_dataset(_write(tmp_path, tree)).summary()


def test_boxes_that_stick_out_are_clipped(tmp_path, tree):
    tree["annotations"][4]["bbox"] = [50, 30, 30, 30]
    dataset = load_coco(_write(tmp_path, tree))
    np.testing.assert_allclose(dataset.instances(3)["boxes"], [[30, 50, 40, 60]])


def test_split_deals_every_image_once(tree):
    first, second = split_coco(tree, 1, seed=3)
    ids = [i["id"] for i in first["images"]] + [i["id"] for i in second["images"]]
    assert sorted(ids) == [10, 20, 30, 40]
    assert len(second["images"]) == 1
    assert {a["image_id"] for a in first["annotations"]} <= {i["id"] for i in first["images"]}
    assert len(first["annotations"]) + len(second["annotations"]) == 5
    assert split_coco(tree, 1, seed=3) == (first, second)
    with pytest.raises(DataError, match="val_images=4"):
        split_coco(tree, 4)
