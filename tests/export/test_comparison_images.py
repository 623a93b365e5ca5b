"""Which images an exported model is compared on, by what there is."""

import json

import pytest
from PIL import Image

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.errors import DataError
from kmaskrcnn.export.comparison_images import comparison_images, readable
from kmaskrcnn.results.labels import Labels
from tests.export.images import encode, picture

LABELS = Labels(("apple",), (1,))


def make_set(folder):
    """A set of two images, as the settings of a split."""
    folder.mkdir()
    images, annotations = [], []
    for number in range(2):
        (folder / f"{number}.png").write_bytes(encode(picture(64, 96, number)))
        images.append({"id": number + 5, "file_name": f"{number}.png", "height": 64, "width": 96})
        box = {"bbox": [8, 8, 40, 30], "area": 1200, "segmentation": [[8, 8, 48, 8, 48, 38, 8, 38]]}
        annotations.append({"id": number + 1, "image_id": number + 5, "category_id": 1, "iscrowd": 0, **box})
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "apple"}]}
    (folder / "set.json").write_text(json.dumps(tree))
    return {"annotations": str(folder / "set.json"), "images": str(folder)}


def settings(split, found):
    return {f"{split}_{name}": value for name, value in found.items()}


def test_the_best_that_there_is(tmp_path):
    train, val = make_set(tmp_path / "train"), make_set(tmp_path / "val")
    both = Config().replace(**settings("train", train), **settings("val", val))
    found = comparison_images(both, LABELS, [], ["c.png"], 50, str(tmp_path))
    assert found.about == "the validation set" and found.truth[1].tolist() == [5, 6]
    assert found.paths == [str(tmp_path / "val" / f"{number}.png") for number in range(2)]
    assert comparison_images(both, LABELS, [train["images"]], [], 1, "").paths == [str(tmp_path / "train" / "0.png")]
    only_train = Config().replace(**settings("train", train))
    found = comparison_images(only_train, LABELS, [], [], 1, str(tmp_path))
    assert found.about == "the training set" and found.truth[1].tolist() == [5]
    assert comparison_images(only_train, LABELS, [], ["c.png", "d.png"], 1, "").paths == ["c.png"]


def test_drawn_images_where_there_is_nothing_or_the_set_has_moved(tmp_path):
    moved = Config().replace(train_annotations=str(tmp_path / "gone.json"))
    nothing = Config().replace(train_annotations="")
    drawn = [comparison_images(config, LABELS, [], [], 50, str(tmp_path)) for config in (moved, nothing)]
    for found in drawn:
        assert found.drawn and found.truth is None and len(found.paths) == 4
    pixels = [[Image.open(path).tobytes() for path in found.paths] for found in drawn]
    assert pixels[0] == pixels[1] and len(set(pixels[0])) == 4  # always the same four


def test_what_cannot_be_read_is_named_and_left_out(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(encode(picture(), "JPEG")[:-200])
    (tmp_path / "b.png").write_bytes(encode(picture()))
    assert readable("verify_images", [str(tmp_path)], 50) == [str(tmp_path / "b.png")]
    assert capsys.readouterr().out.startswith(f"skipped: {tmp_path / 'a.jpg'}: truncated or damaged image")
    with pytest.raises(ConfigError, match="--calibration_images: none of the images can be read"):
        readable("calibration_images", [str(tmp_path / "a.jpg")], 50)


def test_a_set_of_other_classes_is_refused(tmp_path):
    """The AP of both would be wrong alike, so that nothing could be said of what is lost."""
    config = Config().replace(**settings("val", make_set(tmp_path / "val")))
    with pytest.raises(DataError, match="category 1 'apple' is 'pear' in the model"):
        comparison_images(config, Labels(("pear", "apple"), (1, 2)), [], [], 50, str(tmp_path))
