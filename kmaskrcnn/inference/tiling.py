"""Prediction of large images tile by tile, and the putting together of what the tiles saw.

Neighboring tiles overlap. Two tiles that saw one object agree on it where both looked, so two detections are views of
one object if their masks have an IoU of at least one half inside the overlap of their tiles; without overlap, along the
two lines of pixels where they touch. Of the views of an object the best one that its tile did not cut is taken;
where every tile cut it, the union of the views. Memory goes with the objects and one tile, not with objects times
pixels of the image.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from kmaskrcnn.progress import Progress
from kmaskrcnn.results.pasted_masks import PastedMasks, Window, cut_window, trim_window, union_window
from kmaskrcnn.results.prediction import Prediction

# IoU inside the overlap of two tiles from which on two detections are one object; share of a cut detection that another
# object covers, from which on it is a piece of that one.
_SAME_IOU, _PIECE_SHARE = 0.5, 0.6
# A mask that comes this near to the border of its tile, in pixels or as a share of its side, may go on beyond it.
_CUT_PIXELS, _CUT_SHARE = 4.0, 0.1


@dataclasses.dataclass(frozen=True)
class _View:
    """An object, as one tile saw it or put together."""

    box: np.ndarray  # (4,) yxyx pixels of the image
    score: float
    number: int  # class
    masks: PastedMasks  # one mask, in the image
    cut: bool  # whether it may go on beyond the tile
    mask_score: float = 0.0  # of a model with mask_scoring

    def window(self) -> Window:
        return self.masks.window(0)


def tile_starts(length: int, size: int, overlap: int) -> np.ndarray:
    """Where the tiles of `size` begin that cover `length` pixels, evenly spread, at least `overlap` shared by two."""
    if length <= size:
        return np.zeros(1, np.int64)
    count = -(-(length - overlap) // (size - overlap))
    return np.round(np.linspace(0, length - size, count)).astype(np.int64)


def predict_tiles(
    predict: Callable[[np.ndarray], Prediction],
    image: np.ndarray,
    size: int,
    overlap: int,
    nms_iou: float = 0.5,
    class_agnostic: bool = False,
    max_detections: int = 0,
) -> Prediction:
    """Predict an image in tiles.

    Args:
        predict: finds the objects of a tile, (h, w, 3) uint8 with sides of at most `size`.
        image: (H, W, 3) uint8.
        size: side of a tile in pixels of the image; a side of the image that is shorter is not cut.
        overlap: pixels that neighboring tiles share, at least.
        nms_iou: of two objects of a class with boxes of a higher IoU the better one is kept.
        class_agnostic: of two objects of different classes too.
        max_detections: as many objects `predict` finds at most; 0: any number.

    Returns:
        The objects by decreasing score, their masks in `pasted`.
    """
    height, width = image.shape[:2]
    corners = [(y, x) for y in tile_starts(height, size, overlap) for x in tile_starts(width, size, overlap)]
    tiles = np.array([(y, x, min(y + size, height), min(x + size, width)) for y, x in corners])
    seen: list[list[_View]] = []
    groups = _Groups()
    full: list[float] = []
    progress = Progress("tiles", len(tiles))
    for number, tile in enumerate(tiles):
        top, left, bottom, right = tile
        found = predict(np.ascontiguousarray(image[top:bottom, left:right]))
        if max_detections and len(found) >= max_detections:
            full.append(float(found.scores.min()))
        seen.append(_views(found, tile, height, width))
        groups.add(seen[-1])
        near = (tiles[:number, :2] <= tile[2:]) & (tiles[:number, 2:] >= tile[:2])
        for other in np.flatnonzero(near.all(axis=1)):
            if (parts := _shared(tiles[other], tile, touching=not overlap)) is not None:
                for i, j in _same_objects(seen[other], seen[number], *parts):
                    groups.join(seen[other][i], seen[number][j])
        progress.step()
    progress.clear()
    objects = _without_pieces([_merge(group) for group in groups.all()], nms_iou, size, class_agnostic)
    return Prediction(
        height,
        width,
        np.array([o.box for o in objects], np.float32).reshape(-1, 4),
        np.array([o.score for o in objects], np.float32),
        np.array([o.number for o in objects], np.int32),
        None,
        found.labels,
        found.mask_paste,
        image,
        PastedMasks(o.window() for o in objects),
        mask_scores=None if found.mask_scores is None else np.array([o.mask_score for o in objects], np.float32),
        full_tiles=tuple(full),
    )


def _views(found: Prediction, tile: np.ndarray, height: int, width: int) -> list[_View]:
    """The objects of a tile, in pixels of the image."""
    views = []
    inner = tile != (0, 0, height, width)  # the sides of the tile beyond which the image goes on
    for index in range(len(found)):
        mask, top, left = trim_window(found.window(index))
        if not mask.size:
            continue
        sides = np.array(mask.shape * 2)
        extent = np.array([top, left, top + mask.shape[0], left + mask.shape[1]])
        gaps = np.abs(extent + np.tile(tile[:2], 2) - tile)
        cut = bool((inner & (gaps < np.maximum(_CUT_PIXELS, _CUT_SHARE * sides))).any())
        masks = PastedMasks([(mask, top + int(tile[0]), left + int(tile[1]))])
        box = found.boxes[index] + np.tile(tile[:2], 2)
        mask_score = 0.0 if found.mask_scores is None else float(found.mask_scores[index])
        views.append(_View(box, float(found.scores[index]), int(found.classes[index]), masks, cut, mask_score))
    return views


def _shared(first: np.ndarray, second: np.ndarray, touching: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """What two tiles see alike: a rectangle (4,) of each; None where nothing is.

    It is their overlap, or of tiles that touch, where `touching` asks for it, the last line of pixels of one and the
    first of the other. Where tiles overlap, those that touch have another one between them.
    """
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    touch = low == high
    if (low > high).any() or touch.all() or (touch.any() and not touching):
        return None
    after = np.where(second[:2] == low, touch, 0)  # the side on which the second tile goes on
    before = touch - after
    return (
        np.concatenate([low - after, high + before]),
        np.concatenate([low - before, high + after]),
    )


def _same_objects(
    some: list[_View], others: list[_View], part: np.ndarray, other_part: np.ndarray
) -> list[tuple[int, int]]:
    """Pairs of indices of views from two tiles that show one object, as far as can be seen in a rectangle of each."""
    if not some or not others:
        return []
    inside, other_inside = (
        _clipped(np.array([v.box for v in views]), frame) for views, frame in ((some, part), (others, other_part))
    )
    other_inside = other_inside - np.tile(other_part[:2] - part[:2], 2)
    low = np.maximum(inside[:, None, :2], other_inside[None, :, :2])
    high = np.minimum(inside[:, None, 2:], other_inside[None, :, 2:])
    same_class = np.array([v.number for v in some])[:, None] == np.array([v.number for v in others])
    pairs = []
    for i, j in np.argwhere((high > low).all(-1) & same_class):
        first = cut_window(some[i].window(), *part.tolist())
        second = cut_window(others[j].window(), *other_part.tolist())
        union = np.count_nonzero(first | second)
        if union and np.count_nonzero(first & second) >= _SAME_IOU * union:
            pairs.append((int(i), int(j)))
    return pairs


def _clipped(boxes: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) cut to a rectangle (4,)."""
    return np.concatenate([np.maximum(boxes[:, :2], frame[:2]), np.minimum(boxes[:, 2:], frame[2:])], axis=1)


