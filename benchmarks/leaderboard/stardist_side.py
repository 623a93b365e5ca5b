"""StarDist as its example for training in 2D has it: 32 rays, a grid of 2, percentiles, flips and brighter images.

Its schedule drops the rate where the validation loss stops to fall; the weights with the lowest one are used. For that
and for the thresholds, both outside of the budget, a share of 0.15 of the training images is kept.
"""

from __future__ import annotations

import numpy as np

from benchmarks.leaderboard.side import (
    MAX_DETECTIONS,
    Budget,
    mask_of,
    parse,
    pixels,
    predict_all,
    read,
    tell_training,
    versions,
)

VALIDATION = 0.15
_LOWEST = 0.05  # of the probabilities that enter AP; the counts have the optimized threshold


def label_image(annotations: list[dict], image: dict) -> np.ndarray:
    """(H, W) number of the object at each pixel, 0 for none."""
    labels = np.zeros((image["height"], image["width"]), np.int32)
    for number, annotation in enumerate(annotations, 1):
        labels[mask_of(annotation, image) > 0] = number
    return labels


def normalized(picture: np.ndarray) -> np.ndarray:
    """Each channel from its percentile 1 to its percentile 99.8."""
    from csbdeep.utils import normalize

    return normalize(picture, 1, 99.8, axis=(0, 1))


def augment(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A flip or turn, another brightness and contrast, and noise."""
    for axis in (0, 1):
        if np.random.rand() < 0.5:
            image, labels = np.flip(image, axis), np.flip(labels, axis)
    if np.random.rand() < 0.5:
        image, labels = image.swapaxes(0, 1), labels.swapaxes(0, 1)
    image = image * np.random.uniform(0.6, 2) + np.random.uniform(-0.2, 0.2)
    return image + 0.02 * np.random.rand() * np.random.normal(size=image.shape), labels


def train(options) -> None:
    budget = Budget(options.minutes)
    import keras
    from stardist import fill_label_holes
    from stardist.models import Config2D, StarDist2D

    keras.utils.set_random_seed(options.seed)
    tree = read(options.task, "train")
    objects: dict[int, list[dict]] = {i["id"]: [] for i in tree["images"]}
    for annotation in tree["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    images = [normalized(pixels(options.task, image)) for image in tree["images"]]
    labels = [fill_label_holes(label_image(objects[image["id"]], image)) for image in tree["images"]]
    order = np.random.default_rng(options.seed).permutation(len(images)).tolist()
    held = max(1, round(VALIDATION * len(images)))
    pairs = [([images[i] for i in part], [labels[i] for i in part]) for part in (order[held:], order[:held])]
    config = Config2D(n_rays=32, grid=(2, 2), n_channel_in=3, train_tensorboard=False)
    model = StarDist2D(config, name="model", basedir=str(options.output))
    told: dict[str, float] = {"steps": 0}

    class Clock(keras.callbacks.Callback):
        """Ends the run with the budget; validation is outside of it."""

        def on_train_batch_end(self, batch, logs=None):
            told["steps"] += 1
            told["seconds"] = budget.spent()
            if budget.is_over():
                self.model.stop_training = True

        def on_test_begin(self, logs=None):
            self.pause = budget.paused()
            self.pause.__enter__()

        def on_test_end(self, logs=None):
            self.pause.__exit__(None, None, None)

    model.prepare_for_training()
    model.callbacks.append(Clock())
    model.train(*pairs[0], validation_data=pairs[1], augmenter=augment, seed=options.seed)
    # Tuned on the first 40 images: each takes a fit of its own on one core.
    model.optimize_thresholds(pairs[1][0][:40], pairs[1][1][:40])
    more = {"steps": told["steps"], "batch": config.train_batch_size}
    tell_training(options, told["seconds"], **more, versions=versions("stardist", "csbdeep", "tensorflow", "keras"))


def predict(options) -> None:
    from stardist.models import StarDist2D

    category = read(options.task, "train")["categories"][0]["id"]
    model = StarDist2D(None, name="model", basedir=str(options.output))

    def find(picture: np.ndarray, lowest: float | None = None):
        return model.predict_instances(normalized(picture), prob_thresh=lowest)

    def convert(found: tuple):
        labels, scores = found[0], found[1]["prob"]
        best = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]
        masks = labels == (best + 1)[:, None, None]
        kept = masks.any(axis=(1, 2))
        masks, scores = masks[kept], scores[best][kept]
        boxes = np.zeros((len(masks), 4))
        for box, mask in zip(boxes, masks, strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        return boxes, scores, np.full(len(masks), category), masks

    weights = options.output / "model" / "weights_best.h5"
    predict_all(options, find, weights, convert, _LOWEST, working_score=float(model.thresholds.prob))


if __name__ == "__main__":
    given = parse()
    {"train": train, "predict": predict}[given.phase](given)
