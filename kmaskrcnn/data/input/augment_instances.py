"""What augmentation does to the instances of an image, in NumPy: boxes, and masks over their frames."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from kmaskrcnn.data.input.augment import Transform

Instances = dict[str, np.ndarray]  # as for `CocoDataset.instances`

# Instances of which less than this share is left are dropped.
LEAST_VISIBLE = 0.1
_INSIDE = 128  # coverage from which a cell belongs to the object


def transform_instances(instances: Instances, transform: Transform) -> Instances:
    """The instances of an image (as for `CocoDataset.instances`) after the transform.

    Boxes are clipped to the window and tightened to what is visible of the mask; instances of which too little or less
    than a pixel is left are dropped. A crowd region is only clipped. After a rotation boxes are those of the masks.
    """
    y, x, height, width = transform.window
    corner = np.array([y, x, y, x], np.float32)
    scale = np.array([transform.size[0] / height, transform.size[1] / width] * 2, np.float32)
    frames = (instances["mask_frames"] - corner) * scale
    boxes = (instances["boxes"] - corner) * scale
    moved = clip_instances({**instances, "boxes": boxes, "mask_frames": frames}, transform.size)
    if transform.angle:
        moved = clip_instances(_rotate(moved, transform.angle, transform.size), transform.size)
    boxes, frames, masks = moved["boxes"], moved["mask_frames"], moved["masks"]
    height, width = transform.size
    if transform.flip_x:
        boxes, frames = (_mirror(b, 1, width) for b in (boxes, frames))
        masks = masks[:, :, ::-1]
    if transform.flip_y:
        boxes, frames = (_mirror(b, 0, height) for b in (boxes, frames))
        masks = masks[:, ::-1]
    for _ in range(transform.turns):
        boxes, frames = (_mirror(b, 1, width)[:, [1, 0, 3, 2]] for b in (boxes, frames))
        masks = np.rot90(masks, axes=(1, 2))
        height, width = width, height
    return {**moved, "boxes": boxes, "mask_frames": frames, "masks": np.ascontiguousarray(masks)}


def clip_instances(instances: Instances, size: tuple[int, int]) -> Instances:
    """The instances of which enough lies inside an image of this size, their boxes clipped to what is seen."""
    limit = np.array([*size] * 2, np.float32)
    boxes, frames = np.clip(instances["boxes"], 0, limit), instances["mask_frames"]
    keep = _has_area(boxes)
    cut = ((frames < 0) | (frames > limit)).any(axis=1) & keep & ~instances["is_crowd"]
    for i in np.flatnonzero(cut):
        mask = instances["masks"][i]
        seen = mask * _cells_inside(frames[i], mask.shape[0], size)
        box = visible_box(seen, frames[i])
        if box is None or seen.sum() < LEAST_VISIBLE * mask.sum():
            keep[i] = False
            continue
        boxes[i, :2] = np.maximum(boxes[i, :2], box[:2])
        boxes[i, 2:] = np.minimum(boxes[i, 2:], box[2:])
        keep[i] = _has_area(boxes[i])
    return {**{name: value[keep] for name, value in instances.items()}, "boxes": boxes[keep]}


def _has_area(boxes: np.ndarray) -> np.ndarray:
    """Whether boxes (..., 4) are at least a pixel high and wide."""
    return (boxes[..., 2:] - boxes[..., :2] >= 1).all(axis=-1)


def _mirror(boxes: np.ndarray, axis: int, side: int) -> np.ndarray:
    mirrored = boxes.copy()
    mirrored[:, axis], mirrored[:, axis + 2] = side - boxes[:, axis + 2], side - boxes[:, axis]
    return mirrored


def cell_centers(frame: np.ndarray, cells: int, axis: int) -> np.ndarray:
    """(cells,) coordinates of the centers of a frame's rows (axis 0) or columns (axis 1)."""
    return frame[axis] + (np.arange(cells) + 0.5) * ((frame[axis + 2] - frame[axis]) / cells)