class _Groups:
    """Disjoint sets of views, each the views of one object."""

    def __init__(self) -> None:
        self._group: dict[int, list[_View]] = {}

    def add(self, views: list[_View]) -> None:
        for view in views:
            self._group[id(view)] = [view]

    def join(self, first: _View, second: _View) -> None:
        small, large = sorted((self._group[id(first)], self._group[id(second)]), key=len)
        if small is not large:
            large += small
            for view in small:
                self._group[id(view)] = large

    def all(self) -> list[list[_View]]:
        return list({id(group): group for group in self._group.values()}.values())


def _merge(group: list[_View]) -> _View:
    """The object that some views show."""
    whole = [view for view in group if not view.cut]
    if whole or len(group) == 1:
        return max(whole or group, key=lambda view: view.score)
    boxes = np.array([view.box for view in group])
    box = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    masks = PastedMasks([union_window(view.window() for view in group)])
    score, mask_score = max(view.score for view in group), max(view.mask_score for view in group)
    return _View(box, score, group[0].number, masks, True, mask_score)


class _Grid:
    """Boxes (N, 4) by the cells of an image that they reach into: neighbors without looking at all."""

    def __init__(self, boxes: np.ndarray, side: int):
        self._cells = np.floor(boxes / side).astype(int)
        self._members: dict[tuple[int, int], list[int]] = {}
        for i in range(len(boxes)):
            for cell in self._reached(i):
                self._members.setdefault(cell, []).append(i)

    def _reached(self, i: int) -> Iterator[tuple[int, int]]:
        top, left, bottom, right = self._cells[i]
        return itertools.product(range(top, bottom + 1), range(left, right + 1))

    def near(self, i: int) -> np.ndarray:
        """Indices, increasing, of the boxes that share a cell with box i."""
        return np.array(sorted({j for cell in self._reached(i) for j in self._members[cell]}))


def _without_pieces(objects: list[_View], nms_iou: float, cell: int, class_agnostic: bool) -> list[_View]:
    """Objects by decreasing score, without those that cut views of others left over and without duplicates.

    `cell` is a length in pixels; objects are compared with those that are about as near.
    """
    objects = sorted(objects, key=lambda o: -o.score)
    if not objects:
        return []
    boxes, numbers = np.array([o.box for o in objects]), np.array([o.number for o in objects])
    areas = np.array([np.count_nonzero(o.window()[0]) for o in objects])
    sizes = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    keep = np.ones(len(objects), bool)
    grid = _Grid(boxes, cell)
    for i, piece in enumerate(objects):
        near = grid.near(i)
        low, high = np.maximum(boxes[i, :2], boxes[near, :2]), np.minimum(boxes[i, 2:], boxes[near, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        own_class = numbers[near] == piece.number
        if piece.cut:
            mask, top, left = piece.window()
            frame = (top, left, top + mask.shape[0], left + mask.shape[1])
            # Of the same class a larger object, of another one a surer one.
            owners = np.where(own_class, areas[near] > areas[i], near < i)
            for j in near[keep[near] & owners & (shared > 0)]:
                if np.count_nonzero(mask & cut_window(objects[j].window(), *frame)) >= _PIECE_SHARE * areas[i]:
                    keep[i] = False
                    break
        same = (class_agnostic | own_class) & keep[near] & (near < i)
        if (same & (shared > nms_iou * (sizes[near] + sizes[i] - shared))).any():
            keep[i] = False
    return [o for o, kept in zip(objects, keep, strict=True) if kept]
