"""Predictions as files, read back by other means."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from kmaskrcnn.config import ConfigError
from kmaskrcnn.outputs import OutputError
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.pasted_masks import PastedMasks
from kmaskrcnn.results.prediction import Prediction
from kmaskrcnn.results.writers import OUTPUTS, Writer, csv_rows, instance_mask_image, mask_polygons

LABELS = Labels(("apple", "pear"), (3, 10))


def _disc(size, radius, center):
    y, x = np.mgrid[:size, :size] + 0.5
    return np.hypot(y - center[0], x - center[1]) < radius


@pytest.fixture
def prediction():
    """A disc, and a pear in two parts, one of which the disc covers a little."""
    pear = _disc(80, 8, (20, 60)) | _disc(80, 8, (60, 30))
    windows = [(_disc(80, 15, (40, 30)), 0, 0), (pear, 0, 0)]
    boxes = np.array([[25, 15, 55, 45], [12, 22, 68, 68]], np.float32)
    scores, classes = np.array([0.9, 0.6], np.float32), np.array([1, 2], np.int32)
    image = np.full((80, 80, 3), 90, np.uint8)
    return Prediction(80, 80, boxes, scores, classes, None, LABELS, image=image, pasted=PastedMasks(windows))


def test_every_output_holds_the_objects(prediction, tmp_path):
    picture = tmp_path / "pictures" / "a.png"
    picture.parent.mkdir()
    Image.fromarray(prediction.image).save(picture)
    writer = Writer(tmp_path / "out", OUTPUTS, LABELS)
    files = writer.add(str(picture), "deep/a", prediction) + writer.close()
    names = [str(f.relative_to(tmp_path / "out")) for f in files]
    assert names == ["deep/a.png", "deep/a_masks.png", "labelme/deep__a.json", "results.json", "objects.csv"]

    numbers = np.asarray(Image.open(tmp_path / "out/deep/a_masks.png"))
    np.testing.assert_array_equal(numbers, prediction.instance_mask())

    coco = COCO(tmp_path / "out/results.json")
    assert [coco.cats[a["category_id"]]["name"] for a in coco.anns.values()] == ["apple", "pear"]
    for index, annotation in enumerate(coco.anns.values()):
        np.testing.assert_array_equal(coco.annToMask(annotation), prediction.mask(index))

    tree = json.loads((tmp_path / "out/labelme/deep__a.json").read_text())
    assert (tree["imageHeight"], tree["imageWidth"]) == (80, 80)
    assert (tmp_path / "out/labelme" / tree["imagePath"]).resolve() == picture
    assert [(s["label"], s["group_id"]) for s in tree["shapes"]] == [("apple", None), ("pear", 2), ("pear", 2)]
    for index, label in enumerate(("apple", "pear")):
        polygons = [np.ravel(s["points"]).tolist() for s in tree["shapes"] if s["label"] == label]
        rle = mask_utils.merge(mask_utils.frPyObjects(polygons, 80, 80))
        own = mask_utils.encode(np.asfortranarray(prediction.mask(index), np.uint8))
        assert mask_utils.iou([rle], [own], [0])[0, 0] > 0.93
        assert max(map(len, polygons)) < 60  # few enough points to move by hand

    rows = list(csv.DictReader((tmp_path / "out/objects.csv").read_text().splitlines()))
    assert [(r["class"], int(r["instance"]), int(r["mask_area"])) for r in rows] == [
        ("apple", 1, prediction.mask(0).sum()),
        ("pear", 2, prediction.mask(1).sum()),
    ]
    assert float(rows[0]["mask_share"]) == pytest.approx(prediction.mask(0).mean(), abs=1e-6)
    assert [float(rows[0][k]) for k in ("x0", "y0", "x1", "y1")] == [15, 25, 45, 55]
    assert [row["mask_score"] for row in rows] == ["", ""]
    scored = dataclasses.replace(prediction, mask_scores=np.array([0.71239, 0.3], np.float32))
    assert [row[-1] for row in csv_rows("a.png", scored)] == ["0.7124", "0.3000"]


def test_labelme_files_are_a_training_set(prediction, tmp_path):
    from kmaskrcnn.data import load_dataset

    Image.fromarray(prediction.image).save(tmp_path / "a.png")
    writer = Writer(tmp_path / "out", ["labelme", "coco", "masks"], LABELS)
    writer.add(str(tmp_path / "a.png"), "a", prediction)
    writer.close()
    dataset = load_dataset(str(tmp_path / "out" / "labelme"))
    assert dataset.class_names == ["apple", "pear"]
    assert [dataset.class_names[c - 1] for c in dataset.classes] == ["apple", "pear"]  # the pear's parts are one
    np.testing.assert_allclose(dataset.boxes, [[25, 15, 55, 45], [12, 22, 68, 68]], atol=1)
    again = load_dataset(str(tmp_path / "out" / "results.json"), str(tmp_path))
    assert len(again.classes) == 2


def test_pictures_without_objects_are_written_too(prediction, tmp_path):
    empty = dataclasses.replace(prediction.above(1.0))
    writer = Writer(tmp_path, OUTPUTS, LABELS)
    writer.add("a.png", "a", empty)
    writer.close()
    assert json.loads((tmp_path / "results.json").read_text())["images"][0]["file_name"] == "a.png"
    assert json.loads((tmp_path / "labelme/a.json").read_text())["shapes"] == []
    assert np.asarray(Image.open(tmp_path / "a_masks.png")).max() == 0
    assert len((tmp_path / "objects.csv").read_text().splitlines()) == 1


def test_unknown_outputs_are_named(tmp_path):
    with pytest.raises(ConfigError, match="outputs=overlay,gif: choose some of overlay, masks, coco, labelme, csv"):
        Writer(tmp_path, ["overlay", "gif"], LABELS)
    with pytest.raises(ConfigError, match="outputs="):
        Writer(tmp_path, [], LABELS)


def test_masks_of_more_than_255_instances_are_not_cut(tmp_path):
    numbers = np.arange(400, dtype=np.int32).reshape(20, 20)
    instance_mask_image(numbers).save(tmp_path / "many.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "many.png")), numbers)


def test_polygons_are_the_outer_outlines():
    mask = np.zeros((12, 10), bool)
    mask[2:10, 1:9] = True
    mask[4:7, 4:7] = False  # a hole
    mask[11, 9] = True  # a part of one pixel
    polygons = sorted(mask_polygons(mask), key=len)
    assert len(polygons) == 2
    picture = Image.new("1", (100, 120))
    for polygon in polygons:
        ImageDraw.Draw(picture).polygon([tuple(p) for p in (polygon * 10).tolist()], fill=1)
    drawn = np.asarray(picture).reshape(12, 10, 10, 10).mean((1, 3))
    mask[4:7, 4:7] = True
    np.testing.assert_array_equal(drawn[mask] > 0.4, True)
    np.testing.assert_array_equal(drawn[~mask] < 0.1, True)
    assert mask_polygons(np.zeros((3, 3), bool)) == []
    full = mask_polygons(np.ones((4, 5), bool))
    assert len(full) == 1
    assert full[0].min() >= 0
    assert full[0].max(0).tolist() == [5, 4]


def test_large_overlays_are_jpeg_files(prediction, tmp_path):
    large = dataclasses.replace(prediction, image=np.full((2200, 2000, 3), 90, np.uint8), height=2200, width=2000)
    writer = Writer(tmp_path, ["overlay", "masks"], LABELS)
    files = writer.add("a.png", "a", large) + writer.add("b.png", "b", prediction)
    assert [f.name for f in files] == ["a.jpg", "a_masks.png", "b.png", "b_masks.png"]
    assert [Image.open(f).format for f in files] == ["JPEG", "PNG", "PNG", "PNG"]


def test_files_in_the_way_are_told_before_the_work(prediction, tmp_path):
    for name in ("a.png", "b.jpg", "c_masks.png", "labelme/d.json", "v.mp4", "labelme/x__y.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    writer = Writer(tmp_path, ["overlay", "masks", "labelme"], LABELS)
    for name, is_video in (("a", False), ("b", False), ("c", False), ("d", False), ("v", True), ("x/y", False)):
        with pytest.raises(OutputError, match="already exists"):
            writer.check([(name, is_video)])
    writer.check([("v", False), ("a", True)])
    with pytest.raises(OutputError, match=r"a\.png: already exists"):
        writer.add("a.png", "a", prediction)
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(OutputError, match=r"results\.json: already exists"):
        Writer(tmp_path, ["coco"], LABELS)
    Writer(tmp_path, ["csv"], LABELS)


def test_results_of_other_images_are_kept_under_another_name(prediction, tmp_path):
    def run(*names):
        writer = Writer(tmp_path, ["coco", "csv"], LABELS)
        for name in names:
            writer.add(name, name, prediction)
        writer.close()
        return [path.removeprefix(f"{tmp_path}/") for path in writer.set_aside]

    def images(file):
        return {image["file_name"] for image in json.loads((tmp_path / file).read_text())["images"]}

    assert run("a.jpg", "b.jpg") == run("a.jpg", "b.jpg") == []  # the same again replaces
    assert run("c.jpg") == ["results-1.json", "objects-1.csv"]
    assert images("results-1.json") == {"a.jpg", "b.jpg"}
    assert images("results.json") == {"c.jpg"}
    assert run("c.jpg", "d.jpg") == []
    assert run("e.jpg") == ["results-2.json", "objects-2.csv"]
    with open(tmp_path / "objects-2.csv", newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} == {"c.jpg", "d.jpg"}
