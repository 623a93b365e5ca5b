"""One training example: what is drawn for an image, its instances as padded arrays, and its augment_pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from kmaskrcnn.config import DataConfig
from kmaskrcnn.data.image_files import decode_file
from kmaskrcnn.data.input import augment, augment_pixels
from kmaskrcnn.data.input.augment_instances import Instances, transform_instances
from kmaskrcnn.data.input.copy_paste import paste_instances
from kmaskrcnn.data.sets.dataset import CocoDataset

_ROWS = ("boxes", "classes", "is_crowd", "masks", "mask_frames")
_MASKED = ("masks", "mask_frames")  # of at most max_instances rows


class Drawn(NamedTuple):
    """What is done to an image, as arrays for the graph; rows of instances.

    `other` is the position of the image that objects are taken from, -1 for none; `covered` (H, W) bool its pixels, of
    no size where copy-paste is off.
    """

    geometry: np.ndarray
    amounts: np.ndarray
    shape: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray
    masks: np.ndarray
    mask_frames: np.ndarray
    other: np.ndarray
    other_geometry: np.ndarray
    other_amounts: np.ndarray
    offset: np.ndarray
    covered: np.ndarray


class ExampleMaker:
    """Draws and makes training examples; what an image goes through is a function of (seed, epoch, image id).

    Attributes:
        rows: of boxes, classes and is_crowd: at least max_instances, and as many as an image may have.

    Args:
        dataset: the images.
        config: augmentation, sizes, max_instances, mask_resolution.
        seed: of every draw.
        in_place_of: (position, epoch) -> the image that objects are taken from in place of one; default: itself.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        config: DataConfig,
        seed: int,
        in_place_of: Callable[[int, int], int] = lambda index, epoch: index,
    ):
        self.dataset, self.config, self.seed, self.in_place_of = dataset, config, seed, in_place_of
        counts = np.array([rows.stop - rows.start for rows in map(dataset.rows, range(len(dataset)))], np.int64)
        most = int(counts.max(initial=0))
        # No object is left out: one without a row would be taught as background.
        self.rows = max(config.max_instances, 2 * most if config.copy_paste_probability else most)
        self._warned = False
        self._columns = [tf.constant(c) for c in (dataset.paths, dataset.by_pillow, dataset.spans, dataset.turns)]

    def draw(self, index: int, epoch: int, repeat: int = 0) -> Drawn:
        """What happens to the image at `index` in an epoch, the repeat-th time after the first, and its instances."""
        image_id = int(self.dataset.image_ids[index])
        rng = np.random.default_rng([self.seed, epoch, image_id & (2**64 - 1), *([repeat] if repeat else [])])
        transform, instances = self._one(index, rng)
        size = transform.output_size
        other, moved, offset = -1, transform, np.zeros(2, np.int64)
        covered = np.zeros(size if self.config.copy_paste_probability else (0, 0), bool)
        if rng.random() < self.config.copy_paste_probability:
            other = self.in_place_of(int(rng.integers(len(self.dataset))), epoch)
            moved, source = self._one(other, rng)
            room = np.array(size) - np.array(moved.output_size)
            offset = rng.integers(np.minimum(room, 0), np.maximum(room, 0), endpoint=True)
            instances, covered = paste_instances(instances, source, moved.output_size, offset, size, rng)
        instances = self._masked_first(instances, rng)
        geometry, amounts = augment.as_arrays(transform)
        other_geometry, other_amounts = augment.as_arrays(moved)
        return Drawn(
            geometry=geometry,
            amounts=amounts,
            shape=np.array(size, np.int32),
            **{name: instances[name] for name in _ROWS},
            other=np.array(other, np.int32),
            other_geometry=other_geometry,
            other_amounts=other_amounts,
            offset=offset.astype(np.int32),
            covered=covered,
        )

    def _one(self, index: int, rng: np.random.Generator) -> tuple[augment.Transform, Instances]:
        """A transform drawn for an image, and its instances after it."""
        height, width = (int(side) for side in self.dataset.sizes[index])
        rows = self.dataset.rows(index)
        objects = self.dataset.boxes[rows][~self.dataset.is_crowd[rows]]
        transform = augment.draw_transform(height, width, objects, self.config, rng)
        # Masks of what the crop shows alone: those of all objects of a large image take longer than a training step.
        instances = self.dataset.instances(index, self.config.mask_resolution, transform.window)
        return transform, transform_instances(instances, transform)

    def _masked_first(self, instances: Instances, rng: np.random.Generator) -> Instances:
        """Masks and frames of at most max_instances objects, drawn where there are more; boxes of all, these first."""
        most = self.config.max_instances
        if len(instances["boxes"]) > most:
            if not self._warned:
                self._warned = True
                logging.getLogger(__name__).warning(
                    "a training image shows %d objects, more than max_instances=%d: all boxes are trained on, and the "
                    "masks of so many of them, drawn anew in each epoch",
                    len(instances["boxes"]),
                    most,
                )
            real = np.flatnonzero(~instances["is_crowd"])
            chosen = np.sort(rng.choice(real, min(most, len(real)), replace=False))
            order = np.concatenate([chosen, np.setdiff1d(np.arange(len(instances["boxes"])), chosen)])
            instances = {name: value[order] for name, value in instances.items()}
        return {**instances, **{name: instances[name][:most] for name in _MASKED}}

    def make(self, index: tf.Tensor, epoch: tf.Tensor, repeat: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """In a graph: the pixels (h, w, 3) uint8 of an image, and image_shapes, boxes, ... of it, as `draw` has it."""
        n, m = self.config.max_instances, self.config.mask_resolution
        kinds = (  # of the fields of Drawn
            (tf.int32, (9,)),
            (tf.float32, (10,)),
            (tf.int32, (2,)),
            (tf.float32, (None, 4)),
            (tf.int32, (None,)),
            (tf.bool, (None,)),
            (tf.uint8, (None, m, m)),
            (tf.float32, (None, 4)),
            (tf.int32, ()),
            (tf.int32, (9,)),
            (tf.float32, (10,)),
            (tf.int32, (2,)),
            (tf.bool, (None, None)),
        )
        values = tf.numpy_function(
            lambda *numbers: tuple(self.draw(*map(int, numbers))), [index, epoch, repeat], [k[0] for k in kinds]
        )
        drawn = Drawn(*(tf.ensure_shape(v, k[1]) for v, k in zip(values, kinds, strict=True)))
        image = self._moved(index, drawn.geometry, drawn.amounts)
        if self.config.copy_paste_probability:

            def pasted() -> tf.Tensor:
                above = self._moved(tf.cast(drawn.other, index.dtype), drawn.other_geometry, drawn.other_amounts)
                above = augment_pixels.place(above, drawn.offset, drawn.shape)
                return tf.where(drawn.covered[..., None], above, image)

            image = tf.cond(drawn.other >= 0, pasted, lambda: image)
        image = augment_pixels.change_pixels(image, drawn.amounts, self.config)
        # Padded here and not in `draw`: what NumPy hands over is copied, and most rows of masks are padding.
        rows = {name: _pad_rows(getattr(drawn, name), n if name in _MASKED else self.rows) for name in _ROWS}
        return image, {"image_shapes": drawn.shape, **rows}

    def _moved(self, index: tf.Tensor, geometry: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
        pixels = decode_file(*(column[index] for column in self._columns))
        return augment_pixels.move_pixels(pixels, geometry, amounts, self.config)


def _pad_rows(values: tf.Tensor, count: int) -> tf.Tensor:
    padding = [(0, count - tf.shape(values)[0])] + [(0, 0)] * (values.shape.rank - 1)
    return tf.ensure_shape(tf.pad(values, padding), (count, *values.shape[1:]))
