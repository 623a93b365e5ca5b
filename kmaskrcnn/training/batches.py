"""The batches of a run, and what becomes of images that cannot be read when their turn comes."""

from __future__ import annotations

import sys

import tensorflow as tf

from kmaskrcnn.cluster import Cluster
from kmaskrcnn.config import Config
from kmaskrcnn.data import CocoDataset, DataError, images_of_step, training_dataset

# Steps past the one that failed in which the image is looked for: as far as batches are made in advance, and more.
_AHEAD = 16


class Batches:
    """This worker's part of the batches, step after step.

    An image that was deleted or damaged after the data were checked is found when its turn comes. With
    on_bad_record=skip it is left out from then on; what stands in its place is a function of the seed, the epoch and
    the image, so that a run that is resumed, and finds it again, takes the same steps.

    Args:
        train_set: the images.
        config: data, batch_size, accumulate_steps, seed.
        cluster, slots: whose places of the batch are made, as `Cluster.slots` has them.

    Attributes:
        left_out: why an image was left out, by its position.
    """

    def __init__(self, train_set: CocoDataset, config: Config, cluster: Cluster, slots: list[range]):
        self.train_set, self.config, self.cluster, self.slots = train_set, config, cluster, slots
        self.left_out: dict[int, str] = {}

    def dataset(self, step: int) -> tf.data.Dataset:
        """The batches from a step on, each part of a step and device by itself."""
        train = self.config.train
        return training_dataset(
            self.train_set, self.config.data, train.batch_size, train.seed, step, self.slots, self.left_out
        )

    def start(self, step: int) -> None:
        """Go on with this step."""
        self._iterator = iter(self.cluster.strategy.distribute_datasets_from_function(lambda _: self.dataset(step)))

    def take(self, step: int) -> list[dict[str, tf.Tensor]]:
        """The parts of the next step, which must be `step`.

        Raises:
            DataError: an image cannot be read, with on_bad_record=error, or no image of its shape can.
        """
        while True:
            try:
                return [next(self._iterator) for _ in range(self.config.train.accumulate_steps)]
            except tf.errors.OpError as error:
                self._leave_out(step, error)
                self.start(step)

    def _leave_out(self, step: int, error: tf.errors.OpError) -> None:
        found = self._unreadable(step)
        if not found:
            reason = str(error).splitlines()[0]
            raise DataError(f"the batch of step {step} could not be made: {reason}") from None
        for index, reason in found.items():
            image = f"image {self.train_set.image_ids[index]} ({self.train_set.paths[index]}): {reason}"
            if self.config.data.on_bad_record == "error":
                raise DataError(f"{image}; repair it, or leave it out with on_bad_record=skip") from None
            self.left_out[index] = reason
            count = len(self.left_out)
            line = f"{image}; another image of the epoch takes its place ({count} left out so far)"
            print(line, file=sys.stderr, flush=True)  # on stderr, for the workers beside the first are silent else

    def _unreadable(self, step: int) -> dict[int, str]:
        """The images of the first step from here on that has some that cannot be read, and why."""
        train, seen = self.config.train, set()
        for ahead in range(step, step + _AHEAD):
            indices = images_of_step(
                self.train_set, self.config.data, train.batch_size, train.seed, ahead, self.slots, self.left_out
            )
            new = [index for index in indices if index not in seen]
            seen.update(new)
            problems = {index: self.train_set.read_problem(index) for index in new}
            if any(problems.values()):
                return {index: reason for index, reason in problems.items() if reason}
        return {}
