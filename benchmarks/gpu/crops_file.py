"""The file of benchmarks.gpu.crops, written and read without TensorFlow."""

import collections
import io

import numpy as np
from PIL import Image


def packed(images, **options):
    """Images as one array of bytes and where each starts in it; options of WebP."""
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "WEBP", **options)
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    return np.concatenate(files), np.cumsum([0, *map(len, files)])


def unpacked(data, starts, index):
    """The image at this position, (H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(data[starts[index] : starts[index + 1]].tobytes())).convert("RGB"))


def training_arrays(batches, max_instances):
    """Images (H, W, 3) of batches as `kmaskrcnn train` has them, and their rows with the padding left out."""
    images, columns = [], collections.defaultdict(list)
    for batch in batches:
        for row, image in enumerate(batch["images"]):
            images.append(image)
            count = np.count_nonzero(batch["classes"][row])
            masked = min(count, max_instances)
            columns["counts"].append(count)
            columns["seeds"].append(batch["sample_seeds"][row])
            columns["shapes"].append(batch["image_shapes"][row])
            for name in ("boxes", "classes", "is_crowd"):
                columns[name].append(batch[name][row, :count])
            for name in ("masks", "mask_frames"):  # of max_instances objects at most
                columns[name].append(batch[name][row, :masked])
    scalars = {name: np.array(columns.pop(name)) for name in ("counts", "seeds", "shapes")}
    return images, scalars | {name: np.concatenate(values) for name, values in columns.items()}


class Crops:
    """The training crops of a file in memory.

    Args:
        file: its arrays.
        config: the settings that the crops were made with.
    """

    def __init__(self, file, config):
        self.images = np.stack([unpacked(file["images"], file["starts"], i) for i in range(len(file["starts"]) - 1)])
        self.file, self.masked = file, config.max_instances
        self.first = np.cumsum([0, *file["counts"]])
        self.first_mask = np.cumsum([0, *np.minimum(file["counts"], self.masked)])
        self.rows = max(config.max_instances, int(file["counts"].max()))

    def __len__(self):
        return len(self.images)

    def batch(self, indices):
        """The batch of these crops, as `kmaskrcnn train` has it."""
        count, cells = len(indices), self.file["masks"].shape[1]
        batch = {
            "images": self.images[indices],
            "image_shapes": self.file["shapes"][indices],
            "boxes": np.zeros((count, self.rows, 4), np.float32),
            "classes": np.zeros((count, self.rows), np.int32),
            "is_crowd": np.zeros((count, self.rows), bool),
            "masks": np.zeros((count, self.masked, cells, cells), np.uint8),
            "mask_frames": np.zeros((count, self.masked, 4), np.float32),
            "sample_seeds": self.file["seeds"][indices],
        }
        columns = (self.first, ("boxes", "classes", "is_crowd")), (self.first_mask, ("masks", "mask_frames"))
        for row, index in enumerate(indices):
            for first, names in columns:
                for name in names:
                    own = self.file[name][first[index] : first[index + 1]]
                    batch[name][row, : len(own)] = own
        return batch
