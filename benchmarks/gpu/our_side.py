"""Our side, run by `run.py`: `fit` on Keras' backend of the environment; prints its figures as JSON."""

import importlib.metadata
import json
import time

import keras
import numpy as np
from PIL import Image

from benchmarks.gpu import workload
from benchmarks.speed.workloads import peak_memory_mb
from kmaskrcnn import MaskRCNN
from kmaskrcnn.weights.torchvision import load_torchvision, torchvision_settings

CELLS = 56  # of an object's mask
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


class Data(keras.utils.PyDataset):
    """The batches over and over, `steps` of them an epoch."""

    def __init__(self, options):
        super().__init__()
        self.steps = options.steps
        self.batches = [self.as_inputs(images, rows) for images, rows in workload.batches(options)]

    @staticmethod
    def as_inputs(images, rows):
        batch, height, width, _ = images.shape
        boxes = np.stack([boxes for boxes, _, _ in rows])
        masks = np.zeros((*boxes.shape[:2], CELLS, CELLS), np.uint8)
        for own, (own_boxes, _, full) in zip(masks, rows, strict=True):
            for cell, box, mask in zip(own, own_boxes.astype(int), full, strict=True):
                own_pixels = Image.fromarray(np.uint8(255) * mask[box[0] : box[2], box[1] : box[3]])
                cell[:] = own_pixels.resize((CELLS, CELLS), Image.Resampling.BOX)
        return {
            # To the size that the network computes at, as the input pipeline hands them on.
            "images": np.pad(images, ((0, 0), (0, -height % 32), (0, -width % 32), (0, 0))),
            "image_shapes": np.tile(np.array([[height, width]], np.int32), (batch, 1)),
            "boxes": boxes,
            "classes": np.stack([classes for _, classes, _ in rows]).astype(np.int32),
            "is_crowd": np.zeros(boxes.shape[:2], bool),
            "masks": masks,
            "mask_frames": boxes,
        }

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        return self.batches[index % len(self.batches)]


class Clock(keras.callbacks.Callback):
    """Seconds of the first step and of each epoch, whose end waits for the device."""

    def on_train_begin(self, logs=None):
        self.begin, self.first, self.epochs = time.perf_counter(), 0.0, []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if not self.first:
            float(logs["loss"])
            self.first = time.perf_counter() - self.begin

    def on_epoch_end(self, epoch, logs=None):
        float(logs["loss"])
        self.epochs.append(time.perf_counter() - self.start)


def memory_gb():
    """The peak of the device's memory, or of the process where there is no GPU."""
    if keras.backend.backend() == "jax":
        import jax

        statistics = jax.local_devices()[0].memory_stats()
        return statistics["peak_bytes_in_use"] / 1e9 if statistics else peak_memory_mb() / 1e3
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
    return peak_memory_mb() / 1e3


def main():
    options = workload.parse()
    model = MaskRCNN(dtype=POLICIES[options.dtype], **torchvision_settings(options.weights))
    load_torchvision(model, options.weights)
    # So slow that the weights, and with them the work, stay as they are.
    model.compile(keras.optimizers.SGD(1e-6, momentum=0.9))
    clock = Clock()
    history = model.fit(Data(options), epochs=2, verbose=0, callbacks=[clock])
    backend = keras.backend.backend()
    figures = {
        "backend": f"Keras {keras.__version__}, {backend} {importlib.metadata.version(backend)}",
        "dtype": options.dtype,
        "images_a_second": options.batch * options.steps / clock.epochs[-1],
        "memory_gb": memory_gb(),
        "mask_rois": int(options.batch * model.config.roi_batch_size * model.config.roi_positive_fraction),
        "first_step_seconds": clock.first,
        "loss": history.history["loss"][-1],
    }
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