def _cells_inside(frame: np.ndarray, cells: int, size: tuple[int, int]) -> np.ndarray:
    """(cells, cells) bool, whether the center of each cell of a frame lies inside an image of this size."""
    rows, columns = ((c > 0) & (c < size[a]) for a in (0, 1) for c in [cell_centers(frame, cells, a)])
    return rows[:, None] & columns[None]


def erase_outside(instances: Instances, size: tuple[int, int]) -> Instances:
    """The instances without the cells of their masks that lie outside an image of this size."""
    masks = instances["masks"].copy()
    for i, frame in enumerate(instances["mask_frames"]):
        if (frame[:2] < 0).any() or (frame[2:] > size).any():
            masks[i] *= _cells_inside(frame, masks.shape[1], size)
    return {**instances, "masks": masks}


def mask_box(cells: np.ndarray, frame: np.ndarray) -> np.ndarray | None:
    """The tight yxyx box (4,) of the set cells (m, m) of a frame, or None where none is set."""
    if not cells.any():
        return None
    box = np.zeros(4, np.float32)
    for axis in (0, 1):
        filled = np.flatnonzero(cells.any(axis=1 - axis))
        edges = np.linspace(frame[axis], frame[axis + 2], cells.shape[axis] + 1)
        box[axis], box[axis + 2] = edges[filled[0]], edges[filled[-1] + 1]
    return box


def visible_box(mask: np.ndarray, frame: np.ndarray) -> np.ndarray | None:
    """The tight yxyx box (4,) of a mask (m, m) of coverage over a frame, or None where it is empty."""
    filled = mask >= _INSIDE
    # A line thinner than a cell fills few or none by half.
    mostly = 2 * mask[filled].sum() >= mask.sum()
    return mask_box(filled if mostly else mask > 0, frame)


def _rotate(instances: Instances, degrees: float, size: tuple[int, int]) -> Instances:
    """Turn masks counter-clockwise about the middle of the image; new frames fit the turned masks."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Offsets from the middle (y, x) -> (cos y - sin x, sin y + cos x), with y pointing down.
    forward = np.array([[cos, -sin], [sin, cos]])
    middle = np.array(size) / 2
    masks, frames = instances["masks"].copy(), instances["mask_frames"].copy()
    boxes, keep = instances["boxes"].copy(), np.ones(len(frames), bool)
    for i, frame in enumerate(instances["mask_frames"]):
        cells = masks[i].shape[0]
        # What the window has cut away is not in the image, wherever it would turn to.
        mask = masks[i] * _cells_inside(frame, cells, size)
        tight = mask_box(mask > 0, frame)
        if tight is None:
            keep[i] = False
            continue
        corners = np.array([(y, x) for y in tight[[0, 2]] for x in tight[[1, 3]]])
        turned = (corners - middle) @ forward.T + middle
        frames[i] = *turned.min(axis=0), *turned.max(axis=0)
        masks[i] = _resample(mask, frame, frames[i], forward, middle)
        box = visible_box(masks[i], frames[i])
        keep[i] = box is not None
        if box is not None:
            boxes[i] = box
    kept = {name: value[keep] for name, value in instances.items()}
    return {**kept, "masks": masks[keep], "mask_frames": frames[keep], "boxes": boxes[keep]}


def _resample(
    mask: np.ndarray, source: np.ndarray, target: np.ndarray, forward: np.ndarray, middle: np.ndarray
) -> np.ndarray:
    """A mask over the frame `source` as seen over `target` after p -> forward (p - middle) + middle, bilinear."""
    cells = mask.shape[0]
    step = (target[2:] - target[:2]) / cells  # pixels a cell of the target, y and x
    size = (source[2:] - source[:2]) / cells
    # Cell (r, c) of the target -> pixels -> turned back -> cell of the source; forward is a rotation.
    linear = forward.T * step[None] / size[:, None]
    offset = (forward.T @ (target[:2] - middle) + middle - source[:2]) / size
    # Pillow takes x before y.
    data = (linear[1, 1], linear[1, 0], offset[1], linear[0, 1], linear[0, 0], offset[0])
    image = Image.fromarray(mask)
    return np.asarray(image.transform((cells, cells), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR))
