"""Training batches and evaluation images in one file, for a machine whose Keras runs on a GPU without TensorFlow.

    python -m benchmarks.gpu.crops --output=FILE.npz --batches=750 --flagfile=configs/nuclei.flags \
        --train_annotations=SET ... --val_annotations=SET ...

The batches are those of `kmaskrcnn train` with these flags and --seed, augmented as there. Crops are kept as WebP of
quality 95 (a crop of nuclei takes 4 kB, without loss 25), evaluation images without loss.
"""

import numpy as np
from absl import app, flags

from benchmarks.gpu.crops_file import packed, training_arrays
from kmaskrcnn.data import open_dataset, training_dataset
from kmaskrcnn.programs.flags import config_from_flags, define_config_flags

_OUTPUT = flags.DEFINE_string("output", None, "File to write.", required=True)
_BATCHES = flags.DEFINE_integer("batches", 750, "Training batches.", lower_bound=1)


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
