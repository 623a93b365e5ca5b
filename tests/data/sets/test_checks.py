"""Loader and doctor make the same checks: what is clear is taken, what is not is named, nothing is without bounds."""

import copy
import json
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from kmaskrcnn.data import DataError, load_dataset
from kmaskrcnn.data.doctor.examine import examine
from kmaskrcnn.data.doctor.repair import write_repaired
from kmaskrcnn.data.readers import read_raw
from kmaskrcnn.data.sets.check_mask import rle_counts
from kmaskrcnn.evaluation.coco_metrics import score

SIDE = 64
SQUARE = [16, 16, 32, 16, 32, 32, 16, 32]


def _set(folder, count=2):
    images, annotations = [], []
    for i in range(1, count + 1):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE})
        box = {"bbox": [16, 16, 16, 16], "area": 256, "iscrowd": 0, "segmentation": [SQUARE]}
        annotations.append({"id": i, "image_id": i, "category_id": 1, **box})
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}


def _write(folder, tree):
    path = folder / "a.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return str(path)


def _perfect(dataset):
    from pycocotools import mask as mask_utils

    truth, results = dataset.coco_dict, []
    for a in truth["annotations"]:
        rle = a["segmentation"]
        if isinstance(rle, list):
            rle = mask_utils.merge(mask_utils.frPyObjects(rle, SIDE, SIDE))
            rle = {"size": rle["size"], "counts": rle["counts"].decode()}
        results.append({**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9, "segmentation": rle})
    return truth, results


# Ids, areas and classes


@pytest.mark.parametrize("first", [0, -1, -5, 10**18])
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_perfect_results_score_1_whatever_the_annotation_ids(tmp_path, first, kind):
    tree = _set(tmp_path, 3)
    for i, annotation in enumerate(tree["annotations"]):
        annotation["id"] = first + i
    dataset = load_dataset(_write(tmp_path, tree))
    found = score(*_perfect(dataset), kind)
    assert found.summary["AP"] == 1
    assert found.counts[0.5] == (3, 0, 0)
    assert [a["id"] for a in dataset.coco_dict["annotations"]] == [first, first + 1, first + 2]


@pytest.mark.parametrize("area", [-1, 0, float("nan"), float("inf"), 1e12, 10**400, "256", None, 5, True, [1]])
def test_an_area_that_is_not_the_masks_moves_no_object_to_another_size(tmp_path, area):
    tree = _set(tmp_path)
    tree["annotations"][0]["area"] = area
    dataset = load_dataset(_write(tmp_path, tree))
    assert [a["area"] for a in dataset.coco_dict["annotations"]] == [256, 256]
    found = score(*_perfect(dataset), "mask").summary
    assert (found["APs"], found["APm"], found["APl"]) == (1, -1, -1)


def test_a_stated_area_that_fits_is_kept(tmp_path):
    tree = _set(tmp_path)
    tree["annotations"][0]["area"] = 240.5
    assert load_dataset(_write(tmp_path, tree)).coco_dict["annotations"][0]["area"] == 240.5


@pytest.mark.parametrize("ids", [(0, 1), (2, 1), (1, 2)])
def test_two_categories_of_one_name_are_one_class(tmp_path, ids):
    tree = _set(tmp_path)
    tree["categories"] = [{"id": ids[0], "name": "thing"}, {"id": ids[1], "name": "thing"}, {"id": 7, "name": "other"}]
    tree["annotations"][1]["category_id"] = 7
    dataset = load_dataset(_write(tmp_path, tree))
    assert dict(zip(dataset.category_ids, dataset.class_names, strict=True)) == {1: "thing", 7: "other"}
    assert score(*_perfect(dataset), "mask").class_ap == pytest.approx({"thing": 1, "other": 1})
    assert dataset.warnings == {"duplicate-category-name": 1}
    found = examine(read_raw(_write(tmp_path, tree)))
    assert [c["id"] for c in found.categories] == [1, 7]


