"""Variations of the model for the same steps and several seeds, by `fit` on Keras' backend of the environment.

    KERAS_BACKEND=jax python -m benchmarks.gpu.variations --crops=FILE.npz --output=FILE.json.gz --variation=NAME \
        --seeds=0,1,2 --steps=1500 --flagfile=configs/nuclei.flags

FILE.npz is of benchmarks.gpu.crops, made with the same flags. The detections on its evaluation images are written as
COCO results, of each seed, for `benchmarks.gpu.score`. A step compiles once for all seeds. A seed draws the first
weights, the order of the crops and the samples of the losses. Needs no TensorFlow.
"""

import gzip
import json
import math
import time

import keras
import numpy as np
from absl import app, flags
from keras import ops

from benchmarks.gpu.crops_file import Crops, unpacked
from benchmarks.model_variations import VARIATIONS
from kmaskrcnn import MaskRCNN
from kmaskrcnn.backbones.imagenet import load_imagenet
from kmaskrcnn.config import Config
from kmaskrcnn.programs.flags import config_from_flags, define_config_flags
from kmaskrcnn.results.labels import Labels
from kmaskrcnn.results.prediction import Prediction
from kmaskrcnn.training.sgd import SGD

_CROPS = flags.DEFINE_string("crops", None, "File of benchmarks.gpu.crops.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "File of detections to write.", required=True)
_VARIATION = flags.DEFINE_enum("variation", "plain", list(VARIATIONS), "What differs from the flags.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
EVALUATION_BATCH = 3  # images padded to the largest, so that one graph is compiled
NORM_WEIGHTS = ("gamma", "beta")


class Recipe(SGD):
    """SGD as `kmaskrcnn train` has it: L2 decay through the momentum, not of normalization's scales."""

    def __init__(self, decay, **options):
        super().__init__(**options)
        self.decay = decay

    def update_step(self, gradient, variable, learning_rate):
        if variable.name not in NORM_WEIGHTS:
            gradient = gradient + self.decay * ops.convert_to_tensor(variable)
        super().update_step(gradient, variable, learning_rate)


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up, then a cosine to 0."""

    def __init__(self, peak, steps, warmup, factor):
        self.peak, self.steps, self.warmup, self.factor = peak, steps, warmup, factor

    def __call__(self, step):
        step = ops.cast(step, "float32")
        done = ops.minimum(step / self.warmup, 1.0)
        return self.peak * (self.factor * (1 - done) + done) * 0.5 * (1 + ops.cos(math.pi * step / self.steps))


class Batches(keras.utils.PyDataset):
    """The crops in an order of the seed, again in another one when they are through."""

    def __init__(self, crops, batch, steps, seed):
        super().__init__()
        self.crops, self.steps, self.seed = crops, steps, seed
        rng = np.random.default_rng(seed)
        passes = -(-steps * batch // len(crops))
        self.order = np.concatenate([rng.permutation(len(crops)) for _ in range(passes)])[: steps * batch]
        self.order = self.order.reshape(steps, batch)

    def __len__(self):
        return self.steps

    def __getitem__(self, index):
        batch = self.crops.batch(self.order[index])
        # Another draw for each seed, and for each time that a crop is seen.
        batch["sample_seeds"] = (batch["sample_seeds"] + 7919 * (index + self.seed * self.steps)) % (2**31 - 1)
        return batch


class Lines(keras.callbacks.Callback):
    """A line every hundred steps."""

    def on_train_batch_end(self, batch, logs=None):
        if batch in (0, 20) or batch % 100 == 99:
            note(f"step {batch + 1}, loss {float(logs['loss']):.3f}")


START = time.perf_counter()


def note(text):
    """A line with the seconds since the start."""
    print(f"{time.perf_counter() - START:.1f} s: {text}", flush=True)


def first_weights(config, settings, seed):
    """Weights as a run with this seed starts."""
    keras.utils.set_random_seed(seed)
    model = MaskRCNN(**settings)
    load_imagenet(model.backbone, config.model.backbone, "imagenet")
    return model.get_weights()


def detections(model, file, labels):
    """COCO results of the evaluation images."""
    images = [unpacked(file["val_images"], file["val_starts"], i) for i in range(len(file["val_ids"]))]
    side = -(-max(max(image.shape[:2]) for image in images) // 32) * 32
    pixels = np.zeros((-(-len(images) // EVALUATION_BATCH) * EVALUATION_BATCH, side, side, 3), np.uint8)
    shapes = np.full((len(pixels), 2), side, np.int32)
    for row, image in enumerate(images):
        height, width = shapes[row] = image.shape[:2]
        pixels[row, :height, :width] = image
    found = model.predict({"images": pixels, "image_shapes": shapes}, batch_size=EVALUATION_BATCH, verbose=0)
    results = []
    for row, image in enumerate(images):
        count = int(found["num_detections"][row])
        boxes, scores, classes, masks = (found[n][row, :count] for n in ("boxes", "scores", "classes", "masks"))
        more = {"mask_scores": found["mask_scores"][row, :count]} if "mask_scores" in found else {}
        prediction = Prediction(*image.shape[:2], boxes, scores, classes, masks, labels, **more)
        results += prediction.to_coco(int(file["val_ids"][row]))
    return results


def main(_):
    config: Config = config_from_flags()
    train, steps = config.train, config.train.steps
    if not steps:
        raise SystemExit("--steps=N is needed: all variations are trained for as many")
    if not config.data.crop_size or config.data.resize_mode != "native" or config.data.native_scale != 1.0:
        raise SystemExit(
            "--crop_size, --resize_mode=native and --native_scale=1 are needed: images are taken as they are"
        )
    file = dict(np.load(_CROPS.value))
    crops = Crops(file, config.data)
    ids = tuple(map(int, file["category_ids"]))
    labels = Labels(tuple(map(str, ids)), ids)
    settings = vars(config.model) | {"num_classes": len(ids), "dtype": train.dtype} | VARIATIONS[_VARIATION.value]
    note("crops read")
    model = MaskRCNN(**settings)
    note("model built")
    optimizer = Recipe(
        train.weight_decay,
        learning_rate=Rate(train.learning_rate, steps, steps // 10, train.warmup_factor),
        momentum=train.momentum,
        global_clipnorm=train.clip_norm or None,
        use_ema=True,
        ema_momentum=round(max(0.9, 1 - 10 / steps), 4),
    )
    model.compile(optimizer)
    optimizer.build(model.trainable_variables)
    fresh = [ops.convert_to_numpy(v) for v in optimizer.variables]
    note("optimizer built")
    written = {"variation": _VARIATION.value, "steps": steps, "runs": {}}
    for seed in map(int, _SEEDS.value):
        model.set_weights(first_weights(config, settings, seed))
        for variable, value in zip(optimizer.variables, fresh, strict=True):
            variable.assign(value)
        note(f"seed {seed}: weights drawn")
        begin = time.perf_counter()
        history = model.fit(Batches(crops, train.batch_size, steps, seed), verbose=0, callbacks=[Lines()])
        seconds = time.perf_counter() - begin
        results = detections(model, file, labels)
        written["runs"][seed] = {"seconds": seconds, "loss": history.history["loss"][-1], "results": results}
        note(f"{_VARIATION.value}, seed {seed}: trained for {seconds:.0f} s, {len(results)} detections")
        with gzip.open(_OUTPUT.value, "wt") as output:
            json.dump(written, output)


if __name__ == "__main__":
    define_config_flags()
    app.run(main)
