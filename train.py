"""Train Mask R-CNN: python train.py --flagfile=configs/NAME.flags [--NAME=VALUE ...]."""

from __future__ import annotations

from pathlib import Path

from absl import flags as absl_flags

from kmaskrcnn import flags
from kmaskrcnn.config import ConfigError

PREVIEW = absl_flags.DEFINE_integer(
    "preview_augmentations", 0, "Write this many training images into model_dir/augmentations.png and stop.", 0
)


def main() -> int:
    """Train, with evaluation; exit code 0, 75 after a signal (start again to go on), 2 on a wrong setting."""
    config = flags.config_from_flags()
    if not config.train.model_dir:
        raise ConfigError("--model_dir is missing: the folder for checkpoints, logs and pictures")
    from kmaskrcnn.data import open_dataset
    from kmaskrcnn.evaluation import check_categories, evaluate
    from kmaskrcnn.labels import Labels
    from kmaskrcnn.predict import Predictor
    from kmaskrcnn.training.trainer import EXIT_INTERRUPTED, Trainer

    print("training set: ", end="")
    train_set = open_dataset(config, "train")
    train_set.summary()
    classes = len(train_set.class_names)
    if "num_classes" in flags.given_settings() and config.model.num_classes != classes:
        raise ConfigError(f"--num_classes={config.model.num_classes}, but the training set has {classes}")
    config = config.replace(num_classes=classes)
    if PREVIEW.value:
        from kmaskrcnn.data.preview import contact_sheet

        path = Path(config.train.model_dir) / "augmentations.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(train_set, config, PREVIEW.value).save(path)
        print(f"written: {path}")
        return 0
    labels = Labels(tuple(train_set.class_names), tuple(train_set.category_ids))
    val_set = open_dataset(config, "val", labels)
    if val_set is not None:
        print("evaluation set: ", end="")
        val_set.summary()
        check_categories(labels, val_set)

    def score(model, step):
        result = evaluate(Predictor(model, config, trainer.labels), val_set, config)
        print(f"evaluation after step {step}: {result.table()}", flush=True)
        return result.scalars(), result.pictures

    trainer = Trainer(config, train_set, score if val_set is not None else None)
    outcome = trainer.train()
    if outcome.interrupted:
        return EXIT_INTERRUPTED
    model_dir = Path(config.train.model_dir)
    print(f"done: {outcome.step} steps; the model is in {model_dir}, curves: tensorboard --logdir={model_dir}")
    return 0


if __name__ == "__main__":
    flags.define_config_flags()
    flags.run(main)