def test_scores_of_classes_of_one_name_are_told_apart():
    truth = {"images": [{"id": 1, "height": 8, "width": 8}], "annotations": [], "categories": []}
    truth["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]
    assert list(score(truth, [], "box").class_ap) == ["a (id 1)", "a (id 2)"]


@pytest.mark.parametrize("change", [float, lambda v: f"{v}", lambda v: f"{v:d}"])
def test_ids_and_sizes_that_went_through_tables_are_read(tmp_path, change):
    tree = _set(tmp_path)
    for record in tree["images"]:
        record |= {key: change(record[key]) for key in ("id", "height", "width")}
    for record in tree["annotations"]:
        record |= {key: change(record[key]) for key in ("id", "image_id", "category_id")}
    tree["categories"][0]["id"] = change(1)
    dataset = load_dataset(_write(tmp_path, tree))
    assert dataset.image_ids.tolist() == [1, 2]
    assert dataset.category_ids == [1]
    assert len(dataset.classes) == 2


@pytest.mark.parametrize("change", [lambda v: v + 2**100, lambda v: f"image {v}", lambda v: v + 0.5])
def test_other_ids_are_named_and_renumbered_by_the_doctor(tmp_path, change):
    tree = _set(tmp_path)
    for record, key in [(i, "id") for i in tree["images"]] + [(a, "image_id") for a in tree["annotations"]]:
        record[key] = change(record[key])
    path = _write(tmp_path, tree)
    with pytest.raises(DataError, match=r"images\[0\].*is not an integer id"):
        load_dataset(path)
    found = examine(read_raw(path))
    assert found.findings.counts() == {"unusable-id": 2}
    again = load_dataset(write_repaired(found, str(tmp_path / "copy")))
    assert len(again.classes) == 2


# Names of files


@pytest.mark.parametrize(
    ("on_disk", "stated"),
    [
        ("images/1.png", "images\\1.png"),
        ("1.png", "C:\\data\\set\\1.png"),
        ("1.png", "/home/me/set/1.png"),
        ("my photo é.png", "my%20photo%20%C3%A9.png"),
        ("é.png", unicodedata.normalize("NFD", "é.png")),
        (unicodedata.normalize("NFD", "é.png"), "é.png"),
        ("50%20.png", "50%20.png"),
    ],
)
def test_names_that_are_spelled_otherwise_find_their_file(tmp_path, on_disk, stated):
    tree = _set(tmp_path)
    os.makedirs((tmp_path / on_disk).parent, exist_ok=True)
    os.rename(tmp_path / "1.png", tmp_path / on_disk)
    tree["images"][0]["file_name"] = stated
    path = _write(tmp_path, tree)
    dataset = load_dataset(path)
    assert os.path.samefile(dataset.paths[0], tmp_path / on_disk)
    assert dataset.warnings == ({} if on_disk == stated else {"other-file-name": 1})
    found = examine(read_raw(path))
    assert set(found.findings.counts()) <= {"other-file-name"}
    assert len(load_dataset(write_repaired(found, str(tmp_path / "copy"))).classes) == 2


def test_a_file_that_two_names_may_mean_is_named_and_taken_for_none(tmp_path):
    tree = _set(tmp_path)
    os.rename(tmp_path / "1.png", tmp_path / "x.png")
    os.remove(tmp_path / "2.png")
    tree["images"][0]["file_name"], tree["images"][1]["file_name"] = "/cam1/x.png", "/cam2/x.png"
    with pytest.raises(DataError, match="the file is missing") as error:
        load_dataset(_write(tmp_path, tree))
    assert len(str(error.value).splitlines()) == 3
    tree["images"] = [{**tree["images"][0], "file_name": "X.PNG"}]
    with pytest.raises(DataError, match=r"missing; there is 'x\.png'"):
        load_dataset(_write(tmp_path, tree))


def test_two_records_of_a_file_are_said_by_the_loader_as_by_the_doctor(tmp_path):
    tree = _set(tmp_path, 3)
    tree["images"][2]["file_name"] = "./1.png"
    tree["images"].append({**tree["images"][0], "id": 9, "file_name": "gone.png"})
    tree["images"].append({**tree["images"][0], "id": 10, "file_name": "gone.png"})
    path = _write(tmp_path, tree)
    dataset = load_dataset(path, on_bad_record="skip")
    assert len(dataset) == 3
    assert dataset.warnings == {"duplicate-file-name": 1}  # of the images that are taken
    assert "1 x duplicate-file-name: two image records of the same file (images[2]" in dataset.summary()
    assert "./1.png is image 1 already" in dataset.summary()
    (first, _) = examine(read_raw(path)).findings.of("duplicate-file-name")
    assert first in dataset._findings.all


# Masks and boxes: (change of the first annotation, the code)

HOSTILE = {
    "outside": ({"segmentation": [[200, 200, 220, 200, 220, 220, 200, 220]]}, "mask-outside"),
    "above": ({"segmentation": [[-50, -50, -30, -50, -30, -30]]}, "mask-outside"),
    "far outside": ({"segmentation": [[1e9, 1e9, 1e9 + 5, 1e9, 1e9, 1e9 + 5]]}, "mask-outside"),
    "thin": ({"segmentation": [[16, 16, 32, 16, 32, 16.2, 16, 16.2]]}, "empty-mask"),
    "coordinate of 1e7": ({"segmentation": [[16, 16, 1e7, 16, 32, 32, 16, 32]]}, "long-polygon"),
    "coordinate of 1e8": ({"segmentation": [[16, 16, 32, 16, 32, 1e8, 16, 32]]}, "long-polygon"),
    "coordinate of -1e308": ({"segmentation": [[16, 16, -1e308, 16, 32, 32]]}, "bad-polygon"),
    "zigzag": ({"segmentation": [[0, 0, 64, 64, 3, 60] * 30_000]}, "long-polygon"),
    "400 digits": ({"segmentation": [[16, 16, 10**400, 16, 32, 32]]}, "bad-polygon"),
    "deep polygon": ({"segmentation": [[[[16, 16, 32, 16, 32, 32]]]]}, "bad-polygon"),
    "runs of 2^62": ({"segmentation": {"size": [64, 64], "counts": [2**62, 2**62, 2**62, 2**62 + 4096]}}, "bad-rle"),
    "runs of 2^100": ({"segmentation": {"size": [64, 64], "counts": [2**100, 4]}}, "bad-rle"),
    "text of long runs": ({"segmentation": {"size": [64, 64], "counts": "o" * 12 + "0"}}, "bad-rle"),
    "box of 400 digits": ({"bbox": [1, 1, 10**400, 5]}, "bad-box"),
    "box of lists": ({"bbox": [[], 1, 2, 3]}, "bad-box"),
    "corners": ({"bbox": [16, 16, 32, 32]}, "box-as-corners"),
    "shares": ({"bbox": [0.25, 0.25, 0.25, 0.25]}, "box-as-shares"),
    "no id": ({"id": []}, "bad-annotation-record"),
    "category of a list": ({"category_id": [1]}, "unknown-category"),
    "image of an object": ({"image_id": {}}, "unknown-image"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_loader_raises_what_the_doctor_finds(tmp_path, name):
    change, code = HOSTILE[name]
    tree = _set(tmp_path)
    tree["annotations"][0] |= copy.deepcopy(change)
    path = _write(tmp_path, tree)
    with pytest.raises(DataError) as error:
        load_dataset(path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"{path}: annotations[0]")
    assert len(lines) == 2
    assert len(lines[0]) < 500
    assert code in examine(read_raw(path)).findings.counts()
    kept = load_dataset(path, on_bad_record="skip")
    assert len(kept.classes) == 1
    assert kept.report == {code: 1}


def test_a_polygon_over_the_border_trains_the_mask_that_it_draws(tmp_path):
    tree = _set(tmp_path)
    tree["annotations"][0] |= {"segmentation": [[40, 16, 5000, 16, 5000, 32, 40, 32]], "bbox": [40, 16, 24, 16]}
    dataset = load_dataset(_write(tmp_path, tree))
    assert (dataset.masks(np.array([0]), 56) == 255).all()
    np.testing.assert_allclose(dataset.frames[0], [16, 40, 32, 64])
    assert dataset.warnings["polygon-over-border"] == 1


def test_polygons_that_add_nothing_are_left_out_and_the_object_kept(tmp_path):
    tree = _set(tmp_path)
    tree["annotations"][0]["segmentation"] += [[1, 1, 5, 5, 9, 9], [500, 500, 510, 500, 510, 510]]
    dataset = load_dataset(_write(tmp_path, tree))
    assert len(dataset.segmentations[0]) == 1
    assert dataset.warnings == {"needless-polygon": 1, "polygon-over-border": 1}


def test_small_objects_in_large_images_are_not_flat(tmp_path):
    Image.new("L", (20000, 10)).save(tmp_path / "1.png")
    tree = _set(tmp_path, 1)
    Image.new("L", (20000, 10)).save(tmp_path / "1.png")
    tree["images"][0] |= {"height": 10, "width": 20000}
    polygon = [19990, 4, 19991.5, 4, 19991.5, 6, 19990, 6]
    tree["annotations"][0] |= {"segmentation": [polygon], "bbox": [19990, 4, 1.5, 2], "area": 3}
    assert len(load_dataset(_write(tmp_path, tree)).classes) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1000 + "]" * 1000,
        '{"images": ' + "[" * 5000 + "]" * 5000 + "}",
        '{"images": [' + "9" * 5000 + "]}",
        '{"images": [1], "annotations": [1], "categories": [1]}',
        '{"images": [[[]]], "annotations": [null], "categories": [[]]}',
    ],
)
def test_trees_of_any_depth_are_one_line(tmp_path, text):
    path = _write(tmp_path, text)
    with pytest.raises(DataError) as error:
        load_dataset(path)
    assert str(error.value).startswith(path)
    assert all(len(line) < 500 for line in str(error.value).splitlines())


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "folder", "pipe", "/dev/zero", "x" * 5000, "a\nb.png"])
def test_names_that_are_no_image_files(tmp_path, name):
    tree = _set(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    tree["images"][0]["file_name"] = name
    path = _write(tmp_path, tree)
    with pytest.raises(DataError) as error:
        load_dataset(path)
    assert len(str(error.value).splitlines()) == 2
    str(error.value).encode()
    assert "images[0]" in str(error.value)
    assert len(examine(read_raw(path)).images) == 1


def test_run_lengths_beyond_64_bits_do_not_wrap():
    with pytest.raises(ValueError, match="beyond any image"):
        rle_counts("o" * 12 + "0")


def test_damage_that_only_decoding_shows_is_found_by_the_doctor(tmp_path):
    path = _write(tmp_path, _set(tmp_path))
    data = bytearray((tmp_path / "1.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "1.png").write_bytes(data)
    found = examine(read_raw(path))
    assert found.findings.counts() == {"truncated-image": 1}
    assert "1.png" in found.findings.all[0].place
