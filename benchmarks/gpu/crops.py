"""Training batches and evaluation images in one file, for a machine whose Keras runs on a GPU without TensorFlow.

    python -m benchmarks.gpu.crops --output=FILE.npz --batches=750 --flagfile=configs/nuclei.flags \
        --train_annotations=SET ... --val_annotations=SET ...

The batches are those of `kmaskrcnn train` with these flags and --seed, augmented as there. Crops are kept as WebP of
quality 95 (a crop of nuclei takes 4 kB, without loss 25), evaluation images without loss.
"""

import collections

import numpy as np
from absl import app, flags

from benchmarks.gpu.crops_file import packed
from kmaskrcnn.data import open_dataset, training_dataset
from kmaskrcnn.programs.flags import config_from_flags, define_config_flags

_OUTPUT = flags.DEFINE_string("output", None, "File to write.", required=True)
_BATCHES = flags.DEFINE_integer("batches", 750, "Training batches.", lower_bound=1)


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


def main(_):
    config = config_from_flags()
    batches = training_dataset(open_dataset(config, "train"), config.data, config.train.batch_size, config.train.seed)
    taken = batches.take(_BATCHES.value).as_numpy_iterator()
    images, columns = training_arrays(taken, config.data.max_instances)
    data, starts = packed(images, quality=95)
    evaluated = open_dataset(config, "val")
    val_data, val_starts = packed([evaluated.image(index) for index in range(len(evaluated))], lossless=True)
    np.savez_compressed(
        _OUTPUT.value,
        images=data,
        starts=starts,
        val_images=val_data,
        val_starts=val_starts,
        val_ids=evaluated.image_ids,
        category_ids=evaluated.category_ids,
        **columns,
    )
    print(f"{_OUTPUT.value}: {len(starts) - 1} crops, {len(columns['boxes'])} objects, {len(val_starts) - 1} images")


if __name__ == "__main__":
    define_config_flags()
    app.run(main)
