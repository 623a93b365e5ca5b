"""Tiles: an oracle that knows the objects sees each tile alone, and the whole must come out."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmaskrcnn.config import Config, ConfigError
from kmaskrcnn.inference.predictor import Predictor
from kmaskrcnn.inference.tiling import _Grid, predict_tiles, tile_starts
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.pasted_masks import PastedMasks, trim_window
from kmaskrcnn.results.prediction import Prediction

LABELS = Labels(("disc", "other"), (1, 2))


def _canvas(discs, height=600, width=900):
    """An image whose pixels are the number of their disc (y, x, radius), in 16 bits of two channels."""
    image = np.zeros((height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    for number, (cy, cx, radius) in enumerate(discs, 1):
        image[np.hypot(y - cy, x - cx) < radius] = (number % 256, number // 256, 0)
    return image


def _numbers(image):
    return image[..., 0].astype(int) + 256 * image[..., 1].astype(int)


def _oracle(rough=0, score=lambda number, share: 0.9, least=4):
    """A detector that finds what a tile shows of each object, its mask wrong by up to `rough` pixels at its left."""

    def predict(tile):
        numbers = _numbers(tile)
        windows, boxes, scores = [], [], []
        for number in np.unique(numbers[numbers > 0]):
            window = trim_window((numbers == number, 0, 0))
            mask, top, left = window
            if min(mask.shape) < least:
                continue
            mask = mask.copy()
            mask[:, : rough if mask.shape[1] > 3 * rough else 0] = False
            windows.append((mask, top, left))
            boxes.append((top, left, top + mask.shape[0], left + mask.shape[1]))
            scores.append(score(number, mask.sum()))
        order = np.argsort(-np.array(scores), kind="stable")
        return Prediction(
            *tile.shape[:2],
            np.array(boxes, np.float32).reshape(-1, 4)[order],
            np.array(scores, np.float32)[order],
            np.ones(len(order), np.int32),
            None,
            LABELS,
            pasted=PastedMasks([windows[i] for i in order]),
        )

    return predict


def _check(image, count, found, iou=0.999):
    """Every object once, whole."""
    numbers = _numbers(image)
    assert len(found) == count
    hit = set()
    for index in range(len(found)):
        mask = found.mask(index)
        number = np.bincount(numbers[mask]).argmax()
        truth = numbers == number
        assert (mask & truth).sum() / (mask | truth).sum() >= iou, number
        hit.add(number)
    assert len(hit) == count


@pytest.mark.parametrize(
    ("length", "size", "overlap"), [(100, 200, 50), (1000, 256, 64), (257, 256, 0), (6000, 512, 128)]
)
def test_tiles_cover_all_and_overlap(length, size, overlap):
    starts = tile_starts(length, size, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(length - size, 0)
    assert (np.diff(starts) <= size - overlap).all()


@pytest.mark.parametrize("rough", [0, 2])
def test_small_objects_across_borders_are_found_once_and_whole(rough):
    rng = np.random.default_rng(0)
    discs = [
        (y + rng.uniform(-8, 8), x + rng.uniform(-8, 8), rng.uniform(8, 20))
        for y in range(40, 600, 60)
        for x in range(40, 900, 60)
    ]
    image = _canvas(discs)
    found = predict_tiles(_oracle(rough), image, 256, 64)
    _check(image, len(discs), found, iou=0.999 if not rough else 0.75)
    assert (np.diff(found.scores) <= 0).all()


def test_objects_larger_than_tiles_are_put_together():
    discs = [(300, 300, 260), (300, 720, 130)]
    image = _canvas(discs)
    _check(image, 2, predict_tiles(_oracle(), image, 256, 64))


def test_touching_objects_stay_apart():
    discs = [(y, x, 30) for y in range(30, 600, 60) for x in range(30, 900, 60)]
    image = _canvas(discs)
    _check(image, len(discs), predict_tiles(_oracle(), image, 200, 80))


def test_slivers_that_match_nothing_in_the_overlap_are_taken_as_pieces():
    # The overlap is narrower than the objects, and the views differ in what they make of it.
    discs = [(300, 236, 60), (100, 240, 40)]
    image = _canvas(discs)
    found = predict_tiles(_oracle(rough=6), image, 256, 32)
    assert len(found) == 2


def test_the_best_whole_view_is_taken_and_its_score():
    discs = [(120, 225, 15)]  # whole in two tiles
    image = _canvas(discs, 240, 450)
    found = predict_tiles(_oracle(score=lambda number, share: 0.5 + share / 1e5), image, 256, 64)
    assert len(found) == 1
    assert found.scores[0] == pytest.approx(0.5 + found.mask_areas()[0] / 1e5)
    assert found.image is image


@pytest.mark.parametrize("discs", [[(120, 225, 15)], [(120, 225, 100)]])
def test_mask_scores_are_those_of_the_views_taken(discs):
    """Of the whole view that is taken, and where every tile cuts the object, the best."""
    image = _canvas(discs, 240, 450)
    oracle = _oracle(score=lambda number, share: 0.5 + share / 1e5)

    def scored(tile):
        found = oracle(tile)
        seen.append(found.scores.max(initial=0.0) / 2)
        return dataclasses.replace(found, mask_scores=found.scores / 2)

    seen = []
    found = predict_tiles(scored, image, 256, 64)
    assert found.mask_scores == pytest.approx([max(seen)])
    assert predict_tiles(oracle, image, 256, 64).mask_scores is None


def test_objects_of_another_class_stay():
    image = _canvas([(120, 225, 30)], 240, 450)
    oracle = _oracle()

    def two_classes(tile):
        found = oracle(tile)
        rows = np.repeat(np.arange(len(found)), 2)
        return dataclasses.replace(found.take(rows), classes=np.tile([1, 2], len(found)).astype(np.int32))

    found = predict_tiles(two_classes, image, 256, 64)
    assert sorted(found.classes) == [1, 2]
    alone = predict_tiles(two_classes, image, 256, 64, class_agnostic=True)
    assert len(alone) == 1 and alone.boxes[0] in found.boxes


def test_tiles_that_gave_all_they_may_are_told():
    discs = [(120, 60 + 40 * i, 12) for i in range(9)]
    image = _canvas(discs, 240, 450)
    seen = []

    def oracle(tile):
        seen.append(_oracle()(tile))
        return seen[-1]

    found = predict_tiles(oracle, image, 256, 64, max_detections=max(map(len, map(_oracle(), [image[:, :256]]))))
    full = [tile for tile in seen if len(tile) >= len(seen[0])]
    assert len(found) == 9 and found.full_tiles == tuple(float(tile.scores.min()) for tile in full) != ()
    assert predict_tiles(_oracle(), image, 256, 64, max_detections=100).full_tiles == ()


def test_a_picture_without_objects():
    found = predict_tiles(_oracle(), np.zeros((500, 500, 3), np.uint8), 256, 64)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


def test_memory_does_not_grow_with_objects_times_pixels():
    discs = [(y, x, 12) for y in range(20, 3000, 100) for x in range(20, 4000, 100)]
    image = np.zeros((3000, 4000, 3), np.uint8)
    small = _canvas([(20, 20, 12)], 100, 100)[..., :1] > 0
    for number, (cy, cx, _) in enumerate(discs, 1):
        part = image[cy - 20 : cy + 80, cx - 20 : cx + 80]
        part[small[: part.shape[0], : part.shape[1], 0]] = (number % 256, number // 256, 0)
    oracle = _oracle()
    tracemalloc.start()
    found = predict_tiles(oracle, image, 512, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == len(discs) == 1200
    assert peak < 40e6  # 1200 masks of the whole image are 14 GB


def test_predictor_takes_tiles_where_the_settings_say_so(tiny_model):
    config = Config().replace(resize_mode="native", score_threshold=0.0, tile_size=64, tile_overlap=16)
    predictor = Predictor(tiny_model, config, LABELS3)
    image = np.random.default_rng(0).integers(0, 255, (100, 90, 3), np.uint8)
    tiled = predictor.predict(image)
    assert tiled.pasted is not None
    assert (tiled.height, tiled.width) == (100, 90)
    assert len(tiled) > 0
    corner = predictor.predict(np.ascontiguousarray(image[:64, :64]))  # one tile
    assert corner.pasted is None


def test_impossible_tiles_are_refused():
    with pytest.raises(ConfigError, match="tile_overlap=128"):
        Config().replace(tile_size=200)
    with pytest.raises(ConfigError, match="tile_size=8"):
        Config().replace(tile_size=8)
    with pytest.raises(ConfigError, match="tta_scales"):
        Config().replace(tta_scales=(0.0,))


LABELS3 = Labels(("a", "b", "c"), (1, 2, 3))


# Tiles of 256 pixels with 32 shared lie at x = 0, 215, 429, 644 and y = 0, 172, 344; of 300, side by side.
@pytest.mark.parametrize(
    ("size", "overlap", "tiles", "disc"),
    [
        (256, 32, 2, (86, 450, 80)),
        (256, 32, 2, (214, 130, 80)),
        (256, 32, 4, (214, 450, 80)),
        (256, 32, 6, (300, 450, 190)),
        (300, 0, 2, (150, 300, 80)),
        (300, 0, 2, (300, 150, 80)),
        (300, 0, 4, (300, 600, 80)),
        (300, 0, 6, (300, 450, 190)),
    ],
)
def test_an_object_that_every_tile_cuts_is_one_object_and_whole(size, overlap, tiles, disc):
    image = _canvas([disc])
    seen = []

    def oracle(tile):
        seen.append(len(found := _oracle()(tile)))
        return found

    found = predict_tiles(oracle, image, size, overlap)
    assert sum(seen) >= tiles
    _check(image, 1, found)
    y, x, radius = disc
    assert found.boxes[0] == pytest.approx([y - radius, x - radius, y + radius, x + radius], abs=1.0)


def test_neighbors_at_a_border_of_tiles_that_only_touch_are_not_joined():
    # Two discs that meet at the border of the tiles from both sides, in one point.
    image = _canvas([(150, 300 - 60, 59), (150, 300 + 60, 59)], 300, 600)
    assert len(predict_tiles(_oracle(), image, 300, 0)) == 2


def test_a_long_thin_object_across_many_tiles_is_one():
    image = np.zeros((600, 900, 3), np.uint8)
    y, x = np.mgrid[:600, :900]
    image[(np.abs(y - 0.6 * x - 20) < 6) & (x < 880)] = (1, 0, 0)
    for size, overlap in ((256, 32), (300, 0), (200, 80)):
        _check(image, 1, predict_tiles(_oracle(), image, size, overlap))


@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 100, 1000]))
def test_every_box_that_overlaps_is_near(seed, side):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 400, (60, 2))
    boxes = np.concatenate([start, start + rng.integers(0, 120, (60, 2))], axis=1)
    boxes[0] = (0, 0, 520, 520)
    grid = _Grid(boxes, side)
    for i, box in enumerate(boxes):
        touching = (boxes[:, :2] <= box[2:]).all(1) & (boxes[:, 2:] >= box[:2]).all(1)
        near = grid.near(i)
        assert set(np.flatnonzero(touching)) <= set(near) and (np.diff(near) > 0).all()


def test_no_comparison_of_all_objects_with_all(monkeypatch):
    """An image twice as wide costs twice as much, not four times."""
    looked = []
    near = _Grid.near

    def counting(grid, i):
        looked[-1] += len(near(grid, i))
        return near(grid, i)

    monkeypatch.setattr(_Grid, "near", counting)
    for width in (600, 1200, 2400):
        discs = [(100 + 60 * (i % 2), x, 12) for i, x in enumerate(range(40, width - 40, 40))]
        looked.append(0)
        predict_tiles(_oracle(), _canvas(discs, 256, width), 256, 64)
    assert looked[2] < 2.5 * looked[1] < 6.25 * looked[0]
