"""Copy-paste: objects of one image laid over another (Ghiasi et al. 2021)."""

from __future__ import annotations

import numpy as np

from kmaskrcnn.data.input.augment_instances import (
    LEAST_VISIBLE,
    Instances,
    cell_centers,
    clip_instances,
    erase_outside,
    visible_box,
)
from kmaskrcnn.results.mask_paste import paste_window

_SHARE_PASTED = 0.5  # of the objects of the other image, drawn one by one


def paste_instances(
    target: Instances,
    source: Instances,
    source_size: tuple[int, int],
    offset: np.ndarray,
    size: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[Instances, np.ndarray]:
    """Lay objects of another image over an image.

    Args:
        target: instances of the image.
        source: instances of the other one, in its own pixels.
        source_size: height and width of the other one; there are no pixels of its objects beyond.
        offset: (2,) y and x in the image of the other one's corner.
        size: height and width of the image.
        rng: draws which objects are taken; crowd regions are not.

    Returns:
        The instances of both, those of the image less what the others hide, and (height, width) bool, the pixels to
        take from the other image.
    """
    source = erase_outside(source, source_size)
    shift = np.tile(offset, 2).astype(np.float32)
    source = {**source, "boxes": source["boxes"] + shift, "mask_frames": source["mask_frames"] + shift}
    source = clip_instances(source, size)
    covered = np.zeros(size, bool)
    drawn = (rng.random(len(source["boxes"])) < _SHARE_PASTED) & ~source["is_crowd"]
    pasted = []
    for i in np.flatnonzero(drawn):
        window, top, left = paste_window(source["masks"][i] / np.float32(255), source["mask_frames"][i], *size)
        if window.any():
            covered[top : top + window.shape[0], left : left + window.shape[1]] |= window
            pasted.append(i)
    if not pasted:
        return target, covered
    below = _hide(target, covered)
    return {name: np.concatenate([value, source[name][pasted]]) for name, value in below.items()}, covered


def _hide(instances: Instances, covered: np.ndarray) -> Instances:
    """Instances less the pixels that are covered; those of which too little is left are dropped, but for crowds."""
    masks, boxes = instances["masks"].copy(), instances["boxes"].copy()
    keep = np.ones(len(boxes), bool)
    height, width = covered.shape
    for i, frame in enumerate(instances["mask_frames"]):
        y, x = (np.floor(cell_centers(frame, masks.shape[1], axis)).astype(int) for axis in (0, 1))
        inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None]
        hidden = covered[np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)[None]] & inside
        before = masks[i].sum()
        if not (hidden & (masks[i] > 0)).any():
            continue
        masks[i][hidden] = 0
        if instances["is_crowd"][i]:
            continue
        seen = masks[i] * inside
        box = visible_box(seen, frame)
        if box is None or seen.sum() < LEAST_VISIBLE * before:
            keep[i] = False
            continue
        boxes[i, :2], boxes[i, 2:] = np.maximum(boxes[i, :2], box[:2]), np.minimum(boxes[i, 2:], box[2:])
        keep[i] = (boxes[i, 2:] - boxes[i, :2] >= 1).all()
    kept = {name: value[keep] for name, value in instances.items()}
    return {**kept, "masks": masks[keep], "boxes": boxes[keep]}
