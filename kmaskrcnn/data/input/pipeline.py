"""From a data set to batches, with tf.data.

The order and the shape of every batch are functions of the seed and the step alone, and what an image goes through one
of (seed, epoch, image id, how often it was there before in the epoch), so that a run that is resumed at a step gets the
batches it would have got.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence

import numpy as np
import tensorflow as tf

from kmaskrcnn.config import DataConfig
from kmaskrcnn.data.image_files import decode_file
from kmaskrcnn.data.input.examples import ExampleMaker
from kmaskrcnn.data.input.repeat_sampling import draw_repeats, repeat_factors
from kmaskrcnn.data.resize import resize
from kmaskrcnn.data.sets.dataset import CocoDataset
from kmaskrcnn.data.sizes import bucket_shape, network_size, whole_images
from kmaskrcnn.errors import DataError


class _Plan:
    """Which images make up the batch of a step; those in `left_out` have others of their shape in their places.

    Raises:
        DataError: all images of a shape are left out.
    """

    def __init__(
        self,
        shapes: list[tuple[int, int]],
        factors: np.ndarray,
        batch_size: int,
        seed: int,
        left_out: Collection[int] = (),
    ):
        self.shapes, self.factors, self.batch_size, self.seed = shapes, factors, batch_size, seed
        self.left_out = frozenset(left_out)
        groups: dict[tuple[int, int], list[int]] = {}
        for index, shape in enumerate(shapes):
            groups.setdefault(shape, []).append(index)
        for (height, width), group in groups.items():
            if self.left_out.issuperset(group):
                raise DataError(f"none of the {len(group)} training images of {height} x {width} pixels can be read")
        self._groups_by_shape = groups
        self.groups = [np.array(g) for _, g in sorted(groups.items())]
        self.steps_per_epoch = sum(math.ceil(round(float(factors[g].sum())) / batch_size) for g in self.groups)
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """(steps_per_epoch, batch_size) image indices, the batches in random order."""
        rng = np.random.default_rng([self.seed, epoch])
        batches = []
        for group in self.groups:
            factors = self.factors[group]
            order = rng.permutation(group if (factors == 1).all() else group[draw_repeats(factors, rng)])
            missing = -len(order) % self.batch_size
            # The last batch of a shape is filled up with other images of that shape.
            order = np.concatenate([order, rng.choice(group, missing)])
            batches.append(order.reshape(-1, self.batch_size))
        indices = rng.permutation(np.concatenate(batches))
        # A repeated image is drawn anew each time; one that only fills up a batch is what it was.
        repeats = _times_before(indices) if (self.factors > 1).any() else np.zeros_like(indices)
        return np.stack([indices, repeats], axis=-1)

    def step(self, step: int) -> np.ndarray:
        """(batch_size, 2) of a step: image indices, and how often each was there before in the epoch."""
        epoch, position = divmod(int(step), self.steps_per_epoch)
        chosen = self._epoch(epoch)[position]
        if not self.left_out:
            return chosen
        return np.array([(self.in_place_of(int(index), epoch), repeat) for index, repeat in chosen])

    def in_place_of(self, index: int, epoch: int) -> int:
        """The image itself, or where it is left out another one of its shape, a function of seed, epoch and image.

        It is the first of a fixed order that is not left out, whatever was found unreadable first.
        """
        if index not in self.left_out:
            return index
        group = self._groups_by_shape[self.shapes[index]]
        order = np.random.default_rng([self.seed, epoch, index, 2]).permutation(group)
        return next(int(other) for other in order if int(other) not in self.left_out)


def _padded_shapes(dataset: CocoDataset, config: DataConfig) -> list[tuple[int, int]]:
    """The height and width that each training image is padded to."""
    if config.crop_size:
        return [(config.crop_size, config.crop_size)] * len(dataset)
    return [bucket_shape(int(h), int(w), config) for h, w in dataset.sizes]


def steps_per_epoch(dataset: CocoDataset, config: DataConfig, batch_size: int) -> int:
    """Steps of `batch_size` images after which `training_dataset` has used every image at least once."""
    factors = repeat_factors(dataset, config.repeat_factor_threshold)
    return _Plan(_padded_shapes(dataset, config), factors, batch_size, 0).steps_per_epoch


def _times_before(indices: np.ndarray) -> np.ndarray:
    """How often each number came before in the array, read row by row; of its shape."""
    flat = indices.reshape(-1)
    order = np.argsort(flat, kind="stable")
    first = np.searchsorted(flat[order], flat[order])  # where the run of each number begins
    result = np.empty_like(flat)
    result[order] = np.arange(len(flat)) - first
    return result.reshape(indices.shape)


def training_dataset(
    dataset: CocoDataset,
    config: DataConfig,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    slots: Sequence[range] = (),
    left_out: Collection[int] = (),
) -> tf.data.Dataset:
    """An infinite dataset of augmented batches; its `steps_per_epoch` is where `fit` ends an epoch.

    Args:
        dataset: the images.
        config: augmentation, sizes, max_instances, mask_resolution, repeat_factor_threshold.
        batch_size: B.
        seed: random seed of order and augmentation.
        start_step: the step to start from; earlier batches are not computed.
        slots: the places 0..B-1 of each step's batch that this process makes, as ranges of equal length that follow
            each other in the result; B is then the length of a range. Default: all of them in one.
        left_out: positions of images that cannot be read; each is replaced by another image of its shape.

    Returns:
        Dicts of images (B, H, W, 3) uint8 padded at the bottom and right, image_shapes (B, 2) int32, boxes (B, N, 4)
        float32 yxyx pixels, classes (B, N) int32 with 0 for padding, is_crowd (B, N) bool, masks (B, M, m, m) uint8
        and mask_frames (B, M, 4) float32 of the first M = max_instances rows, image_ids (B,) int64, sample_seeds (B,)
        int64 of the model's random samples. H and W are one of a few shapes (`bucket_shape`), or crop_size.
    """
    factors = repeat_factors(dataset, config.repeat_factor_threshold)
    plan = _Plan(_padded_shapes(dataset, config), factors, batch_size, seed, left_out)
    maker = ExampleMaker(dataset, config, seed, plan.in_place_of)
    image_ids = tf.constant(dataset.image_ids)
    slots = slots or [range(batch_size)]
    own = [slot for each in slots for slot in each]

    def plan_step(counter: np.ndarray) -> np.ndarray:
        step = int(counter)
        chosen = plan.step(step)
        rows = [(*chosen[s], *plan.shapes[chosen[s][0]], step, _sample_seed(seed, step, s)) for s in own]
        return np.array(rows, np.int64)

    def example(row: tf.Tensor) -> dict[str, tf.Tensor]:
        image, rows = maker.make(row[0], row[4] // plan.steps_per_epoch, row[1])
        return {
            "images": _pad(image, tf.cast(row[2], tf.int32), tf.cast(row[3], tf.int32)),
            **rows,
            "image_ids": image_ids[row[0]],
            "sample_seeds": row[5],
        }

    def rows_of(step: tf.Tensor) -> tf.data.Dataset:
        rows = tf.numpy_function(plan_step, [step], tf.int64)
        return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(rows, (len(own), 6)))

    steps = tf.data.Dataset.counter(start=start_step)
    threads = config.data_threads or tf.data.AUTOTUNE
    examples = steps.flat_map(rows_of).map(example, num_parallel_calls=threads, deterministic=True)
    batches = examples.batch(len(slots[0]), drop_remainder=True)
    # tf.distribute would ask all workers at each step whether there is another one.
    batches = batches.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    batches = batches.prefetch(2 * len(slots))
    batches.steps_per_epoch = plan.steps_per_epoch
    return batches


def images_of_step(
    dataset: CocoDataset,
    config: DataConfig,
    batch_size: int,
    seed: int,
    step: int,
    slots: Sequence[range],
    left_out: Collection[int] = (),
) -> list[int]:
    """Positions of the images that `training_dataset` reads for a step in these slots, with those for copy-paste."""
    factors = repeat_factors(dataset, config.repeat_factor_threshold)
    plan = _Plan(_padded_shapes(dataset, config), factors, batch_size, seed, left_out)
    chosen, epoch = plan.step(step), int(step) // plan.steps_per_epoch
    drawn = [(int(chosen[slot][0]), int(chosen[slot][1])) for each in slots for slot in each]
    own = [index for index, _ in drawn]
    if config.copy_paste_probability:
        maker = ExampleMaker(dataset, config, seed, plan.in_place_of)
        own += [other for index, repeat in drawn if (other := int(maker.draw(index, epoch, repeat).other)) >= 0]
    return list(dict.fromkeys(own))


def _sample_seed(*numbers: int) -> int:
    # One number more than the seeds of the augmentation, which it must not repeat.
    return int(np.random.SeedSequence([*map(int, numbers), 1]).generate_state(1)[0])


def _pad(image: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(image)
    return tf.pad(image, ((0, height - shape[0]), (0, width - shape[1]), (0, 0)))


def evaluation_dataset(
    dataset: CocoDataset,
    config: DataConfig,
    batch_size: int = 1,
    max_images: int = 0,
    workers: int = 1,
    worker: int = 0,
) -> tf.data.Dataset:
    """Each image once, not augmented; batches hold images of one padded shape, the last of a shape may be short.

    Args:
        dataset: the images.
        config: resize_mode, min_size, max_size, native_scale.
        batch_size: most images per batch.
        max_images: use this many images, the first ones; 0: all.
        workers: number of workers that share the batches.
        worker: of all batches use those whose number is `worker` modulo `workers`.

    Returns:
        Dicts of images (B, H, W, 3) of `pixel_dtype`, image_shapes (B, 2) int32, image_ids (B,) int64, scales (B, 2)
        float32 (network pixels a source pixel, y and x), original_shapes (B, 2) int32.
    """
    config = whole_images(config)
    count = min(max_images or len(dataset), len(dataset))
    shapes = [bucket_shape(int(h), int(w), config) for h, w in dataset.sizes[:count]]
    batches, number = None, 0
    for shape in sorted(set(shapes)):
        indices = [i for i in range(count) if shapes[i] == shape]
        cut = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        own = [batch for i, batch in enumerate(cut, number) if i % workers == worker]
        number += len(cut)
        indices = [i for batch in own for i in batch]  # all but the last are full, so they fall into the same batches
        if not indices:
            continue
        sizes = dataset.sizes[indices]
        scaled = [network_size(h, w, config) for h, w in sizes.tolist()]
        columns = {
            "path": tf.constant([dataset.paths[i] for i in indices]),
            "by_pillow": tf.constant(dataset.by_pillow[indices]),
            "span": tf.constant(dataset.spans[indices]),
            "turn": tf.constant(dataset.turns[indices]),
            "image_shapes": tf.constant(scaled, tf.int32),
            "image_ids": tf.constant(dataset.image_ids[indices]),
            "original_shapes": tf.constant(sizes, tf.int32),
        }

        def load(row: dict[str, tf.Tensor], shape: tuple[int, int] = shape) -> dict[str, tf.Tensor]:
            row = dict(row)
            image = decode_file(*(row.pop(name) for name in ("path", "by_pillow", "span", "turn")))
            image = resize(image, row["image_shapes"][0], row["image_shapes"][1], config.resize_method)
            image = tf.ensure_shape(_pad(image, shape[0], shape[1]), (*shape, 3))
            scales = tf.cast(row["image_shapes"], tf.float32) / tf.cast(row["original_shapes"], tf.float32)
            return {**row, "images": image, "scales": scales}

        part = tf.data.Dataset.from_tensor_slices(columns)
        part = part.map(load, num_parallel_calls=config.data_threads or tf.data.AUTOTUNE).batch(batch_size)
        # The shapes of the parts differ, which a joint data set allows only when it does not know them.
        part = part.map(
            lambda row: {**row, "images": tf.ensure_shape(_forget_shape(row["images"]), (None,) * 3 + (3,))}
        )
        batches = part if batches is None else batches.concatenate(part)
    return tf.data.Dataset.range(0) if batches is None else batches.prefetch(2)


def _forget_shape(x: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.PlaceholderWithDefault(input=x, shape=[None] * x.shape.rank)
