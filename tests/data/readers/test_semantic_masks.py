"""Masks of classes: their connected components, how they are told from masks of objects, and what is lost in JPEG."""

import numpy as np
import pytest
from PIL import Image

from kmaskrcnn.data import DataError, load_dataset
from kmaskrcnn.data.doctor.examine import examine
from kmaskrcnn.data.doctor.repair import write_repaired
from kmaskrcnn.data.readers import read_raw
from kmaskrcnn.data.readers.components import count_scattered, label_components

SIDE = 64


def _flooded(indices):
    """Component numbers in the order of their first pixels, by flooding from each pixel."""
    labels, values = np.zeros(indices.shape, np.int64), []
    for start in zip(*np.nonzero(indices), strict=True):
        if labels[start]:
            continue
        values.append(indices[start])
        stack = [start]
        while stack:
            y, x = stack.pop()
            inside = 0 <= y < indices.shape[0] and 0 <= x < indices.shape[1]
            if inside and not labels[y, x] and indices[y, x] == values[-1]:
                labels[y, x] = len(values)
                stack += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return labels, values


@pytest.mark.parametrize("seed", range(24))
def test_components_are_those_of_flooding(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 30, 2))
    indices = rng.integers(0, 2 + seed % 3, shape) * (rng.random(shape) < (0.3, 0.6, 1.0)[seed % 3]) * 255
    labels, values = label_components(indices)
    expected, expected_values = _flooded(indices)
    np.testing.assert_array_equal(labels, expected)
    assert values.tolist() == expected_values


def test_a_spiral_is_one_component():
    indices = np.zeros((61, 61), np.int64)
    y, x, side = 0, 0, 60
    while side > 0:
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            for _ in range(side if (dy, dx) != (-1, 0) else side - 2):
                indices[y, x] = 1
                y, x = y + dy, x + dx
        side -= 4
        indices[y, x] = 1
        y, x = y, x + 2
        indices[y, x - 1] = 1
    labels, values = label_components(indices)
    expected, expected_values = _flooded(indices)
    np.testing.assert_array_equal(labels, expected)
    assert values.tolist() == expected_values


def _squares(*corners, side=10, values=(255,)):
    array = np.zeros((SIDE, SIDE), np.uint8)
    for number, (y, x) in enumerate(corners):
        array[y : y + side, x : x + side] = values[number % len(values)]
    return array


def _mask_set(folder, arrays, ending="png"):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, array in enumerate(arrays):
        Image.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8)).save(folder / "images" / f"{i}.jpg")
        Image.fromarray(array).save(folder / "masks" / f"{i}.{ending}")
    return str(folder)


SCATTERED = _squares((2, 2), (2, 30), (40, 20))


def test_scattered_values_are_counted():
    assert count_scattered(np.zeros((9, 9), np.int64)) == (0, 0)
    assert count_scattered(SCATTERED.astype(np.int64)) == (1, 1)
    assert count_scattered(_squares((2, 2), (2, 30), values=(1, 2)).astype(np.int64)) == (2, 0)
    specks = _squares((20, 20))
    specks[::16, ::16] = 255
    assert count_scattered(specks.astype(np.int64)) == (1, 0)
    cut = _squares((20, 20))
    cut[25] = 0  # a wire before it
    assert count_scattered(cut.astype(np.int64)) == (1, 0)


def test_black_and_white_masks_of_several_objects_are_named(tmp_path):
    path = _mask_set(tmp_path / "set", [SCATTERED] * 4 + [_squares((5, 5))])
    dataset = load_dataset(path)
    assert len(dataset.classes) == 5
    assert dataset.warnings == {"semantic-masks": 1}
    (line,) = [line for line in dataset.summary().splitlines() if "semantic" in line]
    assert "4 of 5 values" in line
    assert "data_format=semantic_masks" in line
    found = examine(read_raw(path))
    assert found.findings.counts() == {"semantic-masks": 1}


