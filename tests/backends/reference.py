"""What the network gives under one Keras backend, for another one to be held against.

    KERAS_BACKEND=tensorflow python -m tests.backends.reference FOLDER

writes for each normalization NORM.keras, the model, and NORM.npz: its detections, its losses in training and in
inference mode, the losses of 20 steps of `fit`, and those of models whose weights differ by a rounding.
"""

import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np

from kmaskrcnn import MaskRCNN
from kmaskrcnn.ops.mask_targets import mask_targets
from tests.conftest import TINY, make_batch

# Beside frozen_bn: other heads and losses, of which not all go together.
VARIATIONS = {
    "variations": {
        "cascade_ious": (0.5, 0.6, 0.7),
        "mask_class_agnostic": True,
        "box_loss": "giou",
        "rpn_box_loss": "giou",
        "mask_scoring": True,
        "soft_nms_sigma": 0.5,
    },
    "point_rend": {
        "mask_point_rend": True,
        "mask_fc_channels": (32,),
        "mask_point_channels": (32,),
        "mask_subdivisions": 3,
    },
}
NORMS = ("frozen_bn", "bn", "gn", *VARIATIONS)
STEPS = 20
# By so much, of themselves, the gradients of TensorFlow and PyTorch differ (4e-6 of a norm of 6.4).
ROUNDING = 2**-20
NUDGES = 3  # one is too few: a step in which a sample is drawn otherwise is rare, and large


def build(norm: str, **settings) -> MaskRCNN:
    """A small model with this norm in every part that can have it."""
    if norm in VARIATIONS:
        norm, settings = "frozen_bn", VARIATIONS[norm] | settings
    others = "none" if norm == "frozen_bn" else norm
    keras.utils.set_random_seed(7)
    return MaskRCNN(**TINY | {"backbone_norm": norm, "fpn_norm": others, "head_norm": others} | settings)


def batch() -> dict[str, np.ndarray]:
    """Two images of 64 x 64 without padded rows, so that every form of the mask branch draws the same sample."""
    return make_batch(size=64, instances=3, filled=(3,))


def detections(model: MaskRCNN) -> dict[str, np.ndarray]:
    """Of the batch's images."""
    return model.predict({name: batch()[name] for name in ("images", "image_shapes")}, verbose=0)


def stateless(model: MaskRCNN, training: bool, proposals: tuple | None = None) -> tuple[dict, list]:
    """The losses of the batch and the variables after them, without Keras' call context, as `fit` on JAX has them.

    Among the losses are the `proposals` and their `scores`; where some are given, the heads see those.
    """

    def run(trainable, others):
        seen = {}

        def propose(*args):
            outputs, anchors, *own = MaskRCNN.propose(model, *args)
            seen["proposals"], seen["scores"] = own
            return outputs, anchors, *map(keras.ops.convert_to_tensor, proposals or own)

        with model._evaluating(), mock.patch.object(model, "propose", propose):
            found, after = model.stateless_call(trainable, others, batch(), training=training)
        return found | seen, after

    if keras.backend.backend() == "jax":
        import jax

        run = jax.jit(run)  # operation by operation it takes minutes
    return run(*([v.value for v in part] for part in (model.trainable_variables, model.non_trainable_variables)))


def losses(model: MaskRCNN, training: bool, proposals: tuple | None = None) -> np.ndarray:
    """The losses of the batch, on these proposals if given."""
    found, _ = stateless(model, training, proposals)
    return np.array([float(found[name]) for name in model.loss_names])


def training_proposals(model: MaskRCNN) -> tuple[np.ndarray, np.ndarray]:
    """The proposals of the batch in training mode, and their scores."""
    found, _ = stateless(model, True)
    return tuple(keras.ops.convert_to_numpy(found[name]) for name in ("proposals", "scores"))


def soft_targets() -> np.ndarray:
    """Mask targets with as many samples as a RoI has pixels, which is torchvision's way and has no fixed shape."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 256, (5, 14, 14), dtype=np.uint8)
    start = rng.uniform(0, 40, (2, 5, 2))
    frames, rois = np.concatenate([start, start + rng.uniform(1, 90, (2, 5, 2))], axis=-1).astype(np.float32)

    def run(masks, frames, rois):
        return mask_targets(masks, frames, rois, 7, binary=False, samples=0)

    if keras.backend.backend() == "jax":
        import jax

        run = jax.jit(run)
    return keras.ops.convert_to_numpy(run(*map(keras.ops.convert_to_tensor, (masks, frames, rois))))


def fits(model: MaskRCNN, nudges: int, **options) -> np.ndarray:
    """The loss at each of STEPS steps of `fit`, (1 + nudges, STEPS).

    The first time from the model's weights; then, compiled once, from those with each changed by a rounding, up or
    down at random.
    """
    # Without clipping the model with all variations diverges, and NaN is no noise.
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9, global_clipnorm=1.0), **options)
    model.optimizer.build(model.trainable_variables)
    variables = (*model.variables, *model.optimizer.variables)
    start = [keras.ops.convert_to_numpy(v) for v in variables]
    weights = {id(v) for v in model.trainable_variables}
    seen = []

    class Record(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(logs["loss"])

    for run in range(1 + nudges):
        rng = np.random.default_rng(run)
        for variable, value in zip(variables, start, strict=True):
            if run and id(variable) in weights:
                value = value * (1 + ROUNDING * rng.choice([-1, 1], value.shape)).astype(np.float32)
            variable.assign(value)
        model.fit(batch(), batch_size=2, epochs=STEPS, shuffle=False, verbose=0, callbacks=[Record()])
    return np.reshape(seen, (1 + nudges, STEPS))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for norm in NORMS:
        model = build(norm)
        model.save(folder / f"{norm}.keras")
        results = {f"detections_{name}": value for name, value in detections(model).items()}
        results |= {"training": losses(model, True), "inference": losses(model, False)}
        results["fit"], *results["nudged"] = fits(model, NUDGES)
        np.savez(folder / f"{norm}.npz", **results, soft_targets=soft_targets())
        print(f"{keras.backend.backend()} {norm}: losses {results['training'].round(4)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
