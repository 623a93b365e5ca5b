"""The doctor, on a set that this test breaks in every way it knows, and on whole ones."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from kmaskrcnn.config import Config
from kmaskrcnn.data import load_coco, make_shapes, open_raw
from kmaskrcnn.data.doctor.examine import examine, examine_pair, usable_labels
from kmaskrcnn.data.doctor.repair import write_repaired
from kmaskrcnn.data.doctor.report import report_page
from kmaskrcnn.data.doctor.statistics import coverage, measure
from kmaskrcnn.data.readers import read_raw
from kmaskrcnn.data.readers.write_tfrecord import write_shards
from kmaskrcnn.data.sets.check_mask import find_crossing
from kmaskrcnn.data.sets.defects import DEFECTS
from kmaskrcnn.evaluation import check_categories
from kmaskrcnn.outputs import OutputError
from kmaskrcnn.results.labels import Labels
from tests.processes import run_program, run_python

HEIGHT, WIDTH = 60, 80


def _picture(seed, size=(HEIGHT, WIDTH)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8))


def _rle(y0, x0, y1, x1, size=(HEIGHT, WIDTH)):
    mask = np.zeros(size, np.uint8, order="F")
    mask[y0:y1, x0:x1] = 1
    rle = mask_utils.encode(mask)
    return {"size": list(size), "counts": rle["counts"].decode()}


class _Breaker:
    """A whole COCO set to which broken records are added, each under the defect that should be found."""

    def __init__(self, folder):
        self.folder = folder
        self.tree = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        self.expected: list[tuple[str, str]] = []  # (code, a word of the place)

    def image(self, name, seed=None, size=(HEIGHT, WIDTH), save=True, **changes):
        number = len(self.tree["images"]) + 1
        if save:
            _picture(number if seed is None else seed, size).save(self.folder / name)
        self.tree["images"].append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, **changes})
        return number

    def annotation(self, image, box=(10, 12, 30, 20), **changes):
        x, y, w, h = box
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        record = {
            "id": len(self.tree["annotations"]) + 1,
            "image_id": image,
            "category_id": 1 + len(self.tree["annotations"]) % 2,
            "iscrowd": 0,
            "area": w * h,
            "bbox": list(box),
            "segmentation": [polygon],
        }
        self.tree["annotations"].append({k: v for k, v in {**record, **changes}.items() if v != "none"})
        return record["id"]

    def broken(self, code, image, **changes):
        """One whole annotation elsewhere in the image beside the broken one."""
        self.expected.append((code, f"(id {self.annotation(image, **changes)}"))

    def write(self):
        path = self.folder / "instances.json"
        path.write_text(json.dumps(self.tree))
        return str(path)


def _break_everything(folder):
    """The set and the codes expected: 40 and more defects, each in a record of its own."""
    b = _Breaker(folder)
    whole = b.image("whole.png")
    b.annotation(whole)
    other = b.image("other.jpg")
    b.annotation(other)
    expect = b.expected.append
    # Files.
    b.annotation(b.image("gone.png", save=False))
    expect(("missing-image", "gone.png"))
    (folder / "empty.png").write_bytes(b"")
    b.annotation(b.image("empty.png", save=False))
    expect(("empty-image-file", "empty.png"))
    (folder / "text.png").write_text("hello")
    b.annotation(b.image("text.png", save=False))
    expect(("not-an-image", "text.png"))
    for name in ("cut.png", "cut.jpg"):
        b.annotation(b.image(name))
        (folder / name).write_bytes((folder / name).read_bytes()[: -4000 if name == "cut.png" else -1500])
        expect(("truncated-image", name))
    b.annotation(b.image("other_size.png", height=HEIGHT - 1))
    expect(("image-size-differs", "other_size.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture(71, (WIDTH, HEIGHT)).save(folder / "turned.jpg", exif=exif, quality=95)
    b.annotation(b.image("turned.jpg", save=False))  # annotated upright, as most tools show it
    expect(("exif-rotation", "turned.jpg"))
    _picture(72).save(folder / "tagged.jpg", exif=exif)
    b.annotation(b.image("tagged.jpg", save=False))  # annotated as stored
    expect(("exif-rotation-ignored", "tagged.jpg"))
    b.annotation(b.image("twin.png", seed=whole))
    expect(("duplicate-content", "twin.png"))
    _picture(73).save(folder / "wrong.jpg", "PNG")
    b.annotation(b.image("wrong.jpg", save=False))
    expect(("wrong-file-ending", "wrong.jpg"))
    _picture(74).convert("RGBA").save(folder / "clear.png")
    b.annotation(b.image("clear.png", save=False))
    expect(("unusual-pixels", "clear.png"))
    _picture(75).save(folder / "stray.png")
    expect(("unlisted-image", "stray.png"))
    b.image("nothing.png")
    expect(("image-without-objects", "nothing.png"))
    # Image records.
    b.tree["images"].append({"id": 900, "height": 3})
    expect(("bad-image-record", f"images[{len(b.tree['images']) - 1}]"))
    b.image("same_id.png", id=whole)
    expect(("duplicate-image-id", f"images[{len(b.tree['images']) - 1}]"))
    (folder / "same_id.png").unlink()
    second = b.image("whole.png", save=False)
    b.annotation(second, box=(50, 5, 20, 20))
    expect(("duplicate-file-name", f"images[{len(b.tree['images']) - 1}]"))
    # Classes.
    for record, code in (
        ({"name": "cow"}, "bad-category"),
        ({"id": 1, "name": "cow"}, "duplicate-category-id"),
        ({"id": 3, "name": "dog"}, "duplicate-category-name"),
        ({"id": 4, "name": "Dog "}, "similar-category-names"),
    ):
        b.tree["categories"].append(record)
        expect((code, f"categories[{len(b.tree['categories']) - 1}]"))
    expect(("unused-category", "'Dog'"))
    # Annotations: each in an image of its own with a whole one, so that it is looked at by itself.
    number = iter(range(100))

    def host():
        image = b.image(f"host{next(number)}.png", seed=200 + len(b.tree["images"]))
        b.annotation(image, box=(50, 35, 20, 20))
        return image

    b.tree["annotations"].append({"image_id": whole})
    expect(("bad-annotation-record", f"annotations[{len(b.tree['annotations']) - 1}]"))
    b.tree["annotations"].append("text")
    expect(("bad-annotation-record", f"annotations[{len(b.tree['annotations']) - 1}]"))
    b.annotation(host(), id=1)
    expect(("duplicate-annotation-id", f"annotations[{len(b.tree['annotations']) - 1}]"))
    b.broken("unknown-image", 5000)
    b.broken("unknown-category", host(), category_id=77)
    b.broken("bad-iscrowd", host(), iscrowd="yes")
    b.broken("crowd", host(), iscrowd=1, segmentation=_rle(12, 10, 32, 40))
    b.broken("bad-box", host(), bbox=[1, 2, 3])
    b.broken("bad-box", host(), bbox="none")
    b.broken("bad-box", host(), bbox=[1, 2, float("nan"), 3])
    b.broken("box-without-area", host(), bbox=[10, 12, 0, 20])
    b.broken("box-outside", host(), bbox=[WIDTH + 5, 12, 30, 20])
    b.broken("box-over-border", host(), box=(60, 5, 20, 20), bbox=[60, 5, 40, 20])
    b.broken("box-as-corners", host(), bbox=[10, 12, 40, 32])
    b.broken("box-as-shares", host(), bbox=[10 / WIDTH, 12 / HEIGHT, 30 / WIDTH, 20 / HEIGHT])
    b.broken("box-mask-differ", host(), bbox=[14, 20, 30, 20])
    b.broken("no-segmentation", host(), segmentation="none")
    b.broken("no-segmentation", host(), segmentation=[])
    b.broken("odd-polygon", host(), segmentation=[[1, 1, 9, 1, 9]])
    b.broken("short-polygon", host(), segmentation=[[10, 12, 40, 12, 40, 32, 10, 32], [1, 1, 9, 9]])
    b.broken("bad-polygon", host(), segmentation=[["a", 1, 9, 1, 9, 9]])
    b.broken("bad-polygon", host(), segmentation=[[1, 1, 9, float("inf"), 9, 9]])
    b.broken("flat-polygon", host(), segmentation=[[1, 1, 5, 5, 9, 9]])
    b.broken("crossing-polygon", host(), segmentation=[[10, 12, 40, 32, 40, 12, 10, 32]], area=300)
    b.broken(
        "polygon-over-border", host(), segmentation=[[60, 5, 95, 5, 95, 25, 60, 25]], bbox=[60, 5, 20, 20], area=400
    )
    b.broken("mask-outside", host(), segmentation=[[90, 5, 99, 5, 99, 25]])
    b.broken("rle-size-differs", host(), segmentation=_rle(1, 1, 9, 9, (WIDTH, HEIGHT)))
    b.broken("bad-rle", host(), segmentation={"size": [HEIGHT, WIDTH], "counts": "\x01\x7f"})
    b.broken("bad-rle", host(), segmentation={"size": [HEIGHT, WIDTH], "counts": [3, 4]})
    b.broken("empty-mask", host(), segmentation=_rle(0, 0, 0, 0))
    b.broken("tiny-mask", host(), box=(10, 12, 1, 2), segmentation=_rle(12, 10, 14, 11))
    b.broken("area-differs", host(), area=5)
    image = host()
    b.annotation(image, category_id=1)
    b.broken("duplicate-instance", image, category_id=1)
    return b


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    breaker = _break_everything(folder)
    return breaker, read_raw(breaker.write())


def test_every_defect_is_found_and_named_and_no_other(broken):
    breaker, raw = broken
    train, _ = examine_pair(raw, None)
    found = [(f.code, f.place) for f in train.findings.all]
    assert len({code for code, _ in breaker.expected}) >= 40
    for code, word in breaker.expected:
        assert any(c == code and word in place for c, place in found), (code, word)
    hosts_alone = {code for code, _ in breaker.expected} - {"unreadable-record", "leak"}
    assert {c for c, _ in found} == hosts_alone
    counts = train.findings.counts()
    extra = len(found) - len(breaker.expected)
    assert extra == 0, [f for f in found if not any(c == f[0] and w in f[1] for c, w in breaker.expected)]
    text = train.findings.text()
    for code in counts:
        assert f"x {code}: {DEFECTS[code].title}" in text


def test_the_repaired_copy_has_no_errors_and_loads(broken, tmp_path):
    breaker, raw = broken
    train, _ = examine_pair(raw, None)
    path = write_repaired(train, str(tmp_path))
    dataset = load_coco(path)  # raises on any bad record
    assert len(dataset) == len(train.images)
    again = examine(read_raw(path))
    left = {f.code for f in again.findings.all}
    assert left <= {
        "wrong-file-ending",
        "unusual-pixels",
        "image-without-objects",
        "similar-category-names",
        "unused-category",
        "crowd",
        "tiny-mask",
    }
    upright = dataset.file_names.index("images/turned.jpg")
    assert dataset.sizes[upright].tolist() == [HEIGHT, WIDTH]
    stored = np.asarray(Image.open(breaker.folder / "turned.jpg").transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(dataset.image(upright).astype(int) - stored).mean() < 12  # noise through JPEG once more
    with Image.open(breaker.folder / "tagged.jpg") as old, Image.open(tmp_path / "images/tagged.jpg") as new:
        assert new.getexif().get(0x0112, 1) == 1
        np.testing.assert_array_equal(np.asarray(new), np.asarray(old))  # the tag went, the image is as it was
    # The objects of the second record of a file are the file's.
    assert len(dataset.instances(dataset.file_names.index("images/whole.png"))["boxes"]) == 2


def test_leaks_are_found_by_content_and_left_out(tmp_path):
    folders = []
    for name, seeds in (("train", (1, 2, 3)), ("val", (4, 2))):
        folder = tmp_path / name
        folder.mkdir()
        b = _Breaker(folder)
        for seed in seeds:
            b.annotation(b.image(f"{name}{seed}.png", seed=seed))
        folders.append(b.write())
    train, val = examine_pair(*map(read_raw, folders))
    assert [f.code for f in train.findings.all if f.code == "leak"] == ["leak"]
    assert "train2.png" in train.findings.of("leak")[0].place
    assert "val2.png" in train.findings.of("leak")[0].detail
    assert [i.record["file_name"] for i in train.images] == ["train1.png", "train3.png"]
    assert {a.record["image_id"] for a in train.annotations} == {1, 3}
    assert len(val.images) == 2


def test_a_whole_set_has_nothing_but_notes(tmp_path):
    path = make_shapes(tmp_path, 6, 96, seed=3)
    found = examine(read_raw(path))
    assert {DEFECTS[f.code].grade for f in found.findings.all} <= {"note"}
    assert len(found.images) == 6
    shards = tmp_path / "shards"
    dataset = load_coco(path)
    write_shards(dataset, str(shards), shards=2)
    in_shards = examine(read_raw(str(shards)))
    assert [i.content for i in in_shards.images] == [i.content for i in found.images]
    again = load_coco(write_repaired(in_shards, str(tmp_path / "copy")))
    np.testing.assert_array_equal(again.image(4), dataset.image(4))


def test_records_that_a_reader_cannot_use_are_findings(tmp_path):
    _picture(0).save(tmp_path / "a.png")
    shape = {"label": "cat", "points": [[1, 2]], "shape_type": "point"}
    good = {"label": "cat", "points": [[10, 12], [40, 32]], "shape_type": "rectangle"}
    tree = {"imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": [shape, good]}
    (tmp_path / "a.json").write_text(json.dumps(tree))
    found = examine(read_raw(str(tmp_path)))
    assert [f.code for f in found.findings.all] == ["unreadable-record"]
    assert found.findings.all[0].place == "a.json: shapes[0] (cat)"
    assert len(found.annotations) == 1


@pytest.mark.parametrize(
    ("points", "crosses"),
    [
        ([(0, 0), (4, 0), (4, 4), (0, 4)], False),
        ([(0, 0), (4, 4), (4, 0), (0, 4)], True),
        ([(0, 0), (4, 0), (4, 4), (2, 0), (0, 4)], False),  # touches an edge from inside
        ([(0, 0), (8, 0), (8, 2), (2, 2), (2, 4), (8, 4), (8, 6), (0, 6)], False),
        ([(0, 0), (8, 0), (8, 5), (2, 5), (2, 3), (9, 3), (9, 6), (0, 6)], True),
    ],
)
def test_crossing_polygons(points, crosses):
    assert (find_crossing(np.array(points, float)) is not None) == crosses


def test_coverage_and_the_page(tmp_path):
    b = _Breaker(tmp_path)
    for i in range(6):
        image = b.image(f"{i}.png")
        for k in range(5):
            b.annotation(image, box=(3 + 16 * k, 11 + 4 * i, 10, 10))
    found = examine(read_raw(b.write()))
    config = Config().replace(resize_mode="native", anchor_sizes=(10, 20, 40, 80, 160))
    statistics = measure(found, config.data)
    published = coverage(statistics, config, (32, 64, 128, 256, 512), (0.5, 1.0, 2.0))
    assert published.unmatched == 1.0
    own = coverage(statistics, config, config.model.anchor_sizes, (0.5, 1.0, 2.0))
    assert own.unmatched == 0.0
    assert own.mean > 0.9
    page = report_page(found, None, config, ["--anchor_sizes=10,20,40,80,160"])
    assert page.count("data:image/jpeg;base64,") == 6
    assert "http" not in page.replace("http-equiv", "")
    for words in ("cat", "--anchor_sizes=", "0 errors", "the published"):
        assert words in page


def test_the_command_as_a_user_starts_it(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    b = _Breaker(folder)
    b.annotation(b.image("a.png"))
    b.broken("box-without-area", b.image("b.png"), bbox=[3, 3, 0, 1])
    command = ["-m", "kmaskrcnn", "doctor", f"--train_annotations={b.write()}"]
    command += [f"--report={tmp_path}/report.html", f"--repair={tmp_path}/repaired", "--max_instances=4"]
    command += [f"--write_flagfile={tmp_path}/mine.flags"]
    result = run_python(*command)
    assert result.returncode == 1, result.stderr
    assert "1 x box-without-area" in result.stdout
    assert f"--train_annotations={tmp_path}/repaired/train/instances.json" in result.stdout
    lines = (tmp_path / "mine.flags").read_text().splitlines()
    assert "--max_instances=4" in lines  # what is given stays as it is
    assert any(line.startswith("--anchor_sizes=") for line in lines)
    assert all(line in result.stdout for line in lines)
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert len(load_coco(tmp_path / "repaired/train/instances.json").classes) == 2
    bad = run_program(*command[:3], "--train_annotations=none.json")
    assert bad.returncode == 2
    errors = [line for line in bad.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: none.json: no such annotation file or folder"]


@pytest.mark.parametrize("form", ["labelme", "coco"])
def test_a_repaired_pair_has_the_ids_of_its_training_set(tmp_path, form):
    """Files that give names alone are numbered by the names that occur; the validation set has no dog."""
    for split, labels in (("train", ["cat", "dog", "fox"]), ("val", ["cat", "fox"])):
        folder = tmp_path / split
        folder.mkdir()
        _picture(len(labels)).save(folder / "a.png")
        shapes = [
            {"label": label, "points": [[5 + 20 * i, 5], [15 + 20 * i, 25]], "shape_type": "rectangle"}
            for i, label in enumerate(labels)
        ]
        tree = {"shapes": shapes, "imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (folder / "a.json").write_text(json.dumps(tree))
    train = tmp_path / "train"
    if form == "coco":
        b = _Breaker(train)
        b.tree["categories"] = [{"id": i, "name": n} for i, n in ((30, "fox"), ("9", "dog"), (None, ""), (7, "cat"))]
        image = b.image("b.png")
        for number, category in enumerate((30, "9", 7)):
            b.annotation(image, box=(3 + 20 * number, 5, 10, 12), category_id=category)
        train = b.write()
    places = [f"--train_annotations={train}", f"--val_annotations={tmp_path}/val", f"--repair={tmp_path}/repaired"]
    result = run_program("-m", "kmaskrcnn", "doctor", *places)
    assert result.returncode == (form == "coco"), result.stderr  # a category without a name
    first, second = (load_coco(tmp_path / f"repaired/{split}/instances.json") for split in ("train", "val"))
    check_categories(Labels(tuple(first.class_names), tuple(first.category_ids)), second)
    assert [second.class_names[i - 1] for i in second.classes] == ["cat", "fox"]


def test_a_training_set_without_classes_leaves_the_other_its_own(tmp_path):
    for split, shapes in (("train", []), ("val", [{"label": "cat", "points": [[5, 5], [15, 25]]}])):
        (tmp_path / split).mkdir()
        _picture(1 + len(shapes)).save(tmp_path / split / "a.png")
        tree = {"imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        tree["shapes"] = [{**shape, "shape_type": "rectangle"} for shape in shapes]
        (tmp_path / split / "a.json").write_text(json.dumps(tree))
    config = Config().replace(train_annotations=str(tmp_path / "train"), val_annotations=str(tmp_path / "val"))
    labels = usable_labels(open_raw(config, "train"))
    assert open_raw(config, "val", labels).categories == [{"id": 1, "name": "cat"}]


def test_a_repair_leaves_the_set_alone(tmp_path):
    breaker = _Breaker(tmp_path / "train/images")
    breaker.folder.mkdir(parents=True)
    for name in ("a.png", "A.png"):
        breaker.annotation(breaker.image(name))
    path = tmp_path / "train" / "instances.json"
    path.write_text(json.dumps(breaker.tree))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    examined = examine(read_raw(str(path), str(breaker.folder)))
    with pytest.raises(OutputError, match=r"instances\.json: is an input"):
        write_repaired(examined, str(tmp_path / "train"))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before
    for _ in range(2):
        write_repaired(examined, str(tmp_path / "fixed"))
    assert {p.name for p in (tmp_path / "fixed/images").iterdir()} == {"a.png", "A_2.png"}
    Image.new("RGB", (9, 9)).save(tmp_path / "fixed/images/a.png")
    with pytest.raises(OutputError, match=r"a\.png: already exists"):
        write_repaired(examined, str(tmp_path / "fixed"))