def test_the_parts_of_masks_of_classes_are_objects(tmp_path):
    path = _mask_set(tmp_path / "set", [SCATTERED] * 4 + [_squares((5, 5))])
    dataset = load_dataset(path, data_format="semantic_masks")
    assert dataset.class_names == ["object"]
    assert len(dataset.classes) == 13
    np.testing.assert_allclose(sorted(dataset.boxes[:3].tolist()), [[2, 2, 12, 12], [2, 30, 12, 40], [40, 20, 50, 30]])
    assert not dataset.warnings
    copy = write_repaired(examine(read_raw(path, data_format="semantic_masks")), str(tmp_path / "copy"))
    assert len(load_dataset(copy).classes) == 13


def test_values_of_masks_of_classes_are_the_classes(tmp_path):
    masks = [_squares((2, 2), (2, 30), (40, 20), (40, 45), values=(3, 10))] * 2
    path = _mask_set(tmp_path, masks)
    assert load_dataset(path).warnings == {"semantic-masks": 1}
    dataset = load_dataset(path, data_format="semantic_masks", class_map={"3": "cat", "10": "dog"})
    assert dataset.class_names == ["cat", "dog"]
    assert sorted(dataset.classes.tolist()) == [1] * 4 + [2] * 4


@pytest.mark.parametrize("layout", ["class folders", "a folder an image", "images named"])
def test_masks_of_classes_in_other_layouts(tmp_path, layout):
    path = _mask_set(tmp_path / "set", [SCATTERED] * 3)
    images = ""
    for i in range(3):
        mask = tmp_path / "set" / "masks" / f"{i}.png"
        if layout == "class folders":
            mask.parent.joinpath("cat").mkdir(exist_ok=True)
            mask.rename(mask.parent / "cat" / mask.name)
        elif layout == "a folder an image":
            mask.with_suffix("").mkdir()
            mask.rename(mask.with_suffix("") / "all.png")
        else:
            images = f"{path}/images"
    label = "cat" if layout == "class folders" else "object"
    dataset = load_dataset(path, images)
    assert dataset.warnings == {"semantic-masks": 1}
    assert dataset.class_names == [label]
    parts = load_dataset(path, images, data_format="semantic_masks")
    assert parts.class_names == [label]
    assert len(parts.classes) == 9


def test_smoothed_masks_of_classes_are_cut_at_half(tmp_path):
    small = Image.fromarray(SCATTERED).resize((37, 37), Image.Resampling.BILINEAR)
    smooth = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    dataset = load_dataset(_mask_set(tmp_path, [smooth, SCATTERED]), data_format="semantic_masks")
    assert dataset.class_names == ["object"]
    assert len(dataset.classes) == 6


def test_masks_of_objects_are_taken_as_they_are(tmp_path):
    hidden = _squares((2, 2), (30, 30), values=(1, 2))
    hidden[2:12, 40:50] = 1  # one object in two parts, of four
    masks = [hidden, _squares((2, 2), (30, 30), values=(1, 2))]
    assert not load_dataset(_mask_set(tmp_path, masks)).warnings


@pytest.mark.parametrize("layout", ["files", "folders"])
def test_masks_in_jpeg_are_one_line(tmp_path, layout):
    path = _mask_set(tmp_path, [SCATTERED] * 3, "jpg")
    if layout == "folders":
        for i in range(3):
            folder = tmp_path / "masks" / str(i)
            folder.mkdir()
            (tmp_path / "masks" / f"{i}.jpg").rename(folder / "0.jpg")
    for on_bad_record in ("error", "skip"):
        with pytest.raises(DataError) as error:
            load_dataset(path, on_bad_record=on_bad_record)
        assert str(error.value).startswith(f"{path}/masks: 3 mask files in JPEG")
        assert "save masks as PNG" in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_an_image_whose_mask_cannot_be_used_is_no_negative(tmp_path):
    path = _mask_set(tmp_path, [_squares((5, 5))] * 4)
    (tmp_path / "masks" / "0.png").unlink()
    (tmp_path / "masks" / "1.png").write_bytes(b"no")
    Image.fromarray(_squares((5, 5))[:30]).save(tmp_path / "masks" / "2.png")
    dataset = load_dataset(path, on_bad_record="skip")
    assert dataset.file_names == ["3.jpg"]
    assert dataset.report == {"unreadable-record": 2, "image-size-differs": 1}
